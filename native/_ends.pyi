# What cffi makes of ends.h: `lib` has the functions and constants, `ffi` the types.
from typing import Any

ffi: Any
lib: Any
