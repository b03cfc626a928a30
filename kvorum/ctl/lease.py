"""lease grant, revoke, timetolive, list, keep-alive; lock and elect, which hold one while they run."""

from __future__ import annotations

import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from kvorum import errors
from kvorum.ctl import child
from kvorum.ctl.common import Bytes, Command, Group, Settings, with_settings
from kvorum.ctl.failure import Exit, Failure
from kvorum.ctl.output import Printer
from kvorum.recipes import Election, Lock, LockLost, NotLeading
from kvorum.sync import Client

LOCK_TTL_SECONDS = 10
ELECT_TTL_SECONDS = 60


_DIGITS = {10: re.compile(r"[+-]?[0-9]+"), 16: re.compile(r"[+-]?[0-9a-fA-F]+")}


def _number(word: str, base: int) -> int:
    """A number of 64 bits with its sign.

    Raises:
      ValueError: in Go's words, which etcdctl passes on.
    """
    if not _DIGITS[base].fullmatch(word):
        raise ValueError(f'strconv.ParseInt: parsing "{word}": invalid syntax')
    number = int(word, base)
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f'strconv.ParseInt: parsing "{word}": value out of range')
    return number


def _lease_id(words: tuple[str, ...], usage: str) -> int:
    """The id that is the only argument, in hexadecimal, as it is printed.

    Raises:
      Failure: there is another number of arguments, or it is no such number.
    """
    if len(words) != 1:
        raise Failure(Exit.BAD_ARGS, usage)
    try:
        return _number(words[0], 16)
    except ValueError as error:
        raise Failure(Exit.BAD_ARGS, f"bad lease ID arg ({error}), expecting ID in Hex") from None


@click.group("lease", cls=Group, short_help="Lease related commands")
def lease() -> None:
    """Makes, ends and shows leases. Ids are written in hexadecimal."""


@lease.command("grant", cls=Command, short_help="Creates leases")
@click.argument("words", nargs=-1, metavar="TTL")
@with_settings
def grant(settings: Settings, words: tuple[str, ...]) -> None:
    """Creates a lease of TTL seconds, which nobody keeps alive yet."""
    if len(words) != 1:
        raise Failure(Exit.BAD_ARGS, "lease grant command needs TTL argument")
    try:
        seconds = _number(words[0], 10)
    except ValueError as error:
        raise Failure(Exit.BAD_ARGS, f"bad TTL ({error})") from None
    printer = settings.printer()
    with settings.connected() as client:
        try:
            printer.lease_grant(client.lease_grant(seconds))
        except errors.KvorumError as error:
            raise Failure(Exit.ERROR, f"failed to grant lease ({error.text})") from None


@lease.command("revoke", cls=Command, short_help="Revokes leases")
@click.argument("words", nargs=-1, metavar="LEASE")
@with_settings
def revoke(settings: Settings, words: tuple[str, ...]) -> None:
    """Ends a lease and deletes its keys."""
    id = _lease_id(words, "lease revoke command needs 1 argument")
    printer = settings.printer()
    with settings.connected() as client:
        try:
            printer.lease_revoke(id, client.revoke_lease(id))
        except errors.KvorumError as error:
            raise Failure(Exit.ERROR, f"failed to revoke lease ({error.text})") from None


@lease.command("timetolive", cls=Command, short_help="Gets lease information")
@click.argument("words", nargs=-1, metavar="LEASE")
@click.option("--keys", is_flag=True, help="Also the keys attached to it.")
@with_settings
def timetolive(settings: Settings, words: tuple[str, ...], keys: bool) -> None:
    """Says how much time a lease has left."""
    id = _lease_id(words, "lease timetolive command needs lease ID as argument")
    printer = settings.printer()
    with settings.connected() as client:
        printer.lease_time_to_live(client.get_lease_info(id, keys), keys)


@lease.command("list", cls=Command, short_help="Lists all active leases")
@with_settings
def list_(settings: Settings) -> None:
    """Lists all leases."""
    printer = settings.printer()
    with settings.connected() as client:
        printer.lease_list(client.leases_response())


