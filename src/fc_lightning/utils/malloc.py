"""Tuning of memory on a CPU: glibc's allocator, on Linux, and the cache of oneDNN."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

# To align a tensor, glibc splits small pieces off a larger block, and its thread cache gives them to small objects.
# Once the tensor is freed, its block is too short for the next tensor of the same size. Without the cache the pieces
# are merged again. Huge pages save address translations.
GLIBC_TUNABLES = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0:glibc.malloc.hugetlb=1"
_GPUS = ("/dev/nvidiactl", "/dev/kfd")  # of NVIDIA's and AMD's drivers


def restart_with_tunables() -> None:
    """Restart this process with settings of glibc with which training on a CPU is faster and takes less memory.

    glibc reads them when a process starts. The process keeps its id and its arguments. Nothing happens on a machine
    with a GPU, where their effect was not measured, in a debugger, or if ``GLIBC_TUNABLES`` is set, even to nothing.
    """
    is_debugged = sys.gettrace() is not None
    if _glibc() is None or "GLIBC_TUNABLES" in os.environ or is_debugged or any(Path(gpu).exists() for gpu in _GPUS):
        return
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"GLIBC_TUNABLES": GLIBC_TUNABLES})


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
