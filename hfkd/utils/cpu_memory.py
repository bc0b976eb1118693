"""Freed memory on a CPU: glibc hands large blocks back to the kernel at once, and takes them anew page by page."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
NEVER = -1


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, as a GPU's allocator does; False where there is no glibc to be told.

    Every step frees its activations and asks for as many again: the kernel would clear the same pages at each. The
    process stays as large as it was at its largest.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return mallopt(M_MMAP_MAX, 0) == 1 and mallopt(M_TRIM_THRESHOLD, NEVER) == 1
