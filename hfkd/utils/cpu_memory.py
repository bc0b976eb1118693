"""Reuse of freed memory on a CPU: by default glibc returns large blocks to the kernel at once."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
NEVER = -1


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for reuse, as a GPU allocator does; returns False without glibc.

    Every step frees its activations and allocates the same amount again, for which the kernel would have to clear the
    same pages each time. The process keeps its peak size.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return mallopt(M_MMAP_MAX, 0) == 1 and mallopt(M_TRIM_THRESHOLD, NEVER) == 1
