"""watch: print changes as they come, and run a command for each if one is given; of one watch, or of as many as are
asked for on standard input.

With -i each line is `watch [--prefix] [--rev N] [--prev-kv] [--progress-notify] KEY [RANGE_END] [-- COMMAND ARG...]` or
`progress`, which has every watch say how far it is. A line that is neither is said so and passed over; the end of the
input is an error, and so is a flag that isn't there, all as with etcdctl.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import click

from kvorum import errors, txn
from kvorum import etcd_pb2 as pb
from kvorum.ctl import child, text, txntext
from kvorum.ctl.common import Bytes, Command, Revision, Settings, with_settings
from kvorum.ctl.failure import Exit, Failure
from kvorum.ctl.output import Printer
from kvorum.nudge import Nudge
from kvorum.results import PutEvent, WatchResponse
from kvorum.sync import Client
from kvorum.watches import WatchOptions

F = TypeVar("F", bound=Callable[..., Any])

KEY, RANGE_END = "KVORUMCTL_WATCH_KEY", "KVORUMCTL_WATCH_RANGE_END"
EMPTY_RANGE = "mvcc: watcher range is empty"
EXCLUSIVE = "`range_end` and `--prefix` are mutually exclusive"


class WatchCommand(Command):
    """What stands behind -- is the command to run, whatever it looks like."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        ctx.meta["command"] = args[at + 1 :]
        if at == len(args) - 1:
            raise Failure(Exit.BAD_ARGS, "bad number of arguments (found separator --, but no commands)")
        return super().parse_args(ctx, args[:at])


class _Line(WatchCommand):
    """A line of the interactive form: none of the global flags."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, add_help_option=False, **kwargs)
        self.params = [param for param in self.params if param.expose_value]


def _of_one_watch(function: F) -> F:
    """The flags that say what to watch."""
    for decorate in (
        click.option("--progress-notify", is_flag=True, help="Also print how far things are when nothing happens."),
        click.option("--prev-kv", is_flag=True, help="Also print what the key was before."),
        click.option("--rev", default=0, type=Revision(), help="From this revision on; 0 is now."),
        click.option("--prefix", is_flag=True, help="All keys that start so."),
        click.option("--interactive", "-i", is_flag=True, help="Read what to watch from standard input."),
        click.argument("words", nargs=-1, type=Bytes(), metavar="[KEY] [RANGE_END] [-- COMMAND ARG...]"),
    ):
        function = decorate(function)
    return function


@click.command("watch", cls=_Line)
@_of_one_watch
def _line(**_: Any) -> None:
    """What a line of the interactive form may say; see `watch`."""


class Asked(NamedTuple):
    """What to watch, and what to run for each event."""

    key: bytes
    options: WatchOptions
    command: Sequence[str]


def _asked(context: click.Context) -> Asked:
    """
    Raises:
      Failure: the words don't say what to watch.
    """
    said = context.params
    words = _words(said["words"])
    key, end = words[0], words[1] if len(words) == 2 else None
    if said["prefix"] and end is not None:
        raise Failure(Exit.BAD_ARGS, EXCLUSIVE)
    if said["prefix"]:
        key, end = txn.prefix_range(key)
    options = WatchOptions(
        range_end=end,
        start_revision=said["rev"],
        prev_kv=said["prev_kv"],
        progress_notify=said["progress_notify"],
    )
    return Asked(key, options, context.meta["command"])


def _words(words: Sequence[bytes]) -> Sequence[bytes]:
    """The key and perhaps the end: typed, or from the environment."""
    key, end = os.environb.get(KEY.encode(), b""), os.environb.get(RANGE_END.encode(), b"")
    if end and not key:
        raise Failure(Exit.BAD_ARGS, f"{KEY} is empty but got {RANGE_END}={text.quote(end)}")
    if key and words:
        raise Failure(Exit.BAD_ARGS, "bad number of arguments (found conflicting environment key)")
    if key:
        return [key, end] if end else [key]
    if not words:
        raise Failure(Exit.BAD_ARGS, "bad number of arguments")
    return words if len(words) == 2 else words[:1]  # of more, etcdctl takes the first


@click.command("watch", cls=WatchCommand, short_help="Watches events on keys or prefixes")
@_of_one_watch
@with_settings
def watch(settings: Settings, interactive: bool, **_: Any) -> None:
    """Prints each change of a key, of the keys from KEY up to RANGE_END, or of all that start with KEY, until it is
    interrupted. For each, COMMAND is run with ETCD_WATCH_REVISION, ETCD_WATCH_EVENT_TYPE, ETCD_WATCH_KEY and
    ETCD_WATCH_VALUE in its environment, as etcdctl does. The key may also come from KVORUMCTL_WATCH_KEY (and
    KVORUMCTL_WATCH_RANGE_END).

    With -i, lines of standard input say what to watch: watch [FLAGS] KEY [RANGE_END] [-- COMMAND ARG...]. The line
    `progress` has each watch say up to which revision it has printed everything.
    """
    printer = settings.printer()
    printer.refuse("table")
    if interactive:
        with settings.connected() as client:
            _Session(client, printer).run()
        return
    asked = _asked(click.get_current_context())
    with settings.connected() as client:
        try:
            responses, _cancel = client.watch_response(asked.key, **asked.options)
            for response in responses:
                _show(printer, response, asked.command)
        except (ValueError, errors.Refused) as error:
            _say_cancelled(printer, error)
            raise Failure(Exit.INTERRUPTED, "watch is canceled by the server") from None


def _say_cancelled(printer: Printer, error: Exception) -> None:
    """A ValueError is what the client says of a range that nothing can be in, without asking a node."""
    why = error.text if isinstance(error, errors.KvorumError) else EMPTY_RANGE
    print(f"watch was canceled ({why})", file=sys.stderr, flush=True)
    response = getattr(error, "response", None)
    printer.watch_canceled(response if isinstance(response, pb.WatchResponse) else None)


def _show(printer: Printer, response: WatchResponse, command: Sequence[str]) -> None:
    """Print it, and run the command for each of its events. Raises click's Exit if one fails."""
    printer.watch(response)
    for event in response.events if command else ():
        told = {
            "ETCD_WATCH_REVISION": str(response.header.revision),
            "ETCD_WATCH_EVENT_TYPE": '"PUT"' if isinstance(event, PutEvent) else '"DELETE"',
            "ETCD_WATCH_KEY": text.quote(event.key),
            "ETCD_WATCH_VALUE": text.quote(event.value),
        }
        trouble = child.run(command, told).trouble
        if trouble:
            shown = " ".join(text.quote(word.encode("utf-8", "surrogateescape")) for word in command)
            print(f"command [{shown}] error ({trouble})", file=sys.stderr, flush=True)
            raise click.exceptions.Exit(Exit.ERROR)


