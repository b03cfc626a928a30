"""Builds the C parts as cffi modules in API mode: `python -m native.build`, or setup.py by way of the `_ffi` functions.

A header is read twice: by the compiler, and between its marker comments by cffi's `cdef`. So there is one place that
says what C offers, and the compiler checks what Python was told. Modules are built beside their sources:
`native._wal`, `native._plain`, `native._ends`, `native._edge`.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from cffi import FFI
from setuptools import Distribution

HERE = Path(__file__).parent
ROOT = HERE.parent
EDGE_SOURCES = (
    *(
        "edge.c",
        "edge_answer.c",
        "edge_conn.c",
        "edge_grpc.c",
        "edge_gzip.c",
        "edge_http2.c",
        "edge_selfsigned.c",
        "edge_tls.c",
    ),
    *("edge_util.c", "edge_write.c"),
)
FLAGS = ["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-pthread"]


def declarations(header: Path) -> str:
    """What lies between the header's marker comments. Raises ValueError if it has none."""
    found = re.search(r"/\* cdef: begin \*/(.*)/\* cdef: end \*/", header.read_text(encoding="utf-8"), re.DOTALL)
    if found is None:
        raise ValueError(f"{header}: the markers of the cdef part are missing")
    return found[1]


def wal_ffi() -> FFI:
    """The builder of `native._wal`: the write-ahead log and its checksum."""
    ffi = FFI()
    headers = ["crc32c.h", "wal.h"]
    for header in headers:
        ffi.cdef(declarations(HERE / header))
    ffi.cdef('extern "Python" int wal_hook_python(const struct wal_op *op);')  # for tests that watch or fail the disk
    sources = ["crc32c.c", "wal.c", "wal_append.c", "wal_io.c", "wal_read.c", "wal_writer.c"]
    ffi.set_source(
        "native._wal",
        "\n".join(f'#include "{header}"' for header in headers),
        sources=[f"native/{source}" for source in sources],
        include_dirs=["native"],
        depends=[f"native/{header}" for header in [*headers, "wal_format.h", "wal_inside.h", "wal_io.h"]],
        extra_compile_args=FLAGS,
        extra_link_args=["-pthread"],
    )
    return ffi


def _of_one_file(name: str) -> FFI:
    """The builder of `native._NAME`, which is NAME.h and NAME.c."""
    ffi = FFI()
    ffi.cdef(declarations(HERE / f"{name}.h"))
    ffi.set_source(
        f"native._{name}",
        f'#include "{name}.h"',
        sources=[f"native/{name}.c"],
        include_dirs=["native"],
        depends=[f"native/{name}.h"],
        extra_compile_args=FLAGS,
    )
    return ffi


def plain_ffi() -> FFI:
    """The builder of `native._plain`: batches of requests taken apart."""
    return _of_one_file("plain")


def ends_ffi() -> FFI:
    """The builder of `native._ends`: a process's ZeroMQ sockets, waited for together."""
    return _of_one_file("ends")


def edge_ffi() -> FFI:
    """The builder of `native._edge`: HTTP/2, gRPC and TLS, over the system's nghttp2 and OpenSSL."""
    ffi = FFI()
    ffi.cdef(declarations(HERE / "edge.h"))
    ffi.set_source(
        "native._edge",
        '#include "edge.h"',
        sources=[f"native/{source}" for source in EDGE_SOURCES],
        include_dirs=["native"],
        depends=["native/edge.h", "native/edge_inside.h"],
        libraries=["nghttp2", "ssl", "crypto", "z"],
        extra_compile_args=FLAGS,
    )
    return ffi


BUILDERS: tuple[Callable[[], FFI], ...] = (wal_ffi, plain_ffi, ends_ffi, edge_ffi)


def main() -> None:
    """Build in place. A finished module replaces the old one's name, not its bytes: some process may run them."""
    with contextlib.chdir(ROOT):
        modules = [builder().distutils_extension("build/cffi") for builder in BUILDERS]
        for module in modules:  # be named as by pip: of two names, Python takes the one without abi3
            module.py_limited_api = True  # type: ignore[attr-defined]
        command = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
        command.build_lib, command.build_temp = "build/lib", "build/temp"
        command.ensure_finalized()
        command.run()
        for output in command.get_outputs():
            draft = shutil.copy2(output, HERE / f"{Path(output).name}.new")
            print(Path(draft).replace(HERE / Path(output).name))


if __name__ == "__main__":
    main()
