"""The machine: device, dtype, threads, clocks and memory. Nothing here depends on a model."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import time
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import torch

from nanokimi.errors import UserError
from nanokimi.runtime.gpu import NATIVE_BF16, multiplies_in_bf16

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DtypeName = Literal["fp32", "bf16", "fp16"]


def choose_device(name: str) -> torch.device:
    """The device of this name. "auto" takes CUDA if there is one, else Apple's MPS, else the CPU.

    Raises UserError if this machine does not have it.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UserError(f"train.device is '{name}': it must be auto, cpu, cuda, cuda:N or mps")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"train.device is '{name}', but this machine has {torch.cuda.device_count()} CUDA devices"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(
            "train.device is 'mps', but this machine (or this torch) has no MPS device: name another, such as cpu"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> DtypeName:
    """Precision of matrix products. "auto" is bf16 if the hardware multiplies in it, else fp32.

    Raises UserError if a CPU or CUDA device only emulates the precision asked for: that would be slower than fp32.
    """
    if name == "auto":
        native = device.type == "cuda" and multiplies_in_bf16(device)
        return "bf16" if native or (device.type == "cpu" and cpu_has_fast_bf16()) else "fp32"
    if name not in ("fp32", "bf16", "fp16"):
        raise UserError(f"train.dtype is '{name}': it must be auto, fp32, bf16 or fp16")
    if name == "bf16" and device.type == "cpu" and not cpu_has_fast_bf16():
        raise UserError(
            "train.dtype is bf16, but this CPU only emulates it (no AVX512-BF16 or AMX): use fp32"
        )
    if name == "bf16" and device.type == "cuda" and not multiplies_in_bf16(device):
        major, minor = torch.cuda.get_device_capability(device)
        needed = ".".join(map(str, NATIVE_BF16))
        raise UserError(
            f"train.dtype is bf16, but {torch.cuda.get_device_name(device)} only emulates it (compute capability "
            f"{major}.{minor}; bf16 needs {needed}): use fp16 or fp32"
        )
    return name  # type: ignore[return-value]  # the check above narrowed it


@cache
def cpu_has_fast_bf16() -> bool:
    """Whether this CPU multiplies in bf16. Emulated products are slower than fp32."""
    if sys.platform == "darwin":
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_threads(threads: int | None) -> int:
    """`threads` if given, else OMP_NUM_THREADS, else one for each physical core that this process may use."""
    if threads is not None:
        return threads
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all its work, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def fenced_seconds(device: torch.device) -> float:
    """A clock reading taken when the device is idle."""
    synchronize(device)
    return time.perf_counter()


def memory_bytes(device: torch.device) -> int:
    """Memory in use now: the allocator's on a GPU, the process's resident set on the CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return psutil.Process().memory_info().rss


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far: the allocator's peak on CUDA, the process's on the CPU.

    MPS does not record a peak, so its current use is returned.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    status = Path("/proc/self/status")
    # Linux: getrusage's number would include the peak of the process that started this one.
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # Unix only

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: CUDA's, MPS's, or the CPU's (also under a limit)."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    signs = (
        "out of memory",
        "not enough memory",
        "can't allocate memory",
        "bad_alloc",
        "cannot allocate memory",
        # of cuBLAS, cuDNN, cuSOLVER and cuSPARSE, which have workspaces of their own
        "_status_alloc_failed",
        "_allocation_failed",
        # A handle takes memory beside torch's own, and without room for it the call often fails with this status
        # (pytorch#128601, lm-evaluation-harness#1689, tensorflow#9489). Of any other call it tells of a broken library.
        "cublas_status_not_initialized when calling `cublascreate",
        "cublas_status_not_initialized when calling `cublasltcreate",
    )
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
MOST_KEPT, LARGEST_ON_HEAP = 1 << 30, 32 << 20  # bytes; glibc accepts no larger value for the latter


def keep_freed_memory(device: torch.device) -> None:
    """Let the process keep the memory that a step frees for the next step, as GPU allocators do.

    By default glibc returns it to the system, which clears each page before the next step can use it: up to 10,000 page
    faults in a step (docs/performance.md). Without glibc, this does nothing.
    """
    libc = _glibc() if device.type == "cpu" else None
    if libc is not None:
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_ON_HEAP)
        libc.mallopt(M_TRIM_THRESHOLD, MOST_KEPT)
        libc.mallopt(M_TOP_PAD, LARGEST_ON_HEAP)


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process, if it is glibc under Linux."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None


def release_memory(device: torch.device) -> None:
    """Return to the system what the allocator keeps for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def release_if_scarce(device: torch.device) -> None:
    """On a GPU of which less than half is free, return what this process's allocator keeps, for other processes.

    Not always, because the next step has to allocate it again.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
    elif device.type == "mps":
        total = torch.mps.recommended_max_memory()
        free = total - torch.mps.driver_allocated_memory()
    else:
        return
    if 2 * free < total:
        release_memory(device)


def check_memory_limit(gigabytes: float | None, device: torch.device) -> None:
    """Raise UserError if memory cannot be limited here, or the process already uses as much."""
    if gigabytes is None:
        return
    if device.type != "cpu" or sys.platform != "linux":
        raise UserError("train.memory_limit_gb limits training on the CPU under Linux: leave it out here")
    held = memory_bytes(device)
    if gigabytes * 1e9 <= held:
        raise UserError(
            f"train.memory_limit_gb is {gigabytes:g}, but the process takes {held / 1e9:.2f} before it starts: allow "
            "more"
        )


def limit_memory(gigabytes: float | None, device: torch.device) -> None:
    """Let allocations fail once this process holds `gigabytes` (10^9 bytes), instead of swapping or being killed.

    The system's limit counts mapped memory, so memory that is mapped but not resident now is added to it.
    Raises UserError as `check_memory_limit` does.
    """
    if gigabytes is None:
        return
    check_memory_limit(gigabytes, device)
    import resource

    # NumPy's OpenBLAS takes its work space at the first product, and ends the process if it gets none.
    _ = np.ones((512, 512)) @ np.ones((512, 512))  # large enough for all its threads
    status = Path("/proc/self/status").read_text().splitlines()
    mapped = int(next(line for line in status if line.startswith("VmData")).split()[1]) * 1024
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    wanted = mapped + int(gigabytes * 1e9) - memory_bytes(device)
    resource.setrlimit(
        resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
    )


def reset_peak_memory(device: torch.device) -> None:
    """Restart `peak_memory_bytes` from what is in use now, if the system can do that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu" and sys.platform == "linux":
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass  # not allowed in this container, so the peak is that of the whole process