# ---- interactive


class _Session:
    """Watches that come by lines. Events are printed, and commands run, by the client's watch thread, one response
    after the other; what fails there ends the reading of lines."""

    def __init__(self, client: Client, printer: Printer) -> None:
        self._client, self._printer = client, printer
        self._failure: BaseException | None = None
        self._failed = Nudge()

    def run(self) -> None:
        """Until something fails; the end of the input does, too."""
        for line in _lines(sys.stdin.fileno(), self._failed.fd):
            self._do(line.decode("utf-8", "surrogateescape"))
        if self._failure is not None:
            raise self._failure
        raise Failure(Exit.INVALID_INPUT, "error reading watch request line: EOF")

    def _do(self, line: str) -> None:
        words = [word.decode("utf-8", "surrogateescape") for word in txntext.words(line)]
        if not words:
            _say(f"Invalid command: {line} (watch and progress supported)")
        elif words[0] == "progress":
            self._client.request_progress()
        elif words[0] != "watch":
            _say(f"Invalid command {line} (only support watch)")
        elif len(words) == 1 and KEY not in os.environ:
            _say(f"Invalid command {line} (command type or key is not provided)")
        else:
            self._watch(line, words[1:])

    def _watch(self, line: str, words: list[str]) -> None:
        try:
            with _line.make_context("watch", words) as context:
                asked = _asked(context)
        except click.UsageError as error:
            raise Failure(Exit.BAD_ARGS, error.format_message()) from None
        except Failure as failure:
            if failure.text != EXCLUSIVE:
                raise
            _say(f"Invalid command {line} ({failure.text})")
            return

        def take(what: WatchResponse | errors.KvorumError) -> None:
            try:
                if isinstance(what, errors.KvorumError):
                    _say_cancelled(self._printer, what)
                else:
                    _show(self._printer, what, asked.command)
            except BaseException as failure:  # for the thread that reads lines
                self._failure = failure
                self._failed.poke()

        try:
            self._client.add_watch_callback(asked.key, take, **asked.options)
        except (ValueError, errors.Refused) as error:
            _say_cancelled(self._printer, error)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _lines(fd: int, stop: int) -> Iterator[bytes]:
    """The lines that come over `fd`, without their ends, until it ends or `stop` is readable. A last line that isn't
    ended is none."""
    rest = b""
    while stop not in select.select([fd, stop], [], [])[0]:
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
