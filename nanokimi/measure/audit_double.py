"""Running a module in float64 although its code casts to single precision, and noticing where it computes so.

Many modules cast on their way, as a router or a norm "in float32" does. Converted to float64, they still round as
before, or fail because two types meet. Here every cast below float64 becomes one to float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

DOUBLES = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}


class Precision(TorchDispatchMode):
    """Notes whether an operation has read or made numbers below float64; with `raised`, every cast to those is
    replaced."""

    def __init__(self, raised: bool) -> None:
        super().__init__()
        self.raised = raised
        self.single = False
        """Whether there were numbers below float64, so that rounding is not float64's."""
        self.rounding = 0.0
        """The coarsest relative rounding of the types that there were."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: torch would wrap the function below for its compiler, whose import takes seconds and 70 MB."""
        return False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation of the module."""
        kwargs = kwargs or {}
        if self.raised:
            args, kwargs = raise_types(args), raise_types(kwargs)
        result = func(*args, **kwargs)
        for value in leaves((args, kwargs, result)):
            self.single = self.single or is_single(value)
            if isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex()):
                self.rounding = max(self.rounding, torch.finfo(value.dtype).eps)
        return result

    @contextmanager
    def context(self) -> Iterator[None]:
        """Watch the calls inside; with `raised`, new tensors are float64 where no type is named."""
        before = torch.get_default_dtype()
        if self.raised:
            torch.set_default_dtype(torch.float64)
        try:
            with self:
                yield
        finally:
            torch.set_default_dtype(before)


def raise_types(value: Any) -> Any:
    """An operation's arguments, with float64 instead of every smaller type."""
    if isinstance(value, torch.dtype):
        return DOUBLES.get(value, value)
    if type(value) in (tuple, list):
        return type(value)(raise_types(one) for one in value)
    return {key: raise_types(one) for key, one in value.items()} if type(value) is dict else value


def leaves(value: Any) -> Iterator[Any]:
    """Everything in nested tuples, lists and dictionaries."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        for one in value:
            yield from leaves(one)
    else:
        yield value


def is_single(value: Any) -> bool:
    """Whether a value is a tensor of numbers below float64."""
    return isinstance(value, torch.Tensor) and value.dtype in DOUBLES
