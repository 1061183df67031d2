"""The C library's allocator, told to keep the large blocks that training frees and asks for again in every step."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

SWITCH = "VISION_WRAPPER_ALLOCATOR"  # set to "system", nothing is changed
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_USERS_OWN = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


@cache
def keep_freed_memory() -> bool:
    """Have glibc keep freed memory for this process, once; whether it was done.

    By default each large tensor that is freed goes back to the kernel, and the next one is given new pages, which the
    kernel fills with zeros first: a fifth of the time of a training step and more. With this the process keeps the
    most memory it has needed (up to 2 GiB that are free at its end) until it ends. It is not done where the user chose
    an allocator or its settings (`LD_PRELOAD`, `GLIBC_TUNABLES`, `MALLOC_…_`), or set VISION_WRAPPER_ALLOCATOR=system.
    """
    if not sys.platform.startswith("linux") or os.environ.get(SWITCH) == "system":
        return False
    if any(name in os.environ for name in _USERS_OWN):
        return False
    library = ctypes.CDLL(None)
    if not (hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt")):
        return False  # musl
    # No block is mapped by itself, so none is unmapped when it is freed.
    return library.mallopt(_M_MMAP_MAX, 0) == 1 and library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) == 1
