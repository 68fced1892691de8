"""What the table of fast implementations (accelerate.py) is made of: places, mechanisms and rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from nanokimi.runtime.device import cpu_has_fast_bf16


class Place(NamedTuple):
    """Where a model is trained."""

    device: str
    dtype: str
    """The dtype of matrix products: fp32, bf16 or fp16."""
    compiled: bool
    """Whether torch.compile traces the step. It cannot trace C, nor some backward passes."""

    @property
    def bf16_on_cpu(self) -> bool:
        """Whether torch's own kernels are slow here."""
        return self.device == "cpu" and self.dtype == "bf16"

    @property
    def c(self) -> bool:
        """Whether the training kernels in C can be used: bf16 on a processor that multiplies in it."""
        return self.bf16_on_cpu and not self.compiled and cpu_has_fast_bf16()

    @property
    def gpu(self) -> bool:
        """Whether the host should not wait for the device's numbers."""
        return self.device in ("cuda", "mps")

    @property
    def groups(self) -> bool:
        """Whether torch's grouped product of bf16 is one kernel here. On other GPUs it reads counts on the host."""
        return self.device == "cuda" and torch.cuda.get_device_capability()[0] in (9, 10)


class Mechanism(NamedTuple):
    """A function of the reference that a fast implementation may replace."""

    name: str
    owners: tuple[type, ...]
    attribute: str
    """The attribute of an owner that holds the function."""


@dataclass(frozen=True)
class Row:
    """A fast implementation of a mechanism."""

    mechanism: Mechanism
    form: str
    why: str
    suits: Callable[[Place, Any], bool]
    """Whether to use it at a place for an owner."""
    make: Callable[[Any], Callable[..., Any]]
    """The function for an owner."""
