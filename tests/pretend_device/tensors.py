"""Tensors of the pretend device, and what torch's operations do with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pretend_device.counts import COUNTS, site
from pretend_device.rules import groups_in_one_kernel

KIND = os.environ["PRETEND_DEVICE"]
CAPABILITY = tuple(int(number) for number in os.environ.get("PRETEND_CAPABILITY", "9,0").split(","))
DEVICE = torch.device(KIND, 0)
NO_FLOAT64 = (
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. Please use float32 "
    "instead."
)

aten = torch.ops.aten
READS = {
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.equal.default: "equal",
    aten.bincount.default: "bincount",
    aten.is_nonzero.default: "is_nonzero",
    aten._unique2.default: "unique",
    aten.repeat_interleave.Tensor: "repeat_interleave",
    aten._linalg_eigh.default: "eigh",
    aten._linalg_check_errors.default: "check of a decomposition",
}
INDEXING = {aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put_.default, aten.index_put.default}
"""Take indices on the CPU, too."""
NO_KERNEL = {"_unsafe_view", "detach", "alias", "lift_fresh", "_reshape_alias"}
NO_KERNEL |= {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
NOT_ON_MPS = {"linalg_qr", "_linalg_eigh", "linalg_eig", "geqrf", "_linalg_svd"}
"""Decompositions that torch 2.13 lacks there."""


class DeviceTensor(torch.Tensor):
    """A tensor of the pretend device: a wrapper around a CPU tensor."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> DeviceTensor:
        like = dict(strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype)
        outer = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), **like, layout=inner.layout, device=DEVICE, requires_grad=False
        )
        outer.inner = inner
        return outer

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"DeviceTensor({DEVICE}, {self.inner})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.data_ptr:
            return args[0].inner.data_ptr()
        if func is torch.Tensor.untyped_storage:
            return args[0].inner.untyped_storage()
        if func is torch.Tensor.tolist:
            COUNTS.reads[f"{site()} tolist"] += 1
            return args[0].inner.tolist()
        if func is torch.Tensor.numpy or getattr(func, "__name__", "") == "__array__":
            raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu()")
        if func is torch.Tensor.pin_memory:
            raise RuntimeError(f"cannot pin '{KIND}' memory")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})


class PretendMode(TorchDispatchMode):
    """Sees operations without a tensor of the device, too: those that make one."""


def dispatched(self: PretendMode, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    """The mode's `__torch_dispatch__`."""
    return call(func, args, kwargs or {})


# Set afterwards, because torch imports its compiler, which takes seconds, for one that the class statement has.
PretendMode.__torch_dispatch__ = dispatched


def call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do an operation on the CPU tensors within, after the checks and counts of a device."""
    flat = list(leaves((args, kwargs)))
    wanted = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    if wanted is not None and wanted.type not in (KIND, "cpu", "meta"):
        raise RuntimeError(f"this pretend machine has no {wanted}")
    wants_device = wanted is not None and wanted.type == KIND
    if not wants_device and not any(isinstance(x, DeviceTensor) for x in flat):
        return func(*args, **kwargs)
    if is_composed(func):
        with PretendMode():
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
    host = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, DeviceTensor)]
    check(func, flat, host)
    count(func, args, kwargs, wanted)
    return unwrapped(func, args, kwargs, host, stays=wanted is not None and wanted.type == "cpu")


def leaves(x: Any) -> Iterator[Any]:
    """What an operation's arguments hold, however deep. torch's own trees take more time than the operations."""
    if type(x) in (tuple, list):
        for part in x:
            yield from leaves(part)
    elif type(x) is dict:
        yield from leaves(list(x.values()))
    else:
        yield x


def changed(change: Callable[[Any], Any], x: Any) -> Any:
    """Arguments or results with all that they hold changed."""
    if type(x) in (tuple, list):
        return type(x)([changed(change, part) for part in x])
    if type(x) is dict:
        return {name: changed(change, part) for name, part in x.items()}
    return change(x)


@cache
def is_composed(func: Any) -> bool:
    """Whether an operation is made of others on every device."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def check(func: Any, flat: list[Any], host: list[torch.Tensor]) -> None:
    """Raise as torch does: two devices in one operation, or float64 and a decomposition on MPS."""
    copies = func in (aten._to_copy.default, aten.copy_.default, aten._foreach_copy_.default)
    if not copies and func not in INDEXING and any(x.dim() > 0 for x in host):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu! ({func})"
        )
    if not copies and host and "fused_adam" in str(func):
        raise RuntimeError(f"fused Adam has tensors on {DEVICE} and on the CPU")
    if KIND == "mps":
        if func is aten.bmm.dtype:
            raise NotImplementedError(
                "The operator 'aten::bmm.dtype' is not currently implemented for the MPS device."
            )
        if torch.float64 in flat:
            raise TypeError(NO_FLOAT64)
        if func._opname in NOT_ON_MPS:
            raise NotImplementedError(
                f"The operator '{func.name()}' is not currently implemented for the MPS device."
            )


