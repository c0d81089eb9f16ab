"""Thread and memory settings of a process that trains on shared CPUs; the command line makes them before torch loads.

Only how long idle threads spin and when memory goes back to the system: no result changes. Each is left alone where the
environment has it already. Figures in docs/performance.md.
"""

import ctypes
import os
import sys

# glibc: tensors below 32 MiB (its upper bound) come from the heap, which keeps up to 2 GiB of what is freed, instead of
# being mapped, zeroed and unmapped by the system each time.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = 32 * 2**20, 2**31 - 1
_MALLOPT = {"MALLOC_TRIM_THRESHOLD_": (-1, _TRIM_THRESHOLD), "MALLOC_MMAP_THRESHOLD_": (-3, _MMAP_THRESHOLD)}
_ENVIRONMENT = {
    # libgomp: a thread that waits spins some microseconds, then sleeps. By default it spins for milliseconds, which two
    # busy processes on the same cores pay for with most of their time.
    "GOMP_SPINCOUNT": "1000",
    # torch: tensors above 2 MiB on huge pages where the system has them for the asking.
    "THP_MEM_ALLOC_ENABLE": "1",
}


def set_cpu_defaults() -> None:
    """Set what helps, for this process and those it starts. Without effect on what torch has read already."""
    if sys.platform != "linux":
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it; musl does not
    for name, (parameter, size) in _MALLOPT.items():
        if name not in os.environ:
            os.environ[name] = str(size)
            if mallopt is not None:
                mallopt(parameter, size)
