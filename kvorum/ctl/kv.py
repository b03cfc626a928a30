"""put, get, del, txn, compaction: the commands about keys.

What a command asks is built by a function of its own, for the lines of a txn are commands too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from kvorum import etcd_pb2 as pb
from kvorum import txn
from kvorum.ctl import txntext
from kvorum.ctl.common import Bytes, Command, Revision, Settings, with_settings
from kvorum.ctl.failure import Exit, Failure
from kvorum.sync import Client
from kvorum.verbs import Ask
from kvorum.wire import Method

_ORDERS = {"": pb.RangeRequest.NONE, "ASCEND": pb.RangeRequest.ASCEND, "DESCEND": pb.RangeRequest.DESCEND}
_TARGETS = {
    "": pb.RangeRequest.KEY,
    "CREATE": pb.RangeRequest.CREATE,
    "KEY": pb.RangeRequest.KEY,
    "MODIFY": pb.RangeRequest.MOD,
    "VALUE": pb.RangeRequest.VALUE,
    "VERSION": pb.RangeRequest.VERSION,
}


def read_stdin() -> bytes:
    return b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()


# ---- put


def put_request(
    words: tuple[bytes, ...], *, lease: str, prev_kv: bool, ignore_value: bool, ignore_lease: bool
) -> pb.PutRequest:
    """
    Raises:
      Failure: too many or too few words; a value beside --ignore-value; a lease that is not hexadecimal.
    """
    if ignore_value and len(words) != 1:
        raise Failure(Exit.BAD_ARGS, "put command needs only 1 argument when 'ignore-value' is set")
    value = b""
    if not ignore_value:
        given = words[1:] or tuple(filter(None, [read_stdin()] if words else []))
        if len(words) > 2 or not given:
            raise Failure(Exit.BAD_ARGS, "put command needs 1 argument and input from stdin or 2 arguments")
        value = given[0]
    if ignore_lease and lease != "0":
        raise Failure(Exit.BAD_ARGS, "--lease cannot be given when 'ignore-lease' is set")
    try:
        lease_id = int(lease, 16)
    except ValueError:
        raise Failure(Exit.BAD_ARGS, f"bad lease ID ({lease!r}), expecting ID in Hex") from None
    return txn.put_request(words[0], value, lease_id, prev_kv, ignore_value=ignore_value, ignore_lease=ignore_lease)


@click.command("put", cls=Command, short_help="Puts the given key into the store")
@click.argument("words", nargs=-1, type=Bytes(), metavar="KEY [VALUE]")
@click.option("--lease", default="0", metavar="HEX", help="The lease to attach to the key, in hexadecimal.")
@click.option("--prev-kv", is_flag=True, help="Print what the key was before.")
@click.option("--ignore-value", is_flag=True, help="Keep the key's value.")
@click.option("--ignore-lease", is_flag=True, help="Keep the key's lease.")
@with_settings
def put(settings: Settings, words: tuple[bytes, ...], **options: Any) -> None:
    """Puts the given key into the store. The value is read from standard input if it is not given."""
    printer = settings.printer()
    printer.refuse("table")
    request = put_request(words, **options)
    with settings.connected() as client:
        printer.put(_ask(client, Method.PUT, request, pb.PutResponse))


# ---- get


def range_request(
    words: tuple[bytes, ...],
    *,
    consistency: str,
    order: str,
    sort_by: str,
    limit: int,
    prefix: bool,
    from_key: bool,
    rev: int,
    keys_only: bool,
    count_only: bool,
    min_create_rev: int,
    max_create_rev: int,
    min_mod_rev: int,
    max_mod_rev: int,
    **_: bool,
) -> pb.RangeRequest:
    """
    Raises:
      Failure: options that contradict each other, too many or too few words, an unknown order or consistency.
    """
    if keys_only and count_only:
        raise Failure(Exit.BAD_ARGS, "`--keys-only` and `--count-only` cannot be set at the same time, choose one")
    if consistency not in ("l", "s"):
        raise Failure(Exit.BAD_FEATURE, f'unknown consistency flag "{consistency}"')
    if order.upper() not in _ORDERS:
        raise Failure(Exit.BAD_FEATURE, f"bad sort order {order}")
    if sort_by.upper() not in _TARGETS:
        raise Failure(Exit.BAD_FEATURE, f"bad sort target {sort_by}")
    key, end = _key_range("get", words, prefix, from_key)
    return pb.RangeRequest(
        key=key,
        range_end=end,
        limit=limit,
        revision=rev,
        sort_order=_ORDERS[order.upper()],
        sort_target=_TARGETS[sort_by.upper()],
        serializable=consistency == "s",
        keys_only=keys_only,
        count_only=count_only,
        min_create_revision=min_create_rev,
        max_create_revision=max_create_rev,
        min_mod_revision=min_mod_rev,
        max_mod_revision=max_mod_rev,
    )


def _key_range(command: str, words: tuple[bytes, ...], prefix: bool, from_key: bool) -> tuple[bytes, bytes]:
    if prefix and from_key:
        raise Failure(Exit.BAD_ARGS, "`--prefix` and `--from-key` cannot be set at the same time, choose one")
    if not 1 <= len(words) <= 2:
        raise Failure(
            Exit.BAD_ARGS, f"{command} command needs one argument as key and an optional argument as range_end"
        )
    key = words[0]
    if len(words) == 2:
        if prefix or from_key:
            raise Failure(
                Exit.BAD_ARGS,
                "too many arguments, only accept one argument when `--prefix` or `--from-key` is set",
            )
        return key, words[1]
    if prefix:
        return txn.prefix_range(key)
    return (key or b"\0", b"\0") if from_key else (key, b"")


_NOT_NEGATIVE = Revision()


@click.command("get", cls=Command, short_help="Gets the key or a range of keys")
@click.argument("words", nargs=-1, type=Bytes(), metavar="KEY [RANGE_END]")
@click.option("--consistency", default="l", metavar="l|s", help="Linearizable or serializable.  [default: l]")
@click.option("--order", default="", metavar="ASCEND|DESCEND", help="The order of the results.")
@click.option("--sort-by", default="", metavar="CREATE|KEY|MODIFY|VALUE|VERSION", help="What to sort by.")
@click.option("--limit", default=0, type=_NOT_NEGATIVE, help="The most results; 0 is all.")
@click.option("--prefix", is_flag=True, help="All keys that start so.")
@click.option("--from-key", is_flag=True, help="All keys from this one on.")
@click.option("--rev", default=0, type=_NOT_NEGATIVE, help="As of this revision; 0 is now.")
@click.option("--keys-only", is_flag=True, help="Leave the values out.")
@click.option("--count-only", is_flag=True, help="Only how many there are (-w fields).")
@click.option("--print-value-only", is_flag=True, help="Leave the keys out (-w simple).")
@click.option("--min-create-rev", default=0, type=_NOT_NEGATIVE, help="Only keys created at this revision or later.")
@click.option("--max-create-rev", default=0, type=_NOT_NEGATIVE, help="Only keys created at this revision or before.")
@click.option("--min-mod-rev", default=0, type=_NOT_NEGATIVE, help="Only keys changed at this revision or later.")
@click.option("--max-mod-rev", default=0, type=_NOT_NEGATIVE, help="Only keys changed at this revision or before.")
@click.option("--stream", is_flag=True, help="Take it in parts: a range of any size. No other order, no min or max.")
@with_settings
def get(settings: Settings, words: tuple[bytes, ...], **options: Any) -> None:
    """Gets the key or the keys from KEY up to RANGE_END."""
    request = range_request(words, **options)
    if request.count_only and settings.write_out != "fields":
        raise Failure(Exit.BAD_ARGS, "--count-only is only for `--write-out=fields`")
    printer = settings.printer(values_only=options["print_value_only"])
    printer.refuse("table")
    with settings.connected() as client:
        if not options["stream"]:
            printer.get(_ask(client, Method.RANGE, request, pb.RangeResponse, again=True))
        elif printer.format == "simple":
            for part in client.stream(request):
                printer.get(part)
        else:  # one answer, whose header comes last
            whole = pb.RangeResponse()
            for part in client.stream(request):
                whole.MergeFrom(part)
            printer.get(whole)


# ---- del


def delete_request(
    words: tuple[bytes, ...], *, prefix: bool, from_key: bool, prev_kv: bool, **_: bool
) -> pb.DeleteRangeRequest:
    """
    Raises:
      Failure: too many or too few words, or options that contradict each other.
    """
    key, end = _key_range("del", words, prefix, from_key)
    return pb.DeleteRangeRequest(key=key, range_end=end, prev_kv=prev_kv)


@click.command("del", cls=Command, short_help="Removes the key or a range of keys [KEY, RANGE_END)")
@click.argument("words", nargs=-1, type=Bytes(), metavar="KEY [RANGE_END]")
@click.option("--prefix", is_flag=True, help="All keys that start so.")
@click.option("--from-key", is_flag=True, help="All keys from this one on.")
@click.option("--range", "_range", is_flag=True, help="RANGE_END is meant (etcdctl asks before it goes on without).")
@click.option("--prev-kv", is_flag=True, help="Print what was deleted.")
@with_settings
def delete(settings: Settings, words: tuple[bytes, ...], **options: Any) -> None:
    """Removes the key or the keys from KEY up to RANGE_END, at one revision."""
    printer = settings.printer()
    printer.refuse("table")
    request = delete_request(words, **options)
    with settings.connected() as client:
        printer.delete(_ask(client, Method.DELETE_RANGE, request, pb.DeleteRangeResponse))


# ---- txn

_OPERATIONS: dict[str, tuple[click.Command, Callable[..., Any], str]] = {
    "put": (put, put_request, "request_put"),
    "get": (get, range_request, "request_range"),
    "del": (delete, delete_request, "request_delete_range"),
}


def operation(line: str) -> pb.RequestOp:
    """One operation of a txn: a put, get or del as on the command line.

    Raises:
      Failure: it is none.
    """
    words = [word.decode("utf-8", "surrogateescape") for word in txntext.words(line)]
    if not words or words[0] not in _OPERATIONS:
        raise Failure(Exit.INVALID_INPUT, f"invalid txn request: {line.strip()}")
    command, build, field = _OPERATIONS[words[0]]
    try:
        options = command.make_context(words[0], words[1:]).params
    except click.UsageError as error:
        raise Failure(Exit.INVALID_INPUT, f"invalid txn request: {line.strip()} ({error.message})") from None
    keys: tuple[bytes, ...] = options.pop("words")
    if words[0] == "put" and len(keys) < 2 and not options["ignore_value"]:
        raise Failure(Exit.BAD_ARGS, f"invalid txn request: {line.strip()} (put needs a key and a value)")
    return pb.RequestOp(**{field: build(keys, **options)})


def read_txn(lines: Iterator[str], prompt: Callable[[str], None]) -> pb.TxnRequest:
    """A whole transaction.

    Raises:
      Failure: a line is not what it should be, or the text ends too early.
    """
    prompt("compares:")
    compares = [txntext.compare(line) for line in txntext.part(lines, "comparisons")]
    prompt("success requests (get, put, del):")
    success = [operation(line) for line in txntext.part(lines, "success requests")]
    prompt("failure requests (get, put, del):")
    failure = [operation(line) for line in txntext.part(lines, "failure requests")]
    return txn.txn_request(compares, success, failure)


def _stdin_lines() -> Iterator[str]:
    for line in sys.stdin.buffer:
        yield line.decode("utf-8", "surrogateescape")


@click.command("txn", cls=Command, short_help="Processes all the requests in one transaction")
@click.option("--interactive", "-i", is_flag=True, help="Say what is to be typed next.")
@with_settings
def txn_command(settings: Settings, interactive: bool) -> None:
    """Processes all the requests in one transaction, read from standard input.

    \b
    Three parts, each ended by an empty line:
      comparisons        mod("key") > "0", value("key") = "v", create(...), version(...), lease(...)
      success requests   put KEY VALUE, get KEY, del KEY, with their flags
      failure requests   the same
    """
    printer = settings.printer()
    printer.refuse("table")

    def prompt(line: str) -> None:
        if interactive:
            print(line, flush=True)

    request = read_txn(_stdin_lines(), prompt)
    with settings.connected() as client:
        again = txn.reads_only(request)
        printer.txn(_ask(client, Method.TXN, request, pb.TxnResponse, again=again))


# ---- compaction


@click.command("compaction", cls=Command, short_help="Compacts the event history")
@click.argument("words", nargs=-1, type=Bytes(), metavar="REVISION")
@click.option("--physical", is_flag=True, help="Return when the space has been given back, not before.")
@with_settings
def compaction(settings: Settings, words: tuple[bytes, ...], physical: bool) -> None:
    """Forgets what keys were before REVISION."""
    if len(words) != 1:
        raise Failure(Exit.BAD_ARGS, "compaction command needs 1 argument")
    try:
        revision = int(words[0])
        request = pb.CompactionRequest(revision=revision, physical=physical)
    except ValueError:
        raise Failure(Exit.ERROR, f"{words[0].decode(errors='replace')!r} is not a revision") from None
    with settings.connected() as client:
        _ask(client, Method.COMPACT, request, pb.CompactionResponse)
    print(f"compacted revision {revision}")


def _ask(client: Client, method: Method, request: Any, response: Any, *, again: bool = False) -> Any:
    ask: Ask[Any] = Ask(method, request.SerializeToString(), response.FromString, again, None)
    return client.ask(ask)
