"""What the C library does with the memory that a step frees, which the next step takes again."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
NEVER = -1
LARGEST = 2**30  # bytes; the blocks of a step are smaller


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, until `give_back_freed_memory`.

    glibc gives large blocks back to the system, and every step on a CPU then begins with pages that the system must find
    and zero: a tenth to a third of its time. Other C libraries have no such settings and are left as they are.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_THRESHOLD, LARGEST)
        set_option(M_TRIM_THRESHOLD, NEVER)


def give_back_freed_memory() -> None:
    """Give back to the system what a run has freed; the next one may take less."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
