"""Tuning of memory on a CPU: glibc's allocator, on Linux, and the cache of oneDNN."""

from __future__ import annotations

import ctypes
import os
import sys

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """Keep the memory of freed tensors in the process instead of returning it to the system.

    Activations are tens of megabytes each, and by default glibc maps such blocks from the system on each allocation:
    on a CPU the page faults cost more than the arithmetic. Blocks of more than 32 MB, which logits are, are still
    returned, because their sizes vary and they would leave gaps that the next ones do not fit into.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 2**28)


def limit_kernel_cache() -> None:
    """Keep fewer of the kernels that oneDNN generates for matrix products. For use before the first product.

    oneDNN generates kernels for each shape, about a megabyte each, and by default keeps those of 1,024 products. Many
    shapes never occur again. Their kernels are allocated between activations, which leaves gaps in memory, so that the
    process grows.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


def release_freed_memory() -> None:
    """Return freed memory to the system. For use after a large operation, when later blocks have different sizes."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return libc if hasattr(libc, "malloc_trim") else None
