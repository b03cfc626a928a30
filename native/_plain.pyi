# What cffi makes of plain.h: `lib` has the function and constants, `ffi` the types.
from typing import Any

ffi: Any
lib: Any
