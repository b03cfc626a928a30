"""`python -m cluster.part MODULE NODE_JSON EPOCH`: one process of a node, as the supervisor starts it.

Nothing but this stands between the interpreter and the module, so that what is compiled of it and of what it imports is
found first (native/compile.py).
"""

from __future__ import annotations

import importlib
import sys

from native import compile


def main() -> None:
    compile.prefer()
    sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))


if __name__ == "__main__":
    main()