def count(func: Any, args: Any, kwargs: dict[str, Any], wanted: torch.device | None) -> None:
    """Count the copies, reads and kernels of an operation."""
    if func in (aten._to_copy.default, aten.copy_.default):
        target, source = (None, args[0]) if func is aten._to_copy.default else args[:2]
        to_device = (
            wanted is None or wanted.type == KIND if target is None else isinstance(target, DeviceTensor)
        )
        if not isinstance(source, DeviceTensor):
            COUNTS.copies[f"{site()} {tuple(source.shape)}"] += 1
        elif to_device:
            COUNTS.launch(func._opname)
        else:
            COUNTS.reads[f"{site()} copy to the CPU"] += 1
        return
    if func in READS and kwargs.get("output_size") is None:
        COUNTS.reads[f"{site()} {READS[func]}"] += 1
    elif func in INDEXING and any(is_mask(index) for index in args[1] or []):
        COUNTS.reads[f"{site()} index by a mask"] += 1
    if func is aten._grouped_mm.default:
        count_grouped(*args, **kwargs)
    elif func is not aten._local_scalar_dense.default and not is_view(func):
        COUNTS.launch(func._opname)


def count_grouped(a: torch.Tensor, b: torch.Tensor, offs: torch.Tensor | None = None, **_: Any) -> None:
    """A grouped product: one kernel, or as many as there are groups and a read of where they end."""
    name = f"{str(a.dtype).removeprefix('torch.')}"
    if KIND == "mps":
        raise NotImplementedError(
            "The operator 'aten::_grouped_mm' is not currently implemented for the MPS device."
        )
    if groups_in_one_kernel(a.dtype, CAPABILITY) or offs is None:
        COUNTS.grouped[f"one kernel, {name}"] += 1
        COUNTS.launch("_grouped_mm")
        return
    COUNTS.grouped[f"loop, {name}"] += 1
    COUNTS.reads[f"{site()} ends of groups"] += 1
    COUNTS.launch("mm (group)", offs.shape[0])


def is_mask(index: Any) -> bool:
    """Whether an index selects by truth: how many, only the device knows."""
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


@cache
def is_view(func: Any) -> bool:
    """Whether an operation launches nothing."""
    returns = func._schema.returns
    views = [r.alias_info is not None and not r.alias_info.is_write for r in returns]
    return (bool(returns) and all(views)) or func._opname in NO_KERNEL


def unwrapped(func: Any, args: Any, kwargs: dict[str, Any], host: list[torch.Tensor], stays: bool) -> Any:
    """The operation on the tensors within; its results are of the device, unless it copies to the CPU (`stays`)."""
    outer: dict[int, DeviceTensor] = {}

    def unwrap(x: Any) -> Any:
        if isinstance(x, DeviceTensor):
            outer[id(x.inner)] = x
            return x.inner
        return torch.device("cpu") if isinstance(x, torch.device) and x.type == KIND else x

    def wrap(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or isinstance(x, DeviceTensor) or any(x is y for y in host):
            return x
        if id(x) in outer:  # changed in place
            return outer[id(x)]
        if stays and func is aten._to_copy.default:
            return x
        if KIND == "mps" and x.dtype == torch.float64:
            raise TypeError(NO_FLOAT64)
        return DeviceTensor(x)

    inner_kwargs = changed(unwrap, kwargs)
    if isinstance(inner_kwargs.get("device"), str):
        inner_kwargs["device"] = "cpu"
    return changed(wrap, computed(func, changed(unwrap, args), inner_kwargs))


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on CPU tensors. Some take or give two dtypes on CUDA alone: half precision in, fp32 out."""
    if func is aten.bmm.dtype:
        return args[0].to(args[2]) @ args[1].to(args[2])
    if func in (aten._softmax.default, aten._log_softmax.default) and args[2]:
        return func(args[0].float(), args[1], False)
    if func in (aten._softmax_backward_data.default, aten._log_softmax_backward_data.default):
        return func(*args[:3], args[0].dtype).to(args[3])
    return func(*args, **kwargs)
