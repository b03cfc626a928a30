"""`pytest -p tests.compiled`: the tests, with the modules that native/compile.py has built instead of their sources."""

from __future__ import annotations

from native import compile

assert compile.prefer(), "there is no build of these sources: python -m native.compile"
