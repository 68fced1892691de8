"""Calls of C: structs, the addresses of tensors, and the error of a function that ran out of memory."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nanokimi.model.cache import Cache

KERNELS = Path(__file__).parent
"""The folder of the C files."""
Fields = dict[str, int | float | torch.Tensor | None]


class Choice(NamedTuple):
    """The implementation that was chosen for a mechanism, and why."""

    mechanism: str
    form: str
    why: str


def struct(integers: str, floats: str, addresses: str) -> type[ctypes.Structure]:
    """A C struct, from the names of its members: first longs, then doubles, then pointers."""
    kinds = ((integers, ctypes.c_long), (floats, ctypes.c_double), (addresses, ctypes.c_void_p))
    fields = [(name, kind) for names, kind in kinds for name in names.split()]
    return type("Layer", (ctypes.Structure,), {"_fields_": fields})


class Pointer(ctypes.c_void_p):
    """The address of a tensor as an argument of a C function. It keeps the tensor alive."""

    tensor: torch.Tensor


def pointers(*tensors: torch.Tensor) -> list[Pointer]:
    """The addresses of contiguous tensors."""
    found = []
    for tensor in tensors:
        assert tensor.is_contiguous(), "C needs contiguous tensors"
        found.append(Pointer(tensor.data_ptr()))
        found[-1].tensor = tensor
    return found


def require_memory(failed: int) -> None:
    """Raise MemoryError if a C function returned that it could not allocate its scratch memory."""
    if failed:
        raise MemoryError("out of memory in a kernel: it could not allocate its scratch memory")


class Layers:
    """An array of structs, and the tensors that they point to, which it keeps alive."""

    def __init__(self, kind: type[ctypes.Structure], layers: list[Fields]) -> None:
        self.structs = (kind * len(layers))()
        self.kept: list[torch.Tensor] = []
        for one, fields in zip(self.structs, layers, strict=True):
            for name, value in fields.items():
                setattr(one, name, self.address(value) if isinstance(value, torch.Tensor) else value)

    def address(self, tensor: torch.Tensor) -> int:
        """The address of the tensor, or of a contiguous copy, valid as long as this object exists."""
        self.kept.append(tensor.detach().contiguous())
        return self.kept[-1].data_ptr()

    def point_to(self, cache: Cache, *names: str) -> None:
        """Make room for one more token, and set the members `names` to the buffers of each layer's cache."""
        assert cache.length > 0, "the model must read the prompt first"
        for layer in cache.layers:
            for buffer in layer.buffers:
                assert buffer.dtype == torch.float32 and len(buffer) == 1, "C reads one sequence in fp32"
        for one, layer in zip(self.structs, cache.layers, strict=True):
            layer.extend()
            for name, buffer in zip(names, layer.buffers, strict=True):
                setattr(one, name, buffer.data_ptr())


def here(position: int, logits_W: torch.Tensor) -> list[Any]:
    """The last arguments of both decoders: the position, the number of threads, and the address for the logits."""
    return [position, torch.get_num_threads(), *pointers(logits_W)]
