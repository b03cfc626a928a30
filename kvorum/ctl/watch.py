"""watch: print changes as they come, and run a command for each if one is given."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import click

from kvorum import errors, txn
from kvorum.ctl import text
from kvorum.ctl.common import Bytes, Command, Revision, Settings, with_settings
from kvorum.ctl.failure import Exit, Failure
from kvorum.results import Event, PutEvent


class WatchCommand(Command):
    """What stands behind -- is the command to run, whatever it looks like."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        ctx.meta["command"] = args[at + 1 :]
        return super().parse_args(ctx, args[:at])


@click.command("watch", cls=WatchCommand, short_help="Watches events on keys or prefixes")
@click.argument("words", nargs=-1, type=Bytes(), metavar="[KEY] [RANGE_END] [-- COMMAND ARG...]")
@click.option("--prefix", is_flag=True, help="All keys that start so.")
@click.option("--rev", default=0, type=Revision(), help="From this revision on; 0 is now.")
@click.option("--prev-kv", is_flag=True, help="Also print what the key was before.")
@click.option("--progress-notify", is_flag=True, help="Also print how far things are when nothing happens.")
@with_settings
def watch(settings: Settings, words: tuple[bytes, ...], **options: Any) -> None:
    """Prints each change of a key, of the keys from KEY up to RANGE_END, or of all that start with KEY, until it is
    interrupted. For each, COMMAND is run with ETCD_WATCH_REVISION, ETCD_WATCH_EVENT_TYPE, ETCD_WATCH_KEY and
    ETCD_WATCH_VALUE in its environment, as etcdctl does. The key may also come from KVORUMCTL_WATCH_KEY (and
    KVORUMCTL_WATCH_RANGE_END).
    """
    command: list[str] = click.get_current_context().meta["command"]
    printer = settings.printer()
    printer.refuse("table")
    if not words and "KVORUMCTL_WATCH_KEY" in os.environ:
        words = tuple(
            os.environb[name] for name in (b"KVORUMCTL_WATCH_KEY", b"KVORUMCTL_WATCH_RANGE_END") if name in os.environb
        )
    if not 1 <= len(words) <= 2:
        raise Failure(Exit.BAD_ARGS, "bad number of arguments")
    if options["prefix"] and len(words) == 2:
        raise Failure(Exit.BAD_ARGS, "`range_end` and `--prefix` are mutually exclusive")
    key, end = words[0], words[1] if len(words) == 2 else None
    if options["prefix"]:
        key, end = txn.prefix_range(key)
    with settings.connected() as client:
        try:
            responses, _ = client.watch_response(
                key,
                range_end=end,
                start_revision=options["rev"],
                prev_kv=options["prev_kv"],
                progress_notify=options["progress_notify"],
            )
            for response in responses:
                printer.watch(response)
                for event in response.events if command else ():
                    _run(command, response.header.revision, event)
        except ValueError as error:
            raise Failure(Exit.BAD_ARGS, str(error)) from None
        except errors.Refused as error:
            print(f"watch was canceled ({error.text})", file=sys.stderr)
            raise Failure(Exit.INTERRUPTED, "watch is canceled by the server") from None


def _run(command: Sequence[str], revision: int, event: Event) -> None:
    kind = "PUT" if isinstance(event, PutEvent) else "DELETE"
    environment = {
        **os.environ,
        "ETCD_WATCH_REVISION": str(revision),
        "ETCD_WATCH_EVENT_TYPE": f'"{kind}"',
        "ETCD_WATCH_KEY": text.quote(event.key),
        "ETCD_WATCH_VALUE": text.quote(event.value),
    }
    try:
        done = subprocess.run(command, env=environment, check=False)
    except OSError as error:
        raise Failure(Exit.ERROR, f"command {command[0]!r} error ({error.strerror})") from None
    if done.returncode:
        raise Failure(Exit.ERROR, f"command {command[0]!r} error (exit status {done.returncode})")
