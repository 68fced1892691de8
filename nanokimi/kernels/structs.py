"""What passes between Python and C: structs, the addresses of tensors, and a call that ran out of memory."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nanokimi.model.cache import Cache

KERNELS = Path(__file__).parent
"""Where the C files are."""
Fields = dict[str, int | float | torch.Tensor | None]


class Choice(NamedTuple):
    """What was chosen for a mechanism, and why."""

    mechanism: str
    form: str
    why: str


def struct(integers: str, floats: str, addresses: str) -> type[ctypes.Structure]:
    """A struct of C by the names of its members, in their order: longs, then doubles, then pointers."""
    kinds = ((integers, ctypes.c_long), (floats, ctypes.c_double), (addresses, ctypes.c_void_p))
    fields = [(name, kind) for names, kind in kinds for name in names.split()]
    return type("Layer", (ctypes.Structure,), {"_fields_": fields})


class Pointer(ctypes.c_void_p):
    """Where a tensor lies, as an argument of a C function; it holds on to the tensor."""

    tensor: torch.Tensor


def pointers(*tensors: torch.Tensor) -> list[Pointer]:
    """Where contiguous tensors lie."""
    found = []
    for tensor in tensors:
        assert tensor.is_contiguous(), "C reads what lies in a row"
        found.append(Pointer(tensor.data_ptr()))
        found[-1].tensor = tensor
    return found


def require_memory(failed: int) -> None:
    """Raise MemoryError if a C function says that it could not have its scratch memory."""
    if failed:
        raise MemoryError("out of memory in a kernel: it could not have its scratch memory")


class Layers:
    """An array of structs, and the tensors that they point to."""

    def __init__(self, kind: type[ctypes.Structure], layers: list[Fields]) -> None:
        self.structs = (kind * len(layers))()
        self.kept: list[torch.Tensor] = []
        for one, fields in zip(self.structs, layers, strict=True):
            for name, value in fields.items():
                setattr(one, name, self.address(value) if isinstance(value, torch.Tensor) else value)

    def address(self, tensor: torch.Tensor) -> int:
        """Where the tensor lies, or a contiguous copy of it, as long as this object lives."""
        self.kept.append(tensor.detach().contiguous())
        return self.kept[-1].data_ptr()

    def point_to(self, cache: Cache, *names: str) -> None:
        """Make room for one token more, and let the members `names` point to the buffers of each layer's cache."""
        assert cache.length > 0, "the prompt comes first: read it with the model"
        for layer in cache.layers:
            for buffer in layer.buffers:
                assert buffer.dtype == torch.float32 and len(buffer) == 1, "C reads one sequence in fp32"
        for one, layer in zip(self.structs, cache.layers, strict=True):
            layer.extend()
            for name, buffer in zip(names, layer.buffers, strict=True):
                setattr(one, name, buffer.data_ptr())


def here(position: int, logits_W: torch.Tensor) -> list[Any]:
    """The last arguments of both functions: position, threads, and where the logits go."""
    return [position, torch.get_num_threads(), *pointers(logits_W)]
