"""The `kvorum` command: run a node, run a local cluster, look into a log.

    kvorum node --name n1 --data-dir /var/lib/kvorum --initial-cluster n1=http://10.0.0.1:2380,...
    kvorum local --nodes 3 --data-dir DIR [--base-port P]
    kvorum wal verify|dump DIR
    kvorum export DATA-DIR FILE
    kvorum version

Flags of `kvorum node` are the settings of cluster.settings, one for one; argparse knows only that they exist. What they
mean is checked in one place for flags, environment and file alike (cluster.config). Exit codes are those of
cluster.exits.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from cluster import log, version
from cluster.child import die_with_parent
from cluster.exits import Exit
from cluster.settings import SETTINGS, ConfigError, gather


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(Exit.USAGE)


def main(argv: Sequence[str] | None = None) -> int:
    """What the `kvorum` command runs. Returns the exit code; USAGE for arguments that make no sense."""
    arguments = vars(_parser().parse_args(argv))
    run = arguments.pop("run")
    try:
        return int(run(arguments))
    except ConfigError as error:
        print(f"kvorum: {error}", file=sys.stderr)
        return Exit.USAGE


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kvorum", description="A replicated key-value store with etcd's data model.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"kvorum {version.KVORUM}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    node = commands.add_parser(
        "node",
        help="run one member of a cluster",
        description="Run one member of a cluster. Each setting may also stand in the environment as KVORUM_NAME or "
        "in the TOML file as name = ...; a flag wins over the environment, the environment over the file.",
        allow_abbrev=False,
    )
    node.add_argument("--config-file", metavar="FILE", help="TOML file with settings")
    _add_settings(node, [setting.name for setting in SETTINGS])
    node.set_defaults(run=_node)

    local = commands.add_parser(
        "local",
        help="run a whole cluster on this machine, in the foreground",
        description="Run a whole cluster on this machine, in the foreground, for development and tests. A node that "
        "is killed is started again. Ports: gateways at 2379, 22379, 32379 ... and the others beside them; with "
        "--base-port P node i (from 0) has P + 20 i + k, k = 0 gateway, 1 peer, 2 native, 3 watch, 4 broadcast, "
        "5 metrics.",
        allow_abbrev=False,
    )
    local.add_argument("--nodes", type=int, default=3, metavar="N", help="how many nodes (default: 3)")
    local.add_argument("--data-dir", required=True, metavar="DIR", help="where the nodes' data directories are kept")
    local.add_argument("--base-port", type=int, metavar="P", help="first port (default: etcd's 2379, 22379, ...)")
    _add_settings(local, _LOCAL_SETTINGS)
    local.set_defaults(run=_local)

    wal = commands.add_parser("wal", help="look into a log while its node is stopped", allow_abbrev=False)
    wal_commands = wal.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for name, text in (("verify", "check every record"), ("dump", "print every record")):
        command = wal_commands.add_parser(name, help=text, description=f"{text.capitalize()} of the log in DIR.")
        command.add_argument("dir", metavar="DIR", help="the log's directory, usually DATA-DIR/wal")
        command.set_defaults(run=_wal, act=name)

    export = commands.add_parser(
        "export",
        help="write a stopped node's keys as a snapshot for etcd",
        description="Write the keys, revisions and leases of a stopped node as a snapshot file that etcd's own tools "
        "read: `etcdutl snapshot restore FILE`.",
        allow_abbrev=False,
    )
    export.add_argument("data_dir", metavar="DATA-DIR", help="the node's data directory")
    export.add_argument("file", metavar="FILE", help="the snapshot to be written; it must not be there")
    export.set_defaults(run=_export)

    commands.add_parser("version", help="print the version").set_defaults(run=_version)
    return parser


_LOCAL_SETTINGS = (
    "heartbeat-interval",
    "election-timeout",
    "quota-backend-bytes",
    "max-request-bytes",
    "max-txn-ops",
    "gateway-processes",
    "initial-cluster-token",
    "log-level",
)
"""What may be set for all nodes of a local cluster at once."""


def _add_settings(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    for setting in SETTINGS:
        if setting.name in names:
            default = f" (default: {setting.default})" if setting.default else ""
            bare: dict[str, Any] = {"nargs": "?", "const": "true"} if setting.truth else {}
            parser.add_argument(
                f"--{setting.name}",
                dest=f"set:{setting.name}",
                metavar=setting.metavar,
                help=setting.help + default,
                **bare,
            )


def _settings(arguments: dict[str, object]) -> dict[str, str]:
    return {name[4:]: str(text) for name, text in arguments.items() if name.startswith("set:") and text is not None}


def _node(arguments: dict[str, object]) -> int:
    import signal

    try:
        from cluster import config, supervisor
    except ValueError as error:  # KVORUM_FAILPOINT makes no sense
        raise ConfigError(str(error)) from error

    if os.environ.get("KVORUM_PARENT"):
        die_with_parent(signal.SIGTERM)  # of `kvorum local`, gone without having stopped us
    flags = _settings(arguments)
    if arguments["config_file"]:
        flags["config-file"] = str(arguments["config_file"])
    return supervisor.run(config.resolve(gather(flags, os.environ)), os.environ)


def _local(arguments: dict[str, object]) -> int:
    from cluster import local

    nodes, base = arguments["nodes"], arguments["base_port"]
    assert isinstance(nodes, int)
    assert base is None or isinstance(base, int)
    layout = local.layout(nodes, str(arguments["data_dir"]), base)
    return local.run(layout, _settings(arguments))


def _wal(arguments: dict[str, object]) -> int:
    from cluster.walctl import main as look

    return look(str(arguments["act"]), str(arguments["dir"]))


def _export(arguments: dict[str, object]) -> int:
    from cluster.exportctl import main as export

    return export(str(arguments["data_dir"]), str(arguments["file"]))


def _version(arguments: dict[str, object]) -> int:
    print(f"kvorum {version.KVORUM} (API of etcd {version.ETCD})")
    return 0


if __name__ == "__main__":
    log.setup("kvorum")
    sys.exit(main())
