"""The roofline's two rates, measured: what the machine can do at best in matrix products and in bytes a second.

A rate is that of the fastest of many calls, since a roofline is what nothing can exceed. Threads: as torch is set.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nanokimi.runtime.device import DTYPES, cpu_has_fast_bf16, fenced_seconds

# Of the square matrices: large enough for the full rate, short enough to repeat.
SMALL_SIZE, GPU_SIZE = 1024, 8192
MEMORY_BYTES = 256_000_000  # more than any cache


@dataclass(frozen=True)
class MachineRates:
    """Products by dtype ("fp32", "bf16") and memory, of one device with the threads it was measured with."""

    flops_per_second: dict[str, float]
    read_bytes_per_second: float  # from memory beyond the caches

    @property
    def best_flops_per_second(self) -> float:
        """The rate of the fastest dtype."""
        return max(self.flops_per_second.values())


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
    """The precisions in which products are worth asking for: fp32, and bf16 where the hardware multiplies in it."""
    native = device.type != "cpu" or cpu_has_fast_bf16()
    return ["fp32", "bf16"] if native else ["fp32"]


def measure_machine(device: torch.device, seconds: float = 0.3) -> MachineRates:
    """Every rate; takes a few times `seconds`."""
    rates = {name: matmul_rate(DTYPES[name], device, seconds) for name in native_dtypes(device)}
    return MachineRates(rates, read_bandwidth(MEMORY_BYTES, device, seconds))
