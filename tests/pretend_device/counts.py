"""What the pretend device counts."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

MACHINERY = tuple(f"/pretend_device/{name}.py" for name in ("counts", "tensors", "machine", "checks", "run"))
ELSEWHERE = "(autograd)"


@dataclass
class Counts:
    """Counts since the last `reset`; keys name the line of nanokimi that is responsible."""

    reads: Counter[str] = field(default_factory=Counter)
    """Times that the host waits for a result of the device: `item`, `tolist`, `nonzero`, a copy to the CPU."""
    copies: Counter[str] = field(default_factory=Counter)
    """Copies of CPU tensors to the device, which wait as well, unless the memory is pinned."""
    fences: Counter[str] = field(default_factory=Counter)
    """Calls of `torch.cuda.synchronize` and its like."""
    launches: Counter[str] = field(default_factory=Counter)
    """Kernels by operation: one for each of torch's operations, so a lower bound."""
    launched_at: Counter[str] = field(default_factory=Counter)
    """The same launches by line."""
    attention: Counter[str] = field(default_factory=Counter)
    """Calls of SDPA by the kernel that torch would take."""
    grouped: Counter[str] = field(default_factory=Counter)
    """Grouped products by the path that torch would take."""

    paused = False

    def reset(self) -> None:
        """Start again from nothing."""
        for counter in self.counters().values():
            counter.clear()

    def counters(self) -> dict[str, Counter[str]]:
        """All counters, by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @contextmanager
    def one_kernel(self, name: str) -> Iterator[None]:
        """Count what happens here as one kernel."""
        self.launch(name)
        self.paused = True
        try:
            yield
        finally:
            self.paused = False

    def launch(self, name: str, times: int = 1) -> None:
        """Count kernels of one operation."""
        if self.paused:
            return
        self.launches[name] += times
        self.launched_at[site()] += times

    def totals(self) -> dict[str, int]:
        """The sums, by name."""
        names = ("reads", "copies", "fences", "launches")
        return {name: sum(getattr(self, name).values()) for name in names}

    def snapshot(self) -> dict[str, Any]:
        """All counts as plain dictionaries."""
        return {name: dict(counter) for name, counter in self.counters().items()}


COUNTS = Counts()


def site() -> str:
    """`file:line` of the innermost frame of nanokimi, else of torch's optimizers, else of the caller's script."""
    frame = sys._getframe(1)
    torch_line = script_line = None
    while frame is not None:
        name = frame.f_code.co_filename
        if "/nanokimi/" in name and "/tests/" not in name and "site-packages" not in name:
            return f"{name.rpartition('/nanokimi/')[2]}:{frame.f_lineno}"
        if "/torch/optim/" in name or "/torch/amp/" in name or "/torch/nn/utils/" in name:
            torch_line = torch_line or f"torch/{name.rpartition('/torch/')[2]}:{frame.f_lineno}"
        elif "site-packages" not in name and not name.endswith(MACHINERY):
            script_line = script_line or f"{name.rpartition('/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return torch_line or script_line or ELSEWHERE
