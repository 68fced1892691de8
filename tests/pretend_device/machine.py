"""The pretend machine: `install` loads the library, imports torch and puts the device in."""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

MEMORY = 80 << 30
"""Bytes of the device, as it reports them."""


def install() -> None:
    """Put the device that PRETEND_DEVICE names into this process, before anything else imports torch."""
    assert "torch" not in sys.modules, "the pretend device must stand before torch is imported"
    hooks = ctypes.CDLL(os.environ["PRETEND_LIBRARY"], mode=ctypes.RTLD_GLOBAL)
    atexit.register(hooks.end_before_statics)
    import torch
    from torch.utils import _foreach_utils as foreach_utils

    from pretend_device import tensors

    # Wrappers cannot be made in inference mode, and `lift` must not take them for tensors of the CPU.
    torch.inference_mode = lambda mode=True: torch.no_grad()
    torch._C._set_only_lift_cpu_tensors(True)
    foreach_utils._foreach_supported_types.append(tensors.DeviceTensor)
    keep_ties_when_moving(torch)
    report_attention(torch, tensors)
    if tensors.KIND == "cuda":
        fuse_norms(torch)
    (put_in_cuda if tensors.KIND == "cuda" else put_in_mps)(torch, tensors)
    tensors.PretendMode().__enter__()


def fence(*_: Any, **__: Any) -> None:
    """The host waits until the device is idle."""
    from pretend_device.counts import COUNTS, site

    COUNTS.fences[site()] += 1


def always(value: Any) -> Callable[..., Any]:
    """A function of anything that returns `value`."""
    return lambda *_, **__: value


def put_in_cuda(torch: Any, tensors: Any) -> None:
    """What torch.cuda says of the device."""
    cuda, capability = torch.cuda, tensors.CAPABILITY
    name = f"Pretend GPU {capability[0]}.{capability[1]}"
    properties = dict(name=name, total_memory=MEMORY, multi_processor_count=132, major=capability[0])
    answers = {
        "_lazy_init": None,
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": capability,
        "get_device_name": name,
        "get_device_properties": SimpleNamespace(**properties, minor=capability[1]),
        "is_bf16_supported": capability[0] >= 8,
        "is_current_stream_capturing": False,
        "memory_allocated": 1000,
        "memory_reserved": 1500,
        "max_memory_allocated": 2000,
        "max_memory_reserved": 2500,
        "mem_get_info": (MEMORY, MEMORY),
        "reset_peak_memory_stats": None,
        "empty_cache": None,
        "manual_seed": None,
        "manual_seed_all": None,
        "set_rng_state": None,
        "set_device": None,
    }
    for attribute, value in answers.items():
        setattr(cuda, attribute, always(value))
    cuda.synchronize = fence
    cuda.get_rng_state = lambda *_: torch.get_rng_state()
    cuda.device = NoContext
    cuda.Event, cuda.current_stream = Event, always(None)


def put_in_mps(torch: Any, tensors: Any) -> None:
    """What torch.mps says of the device."""
    torch.backends.mps.is_available = torch.mps.is_available = always(True)
    torch.mps.current_allocated_memory = torch.mps.driver_allocated_memory = always(1000)
    torch.mps.recommended_max_memory = always(MEMORY)
    torch.mps.empty_cache = torch.mps.manual_seed = torch.mps.set_rng_state = always(None)
    torch.mps.get_rng_state = lambda *_: torch.get_rng_state()
    torch.mps.synchronize = fence
    torch.backends.mps.get_name = always("Pretend Mac")


class Event:
    """A moment of the device, whose work is done as soon as it is given."""

    def __init__(self, enable_timing: bool = False) -> None:
        pass

    def record(self, stream: object = None) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, later: Event) -> float:
        """Milliseconds."""
        return (later.seconds - self.seconds) * 1e3


class NoContext:
    """A context that changes nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        pass


def keep_ties_when_moving(torch: Any) -> None:
    """`module.to(device)` replaces parameters, since wrappers cannot be changed in place; tied ones stay tied."""
    apply, moving = torch.nn.Module._apply, []

    def _apply(self: Any, fn: Any, recurse: bool = True) -> Any:
        if moving:
            return apply(self, fn, recurse)
        ties = defaultdict(list)
        for module in self.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    ties[id(parameter)].append((module, name))
        moving.append(self)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            result = apply(self, fn, recurse)
        finally:
            moving.pop()
            torch.__future__.set_overwrite_module_params_on_conversion(False)
        for (owner, name), *others in ties.values():
            for module, other in others:
                module._parameters[other] = owner._parameters[name]
        return result

    torch.nn.Module._apply = _apply


def fuse_norms(torch: Any) -> None:
    """RMSNorm is one kernel forward and one backward on CUDA; for a wrapper torch takes it apart."""
    from pretend_device.counts import COUNTS

    plain = torch.nn.functional.rms_norm

    class FusedNorm(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, eps: float) -> Any:
            ctx.eps = eps
            ctx.save_for_backward(x, weight)
            with COUNTS.one_kernel("fused_rms_norm"):
                return plain(x, weight.shape, weight, eps)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            x, weight = ctx.saved_tensors
            with COUNTS.one_kernel("fused_rms_norm_backward"):
                scale = (x.square().mean(dim=-1, keepdim=True) + ctx.eps).rsqrt()
                unit, gained = x * scale, grad * weight
                x_grad = scale * (gained - unit * (gained * unit).mean(dim=-1, keepdim=True))
                return x_grad, (grad * unit).flatten(0, -2).sum(dim=0), None

    def rms_norm(input: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Any:
        if input.device.type != "cuda" or weight is None or weight.dtype != input.dtype or eps is None:
            return plain(input, shape, weight, eps)
        return FusedNorm.apply(input, weight, eps)

    torch.nn.functional.rms_norm = rms_norm


def report_attention(torch: Any, tensors: Any) -> None:
    """Count which kernel SDPA would take, and let the CPU's compute what a fused one would."""
    from pretend_device.counts import COUNTS, site
    from pretend_device.rules import Query, attention_kernel

    plain = torch.nn.functional.scaled_dot_product_attention

    def attend(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **more: Any,
    ) -> Any:
        if query.device.type != tensors.KIND:
            return plain(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)
        autocast = torch.is_autocast_enabled(tensors.KIND)
        dtype = torch.get_autocast_dtype(tensors.KIND) if autocast else query.dtype
        shapes = (tuple(query.shape), tuple(key.shape), tuple(value.shape))
        call = Query(*shapes, dtype, attn_mask is not None, dropout_p, is_causal, value.stride(-1))
        kernel = attention_kernel(call, tensors.CAPABILITY) if tensors.KIND == "cuda" else "mps"
        COUNTS.attention[f"{site()} {kernel}"] += 1
        q, k, v = (x.to(dtype) for x in (query, key, value))
        if attn_mask is not None or dropout_p:
            return attended(torch, q, k, v, attn_mask, dropout_p, is_causal, scale)
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return fused(q, k, v, 0.0, is_causal, attn_mask=None, scale=scale)[0]

    torch.nn.functional.scaled_dot_product_attention = attend


def attended(
    torch: Any, q: Any, k: Any, v: Any, mask: Any, dropout: float, causal: bool, scale: float | None
) -> Any:
    """Attention with a mask or dropout, step by step: it counts more kernels than a device would launch."""
    logits = q @ k.mT * (scale or q.shape[-1] ** -0.5)
    if causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    return torch.dropout(logits.softmax(dim=-1), dropout, True) @ v
