"""What this is called, to people and to etcd's clients."""

from __future__ import annotations

KVORUM = "0.1.0"
"""The release, as in setup.py."""

ETCD = "3.6.0"
"""The etcd whose API this offers, told where clients ask for a version: they switch features by it."""

ETCD_CLUSTER = "3.6.0"
"""The version that all members speak; the same while there is only one."""
