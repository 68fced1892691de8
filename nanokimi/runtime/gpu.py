"""What a GPU is, for the record of a run and the head of a table: name, memory, capability, driver, libraries."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

NATIVE_BF16 = (8, 0)
"""The first compute capability whose matrix units multiply in bf16. CUDA accepts bf16 on older ones and emulates it."""


def describe_gpu(device: torch.device) -> dict[str, Any] | None:
    """The GPU and the versions that its results depend on; None for a CPU. Memory is in bytes.

    What cannot be found out is None: the driver where its management library is missing (as on ROCm), and whatever MPS
    does not tell.
    """
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return {
            "name": found.name,
            "memory_bytes": found.total_memory,
            "compute_capability": f"{found.major}.{found.minor}",
            "driver": _nvidia_driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    if device.type == "mps":
        unknown = dict.fromkeys(("memory_bytes", "compute_capability", "driver", "cuda", "cudnn"))
        return {"name": torch.backends.mps.get_name(), **unknown}
    return None


def multiplies_in_bf16(device: torch.device) -> bool:
    """Whether a CUDA device has matrix units for bf16."""
    return torch.cuda.get_device_capability(device) >= NATIVE_BF16


def _nvidia_driver() -> str | None:
    """The driver's version, from NVIDIA's management library: torch knows only which CUDA the driver supports."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    text = ctypes.create_string_buffer(96)
    try:
        known = nvml.nvmlInit_v2() == 0 and nvml.nvmlSystemGetDriverVersion(text, len(text)) == 0
        nvml.nvmlShutdown()
    except AttributeError:  # a library of the name without these functions
        return None
    return text.value.decode(errors="replace") if known else None