@lease.command("keep-alive", cls=Command, short_help="Keeps leases alive (renew)")
@click.argument("words", nargs=-1, metavar="LEASE")
@click.option("--once", is_flag=True, help="Renew it once and end.")
@with_settings
def keep_alive(settings: Settings, words: tuple[str, ...], once: bool) -> None:
    """Renews a lease every third of its time, until it is interrupted or the lease is gone."""
    id = _lease_id(words, "lease keep-alive command needs lease ID as argument")
    printer = settings.printer()
    with settings.connected() as client:
        while True:
            answer = client.refresh_lease(id)
            if answer.TTL <= 0:
                if once:
                    raise Failure(Exit.BAD_CONNECTION, errors.LeaseNotFound.text)
                if printer.format == "simple":
                    print(f"lease {id:016x} expired or revoked.", flush=True)
                return
            printer.lease_keep_alive(answer)
            if once:
                return
            threading.Event().wait(answer.TTL / 3)


# ---- lock and elect


class _Interrupted(BaseException):
    """SIGINT or SIGTERM: what is held must be given back."""


@contextmanager
def _until_interrupted() -> Iterator[None]:
    """Ends by SIGINT and SIGTERM, without being an error."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Interrupted

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except _Interrupted:
        return
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _WithCommand(Command):
    """What stands behind the name is the command to run. Before a -- our own flags are ours wherever they stand, as
    with etcdctl; others, which etcdctl refuses, are the command's."""

    ignore_unknown_options = True


@click.command("lock", cls=_WithCommand, short_help="Acquires a named lock")
@click.option("--ttl", default=LOCK_TTL_SECONDS, show_default=True, help="Seconds after which a dead holder's is free.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="LOCKNAME [COMMAND ARG...]")
@with_settings
def lock(settings: Settings, ttl: int, words: tuple[str, ...]) -> None:
    """Acquires a lock and prints its key; holds it until it is interrupted, or while COMMAND runs, which finds the key
    and the fencing token in ETCD_LOCK_KEY and ETCD_LOCK_REV, as etcdctl has it.
    """
    if not words:
        raise Failure(Exit.BAD_ARGS, "lock takes a lock name argument and an optional command to execute")
    name, *command = words
    printer = settings.printer()
    with settings.connected() as client, _until_interrupted():
        held = Lock(client, name.encode("utf-8", "surrogateescape"), ttl)
        try:
            with held:
                if command:
                    _run(held, command)
                printer.get(client.get_response(held.key))
                while held.is_acquired():
                    threading.Event().wait(0.2)
            raise Failure(Exit.ERROR, "session expired")
        except LockLost as lost:
            raise Failure(Exit.ERROR, str(lost)) from None


def _run(held: Lock, command: list[str]) -> None:
    """Ends the program, with the command's exit code."""
    told = {"ETCD_LOCK_KEY": held.key.decode("utf-8", "surrogateescape"), "ETCD_LOCK_REV": str(held.token)}
    code, trouble = child.run(command, told)
    if trouble:
        print(f"Error: {trouble}", file=sys.stderr)
    raise click.exceptions.Exit(code)


@click.command("elect", cls=Command, short_help="Observes and participates in leader election")
@click.option("--listen", "-l", is_flag=True, help="Only print who leads, now and from now on.")
@click.argument("words", nargs=-1, type=Bytes(), metavar="ELECTION-NAME [PROPOSAL]")
@with_settings
def elect(settings: Settings, listen: bool, words: tuple[bytes, ...]) -> None:
    """Stands in an election with PROPOSAL, prints the own key and proposal when it is won, and leads until it is
    interrupted.
    """
    if not 1 <= len(words) <= 2:
        text = "elect takes one election name argument and an optional proposal argument"
        raise Failure(Exit.BAD_ARGS, text)
    name, *proposal = words
    if listen and proposal:
        raise Failure(Exit.BAD_ARGS, "proposal given but -l is set")
    if not listen and not proposal:
        raise Failure(Exit.BAD_ARGS, "no proposal argument but -l not set")
    printer = settings.printer()
    with settings.connected() as client, _until_interrupted():
        if listen:
            for leader in Election(client, name).observe_response():
                printer.get(leader)
        else:
            _lead(client, printer, name, proposal[0])


def _lead(client: Client, printer: Printer, name: bytes, proposal: bytes) -> None:
    try:
        with Election(client, name, ELECT_TTL_SECONDS) as election:
            election.campaign(proposal)
            printer.get(election.leader_response())
            while election.leads:
                threading.Event().wait(0.2)
        raise Failure(Exit.ERROR, "elect: session expired")
    except NotLeading as lost:
        raise Failure(Exit.ERROR, str(lost)) from None
