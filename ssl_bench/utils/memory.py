"""Memory of this machine."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from pathlib import Path

# Of mallopt(3).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def free_memory() -> int:
    """Bytes that this process can still take, by the system and by a container's own limit."""
    free = 4 * 2**30  # where the system does not say
    if hasattr(os, "sysconf"):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    information = Path("/proc/meminfo")
    if information.exists():
        fields = dict(line.split(":") for line in information.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdecimal():
        free = min(free, int(text))
    return free


def keep_freed_memory() -> bool:
    """Let this process take the tensors of a step from the memory that the last step freed, in huge pages.

    glibc returns blocks above 32 MB at once, and the end of its heap; the next step asks for them again, and the kernel
    fills every page with zeros first: a twelfth of a step of MoCo v3 on a CPU. With it a process keeps the most it ever
    took. Torch asks for huge pages only if it allocated nothing before. Numbers are the same either way.

    Returns:
        Whether it is so: on Linux with glibc, unless the environment sets MALLOC_* or GLIBC_TUNABLES itself.
    """
    if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ or any(k.startswith("MALLOC_") for k in os.environ):
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch at its first tensor; processes inherit it
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    options = ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26))
    return all([mallopt(option, value) == 1 for option, value in options])


def release_freed_memory() -> None:
    """Give back to the system what earlier tasks of this process have freed: it would count as the next one's peak."""
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
