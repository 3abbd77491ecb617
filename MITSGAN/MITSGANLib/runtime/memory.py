"""How the process keeps memory that arrays gave back."""

from __future__ import annotations

import ctypes
import platform

# Of glibc's malloc.h: what is at the end of the heap is given back beyond the first, blocks beyond the second lie
# outside of the heap, and the third is added whenever the heap grows.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _TOP_PAD = -1, -3, -2


def keep_freed_memory() -> None:
    """Let the C library keep what slices' arrays gave back, for the next ones; for programs that end with their work.

    Else the system gives each array of a slice new pages, one by one: of examining 133 slices that was an eighth of the
    processor time. Arrays of more than 32 MB, as volumes are, still come and go as before. Only glibc can be told so.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        for name, size in ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 256 << 20), (_TOP_PAD, 64 << 20)):
            library.mallopt(name, size)


def give_freed_memory_back() -> None:
    """Give the system what :func:`keep_freed_memory` kept, before work that needs memory for whole volumes."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
