"""kvorumctl: what people type. Its commands, flags, outputs and exit codes are etcdctl's (3.6)."""
