"""Tell the C library to keep freed memory: a training step frees and takes the same buffers over and over.

By default glibc gives large blocks back to the system and each step pays for fresh pages again: a quarter of the time
of a LeNet-5 step was spent in the kernel here. Python's collector in turn looks through some hundred thousand objects of
torch again and again, which was a twentieth of the rounds of a small network. Only for processes that are ours alone.
"""

from __future__ import annotations

import ctypes
import gc
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST = 32 << 20  # bytes; glibc's upper bound of the second


def keep_memory() -> None:
    """Blocks under 32 MB stay with the process, where its C library is glibc, and what is imported by now is no garbage."""
    if not gc.get_freeze_count():
        gc.freeze()
    if not sys.platform.startswith("linux"):
        return
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    set_option(M_MMAP_THRESHOLD, LARGEST)
    set_option(M_TRIM_THRESHOLD, 1 << 30)
