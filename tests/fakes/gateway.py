"""The fake gateway process."""

import sys

from tests.fakes.child import main

if __name__ == "__main__":
    sys.exit(main("gateway"))
