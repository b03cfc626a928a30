# What cffi makes of edge.h: `lib` has the functions and constants, `ffi` the types.
from typing import Any

ffi: Any
lib: Any
