"""Freed memory on a CPU: glibc gives blocks above 32 MiB back to the kernel, and takes them anew page by page."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
NEVER = -1


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, as a GPU's allocator does; False where there is no glibc to be told."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return mallopt(M_MMAP_MAX, 0) == 1 and mallopt(M_TRIM_THRESHOLD, NEVER) == 1
