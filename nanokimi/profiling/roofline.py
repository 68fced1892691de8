"""The roofline's two rates, measured: what the machine can do at best in matrix products and in bytes a second.

A rate is that of the fastest of many calls, since a roofline is what nothing can exceed. Threads: as torch is set.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nanokimi.runtime.device import DTYPES, cpu_has_fast_bf16, fenced_seconds
from nanokimi.runtime.gpu import multiplies_in_bf16

# Of the square matrices: large enough for the full rate, short enough to repeat.
SMALL_SIZE, GPU_SIZE = 1024, 8192
MEMORY_BYTES = 256_000_000  # more than any cache
# Read in about a millisecond, beside which a launch and a fence take no time, and dozens of times a GPU's cache.
GPU_MEMORY_BYTES, GPU_MEMORY_SHARE = 4_000_000_000, 4  # at most one part of so many of the free memory


@dataclass(frozen=True)
class MachineRates:
    """Products by dtype ("fp32", "bf16", "fp16") and memory, of one device with the threads it was measured with."""

    flops_per_second: dict[str, float]
    read_bytes_per_second: float  # from memory beyond the caches

    @property
    def newton_schulz_flops_per_second(self) -> float:
        """The rate in the dtype that Muon chooses: bf16 where the hardware multiplies in it, else fp32."""
        return max(rate for name, rate in self.flops_per_second.items() if name != "fp16")


def fastest_seconds(call: Callable[[], object], device: torch.device, seconds: float = 0.3) -> float:
    """The time of the fastest of the calls that fit into about `seconds`, at least three after one to warm up."""
    call()
    best, calls, start = float("inf"), 0, time.perf_counter()
    while calls < 3 or time.perf_counter() - start < seconds:
        begin = fenced_seconds(device)
        call()
        best, calls = min(best, fenced_seconds(device) - begin), calls + 1
    return best


def matmul_rate(dtype: torch.dtype, device: torch.device, seconds: float = 0.3) -> float:
    """FLOPs per second of one large square product."""
    size = GPU_SIZE if device.type == "cuda" else SMALL_SIZE
    return batched_matmul_rate((1, size, size, size), dtype, device, seconds)


def batched_matmul_rate(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, seconds: float = 0.3
) -> float:
    """FLOPs per second of `batch` products (m, k) x (k, n) at once; `shape` is (batch, m, k, n)."""
    batch, m, k, n = shape
    left = torch.randn(batch, m, k, device=device).to(dtype)
    right = torch.randn(batch, k, n, device=device).to(dtype)
    out = torch.empty(batch, m, n, device=device, dtype=dtype)
    return 2 * batch * m * k * n / fastest_seconds(lambda: torch.bmm(left, right, out=out), device, seconds)


def read_bandwidth(size_bytes: int, device: torch.device, seconds: float = 0.3) -> float:
    """Bytes per second of reading `size_bytes` again and again: whatever a sum or a matrix-vector product reaches."""
    columns = 256
    x = torch.randn(max(size_bytes // 4 // columns, 1), columns, device=device)
    vector = torch.randn(columns, device=device)
    calls = (lambda: x.sum(), lambda: x @ vector)
    return x.numel() * 4 / min(fastest_seconds(call, device, seconds / 2) for call in calls)


def native_dtypes(device: torch.device) -> list[str]:
    """The precisions in which products are worth asking for: fp32, bf16 where the hardware multiplies in it, and, on a
    GPU, fp16."""
    if device.type == "cpu":
        return ["fp32", "bf16"] if cpu_has_fast_bf16() else ["fp32"]
    emulated = device.type == "cuda" and not multiplies_in_bf16(device)
    return ["fp32", "fp16"] if emulated else ["fp32", "bf16", "fp16"]


def measure_machine(device: torch.device, seconds: float = 0.3, dtype: str = "fp32") -> MachineRates:
    """Every rate, also that of a run's `dtype`; takes a few times `seconds`."""
    names = dict.fromkeys([*native_dtypes(device), dtype])
    rates = {name: matmul_rate(DTYPES[name], device, seconds) for name in names}
    return MachineRates(rates, read_bandwidth(bytes_to_read(device), device, seconds))


def bytes_to_read(device: torch.device) -> int:
    """How much memory to measure its bandwidth with."""
    if device.type != "cuda":
        return MEMORY_BYTES
    return min(GPU_MEMORY_BYTES, torch.cuda.mem_get_info(device)[0] // GPU_MEMORY_SHARE)
