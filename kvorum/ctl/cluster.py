"""endpoint health, endpoint status, endpoint hashkv, member list, alarm list, alarm disarm: the commands about nodes.

An endpoint is asked through a client of its own that knows no other, so that what is printed is what that node says.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter_ns

import click

from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.ctl import text
from kvorum.ctl.common import Command, Group, Settings, with_settings
from kvorum.ctl.failure import Exit, Failure
from kvorum.ctl.output import EndpointHash, EndpointStatus, Health
from kvorum.sync import Client

cluster_flag = click.option("--cluster", is_flag=True, help="All endpoints that the cluster knows of itself.")


@click.group("endpoint", cls=Group, short_help="Endpoint related commands")
@cluster_flag
@click.pass_context
def endpoint(ctx: click.Context, cluster: bool) -> None:
    """Asks endpoints how they are."""
    ctx.meta["cluster"] = cluster


def _endpoints(settings: Settings, cluster: bool) -> list[str]:
    if not (cluster or click.get_current_context().meta["cluster"]):
        return settings.endpoints
    with settings.connected() as client:
        found = [member.native.removeprefix("tcp://") for member in client.hello().members if member.native]
    if not found:
        raise Failure(Exit.ERROR, "no member has told the cluster of an endpoint")
    return found


@endpoint.command("health", cls=Command, short_help="Checks whether endpoints serve")
@cluster_flag
@with_settings
def health(settings: Settings, cluster: bool) -> None:
    """Has each endpoint read a key with the agreement of a quorum. Exits with 1 if one could not, or if an
    alarm stands.
    """
    printer = settings.printer()
    printer.refuse("protobuf")
    endpoints = _endpoints(settings, cluster)
    with ThreadPoolExecutor(len(endpoints)) as pool:
        found = list(pool.map(lambda one: _health(settings, one), endpoints))
    printer.health(found)
    sick = [one for one in found if not one.healthy]
    if printer.format == "simple":
        for one in sick:
            print(f"{one.endpoint} is unhealthy: failed to commit proposal: {one.error}", file=sys.stderr)
    if sick:
        raise Failure(Exit.ERROR, "unhealthy cluster")


def _health(settings: Settings, endpoint: str) -> Health:
    begun = perf_counter_ns()
    error = ""
    try:
        with settings.client([endpoint]) as client:
            error = _unwell(client)
    except errors.KvorumError as failure:
        error = failure.text
    return Health(endpoint, not error, perf_counter_ns() - begun, error)


def _unwell(client: Client) -> str:
    """What is wrong, "" if nothing is."""
    try:
        client.get("health")
    except errors.KvorumError as failure:
        # A refusal for want of permission comes out of the log like any other answer.
        if failure.code is not errors.Code.PERMISSION_DENIED:
            raise
    try:
        alarms = client.alarm_response().alarms
    except errors.KvorumError:
        return "Unable to fetch the alarm list"
    kinds = [text.alarm_name(one) if one.alarm in (pb.NOSPACE, pb.CORRUPT) else "UNKNOWN" for one in alarms]
    return "Active Alarm(s): " + "".join(f"{kind} " for kind in kinds) if kinds else ""


@endpoint.command("status", cls=Command, short_help="Prints the status of endpoints")
@cluster_flag
@with_settings
def status(settings: Settings, cluster: bool) -> None:
    """Prints what each endpoint says of itself: endpoint, ID, version, storage version, db size, in use, percentage not
    in use, quota, is leader, is learner, raft term, raft index, raft applied index, errors, downgrade target version,
    downgrade enabled.
    """
    printer = settings.printer()
    printer.refuse("protobuf")
    found: list[EndpointStatus] = []
    failed = False
    for one in _endpoints(settings, cluster):
        try:
            with settings.client([one]) as client:
                found.append(EndpointStatus(one, client.status_response()))
        except errors.KvorumError as error:
            failed = True
            print(f"Failed to get the status of endpoint {one} ({error.text})", file=sys.stderr)
    printer.status(found)
    if failed:
        click.get_current_context().exit(Exit.ERROR)


@endpoint.command("hashkv", cls=Command, short_help="Prints the KV history hash of endpoints")
@cluster_flag
@click.option("--rev", default=0, help="Up to this revision (default: the latest).")
@with_settings
def hashkv(settings: Settings, cluster: bool, rev: int) -> None:
    """Prints each endpoint's checksum of keys and history: endpoint, hash, revision. Those of the same revision and
    compaction must be the same.
    """
    printer = settings.printer()
    printer.refuse("protobuf")
    found: list[EndpointHash] = []
    last: errors.KvorumError | None = None
    for one in _endpoints(settings, cluster):
        try:
            with settings.client([one]) as client:
                found.append(EndpointHash(one, client.hash_kv(rev)))
        except errors.KvorumError as error:
            last = error
            print(f"Failed to get the hash of endpoint {one} ({error.text})", file=sys.stderr)
    printer.hashes(found)
    if last is not None:
        raise Failure(Exit.ERROR, last.text)


@click.group("alarm", cls=Group, short_help="Alarm related commands")
def alarm() -> None:
    """Lists alarms, which keep the cluster from taking writes, and takes them back."""


@alarm.command("list", cls=Command, short_help="Lists all alarms")
@with_settings
def alarm_list(settings: Settings) -> None:
    """Prints each alarm that stands: the member that raised it, and its type."""
    printer = settings.printer()
    with settings.connected() as client:
        printer.alarms(client.alarm_response())


@alarm.command("disarm", cls=Command, short_help="Disarms all alarms")
@with_settings
def alarm_disarm(settings: Settings) -> None:
    """Takes back every alarm that stands, and prints each. What raised them may raise them again."""
    printer = settings.printer()
    with settings.connected() as client:
        gone = pb.AlarmResponse()
        for one in client.alarm_response().alarms:
            gone.alarms.extend(client.alarm_response("deactivate", one.memberID, one.alarm).alarms)
        printer.alarms(gone)


@click.group("member", cls=Group, short_help="Membership related commands")
def member() -> None:
    """Says who belongs to the cluster."""


@member.command("list", cls=Command, short_help="Lists all members in the cluster")
@click.option("--consistency", default="l", metavar="l|s", help="As a quorum knows them, or as the endpoint does.")
@with_settings
def member_list(settings: Settings, consistency: str) -> None:
    """Prints each member: ID, status, name, peer addresses, client addresses, is learner."""
    if consistency not in ("l", "s"):
        raise Failure(Exit.BAD_FEATURE, f'unknown consistency flag "{consistency}"')
    printer = settings.printer()
    with settings.connected() as client:
        printer.members(client.member_list(linearizable=consistency == "l"))
