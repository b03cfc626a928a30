"""kvorumctl: the command line of a kvorum cluster, by etcdctl's words."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from kvorum import __version__, errors
from kvorum.ctl import cluster, kv, lease, snapshot, watch
from kvorum.ctl.common import Command, Group, global_options
from kvorum.ctl.failure import Exit, Failure

API_VERSION = "3.6"
"""The etcd API whose commands these are."""

_CHANGES = ("put", "del", "txn", "compaction", "compact")


@click.group(
    "kvorumctl", cls=Group, params=global_options(top=True), context_settings={"help_option_names": ["-h", "--help"]}
)
def cli() -> None:
    """Speaks to a kvorum cluster. Every flag below may also stand behind the command, and each has an environment
    variable: KVORUMCTL_ENDPOINTS, KVORUMCTL_COMMAND_TIMEOUT, ...

    \b
    Exit codes: 0 done, 1 error, 2 no endpoint was there, 3 invalid input, 4 unsupported, 5 interrupted,
    128 bad arguments.
    """


@click.command("version", cls=Command, short_help="Prints the version of kvorumctl")
def version() -> None:
    """Prints the version of kvorumctl."""
    print(f"kvorumctl version: {__version__}")
    print(f"API version: {API_VERSION}")


for command in (kv.put, kv.get, kv.delete, kv.txn_command, kv.compaction):
    cli.add_command(command)
cli.add_command(kv.compaction, "compact")
for command in (watch.watch, lease.lock, lease.elect, version):
    cli.add_command(command)
for group in (lease.lease, cluster.endpoint, cluster.member, cluster.alarm, snapshot.snapshot):
    cli.add_command(group)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(args)
    except KeyboardInterrupt:
        return 130  # as a shell says of a program that SIGINT has ended
    except BrokenPipeError:  # nobody reads any more: `kvorumctl watch | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.IO


def _run(args: list[str]) -> int:
    try:
        with cli.make_context("kvorumctl", args) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except Failure as failure:
        return _say(failure.code, failure.text)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), flush=True)
        return Exit.OK
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "kvorumctl"
        return _say(Exit.ERROR, f"{error.format_message()}\nRun '{where} --help' for usage.")
    except errors.KvorumError as error:
        return _say(Exit.ERROR, _knowledge(error, args))
    return Exit.OK


def _knowledge(error: errors.KvorumError, args: Sequence[str]) -> str:
    if isinstance(error, errors.Ambiguous) and any(word in _CHANGES for word in args):
        return f"{error.text} (it may have been done, or be done yet: look before you ask again)"
    return error.text


def _say(code: int, text: str) -> int:
    sys.stdout.flush()
    print(f"Error: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
