"""The pretend device itself: it refuses what a device refuses and counts what a device waits for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pretend_device.counts import COUNTS
from pretend_device.tensors import DEVICE, KIND


def refused(function: Callable[[], Any]) -> str:
    """The error that a function must raise."""
    try:
        function()
    except (RuntimeError, TypeError) as error:
        return str(error)
    raise AssertionError("it was not refused")


def check_two_devices_do_not_mix(_: Path) -> None:
    """A CPU tensor that meets one of the device, also in place and in backward passes."""
    here, there = torch.ones(3, device=DEVICE), torch.ones(3)
    assert here.device == DEVICE and (here + here).device == DEVICE
    assert "same device" in refused(lambda: here + there)
    assert "same device" in refused(lambda: here.add_(there))
    assert "same device" in refused(lambda: torch.cat((here, there)))
    assert (here + torch.tensor(1.0)).tolist() == [2, 2, 2]  # a number may come from the CPU
    assert "numpy" in refused(lambda: here.numpy())


def check_reads_copies_and_launches_are_counted(_: Path) -> None:
    """Each with the line that is responsible."""
    x = torch.ones(4).to(DEVICE)
    assert COUNTS.totals() == {"reads": 0, "copies": 1, "fences": 0, "launches": 0}
    y = (x * 2).view(2, 2).T
    assert COUNTS.totals()["launches"] == 1
    assert float(y.sum()) == 8 and y.tolist() == [[2, 2], [2, 2]] and y.cpu().sum() == 8
    assert bool((x[x > 0] == 1).all())
    # item, tolist, copy, mask and bool; sum, comparison, indexing, comparison and all.
    assert COUNTS.totals() == {"reads": 5, "copies": 1, "fences": 0, "launches": 6}
    assert all(line.startswith("check_device.py:") for line in COUNTS.reads)


def check_gradients_flow(_: Path) -> None:
    """Autograd runs on the device, and a module moves there with its tied weights."""
    first, second = torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    model = torch.nn.Sequential(first, second).to(DEVICE)
    assert model[0].weight is model[1].weight and model[0].weight.device == DEVICE
    model(torch.ones(1, 3, device=DEVICE)).sum().backward()
    assert model[0].weight.grad.device == DEVICE


def check_float64_and_decompositions(_: Path) -> None:
    """MPS has neither float64 nor a QR decomposition; CUDA has both."""
    x = torch.eye(3, device=DEVICE)
    if KIND == "mps":
        assert "float64" in refused(x.double) and "float64" in refused(lambda: x.to(torch.float64))
        assert "linalg_qr" in refused(lambda: torch.linalg.qr(x))
    else:
        assert x.double().sum() == 3 and torch.linalg.qr(x).Q.device == DEVICE
