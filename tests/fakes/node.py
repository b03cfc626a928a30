"""`kvorum node` with fake children: python -m tests.fakes.node FLAG..., the flags being those of `kvorum node`."""

import os
import sys

from cluster import cli, supervisor

supervisor.CHILDREN = {name: f"tests.fakes.{name}" for name in supervisor.CHILDREN}

if __name__ == "__main__":
    assert "KVORUM_PARENT" not in os.environ
    sys.exit(cli.main(["node", *sys.argv[1:]]))
