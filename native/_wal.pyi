# What cffi makes of wal.h and crc32c.h: `lib` has the functions and constants, `ffi` the types.
from typing import Any

ffi: Any
lib: Any
