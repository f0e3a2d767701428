"""What glibc's allocator does with memory that is freed; elsewhere these do nothing."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_memory() -> None:
    """Have freed tensors' memory kept in the process, instead of given back to the system and asked for again.

    Activations are tens of megabytes each, and glibc maps such blocks anew every time: on a CPU the page faults cost
    more than the arithmetic. Blocks of more than 32 MB, which logits are, come and go all the same: they are of many
    sizes, and would leave holes in which the next ones do not fit.
    """
    libc = _glibc()
    if libc is not None:
        m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3
        for option, value in ((m_mmap_threshold, 2**25), (m_trim_threshold, 2**31 - 1), (m_top_pad, 2**28)):
            libc.mallopt(option, value)


def release_freed_memory() -> None:
    """Give back what is kept, after something large, where what comes next is of other sizes."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return libc if hasattr(libc, "malloc_trim") else None
