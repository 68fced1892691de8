"""Another processor's rounding, on this one: `ROUNDING=1 pytest tests/...` runs every test under it.

Sums are taken in another order and functions end in another last bit wherever a processor, a library or a number of
threads may differ. What a test claims must survive that. Here the operands of each matrix product and each sum move
by up to half a unit in the last place, which is what another order does to the result (cancellation included), and
results of transcendental functions by up to one. What moves where follows from the bits, the operation, the shapes
and the seed, so the same call gives the same bits, and a call of another shape may not: as with real libraries.

`ROUNDING=1,4` moves four times as far: what passes then has a margin. bf16 is treated more harshly than by any
processor, which reads its operands exactly. Products of integers, additions and multiplications are exact or rounded
alike everywhere, and stay.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

SUMS = (
    "mm addmm bmm baddbmm _grouped_mm linear matmul dot mv addmv sum mean norm linalg_vector_norm var var_mean std "
    "native_layer_norm native_layer_norm_backward _fused_rms_norm _fused_rms_norm_backward rms_norm cumsum "
    "_softmax _softmax_backward_data _log_softmax _log_softmax_backward_data logsumexp nll_loss_backward "
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention_for_cpu_backward"
).split()
FUNCTIONS = (
    "exp log sigmoid tanh erf sin cos rsqrt pow silu gelu softplus silu_backward gelu_backward polar log1p expm1"
).split()
BITS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16}
MASK = 0x7FFFFFFF


class OtherRounding(TorchDispatchMode):
    """Moves operands and results within their rounding."""

    def __init__(self, seed: int, times: float = 1.0) -> None:
        super().__init__()
        self.seed, self.times = seed, times

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in SUMS:
            places = [tuple(a.shape) for a in args if isinstance(a, torch.Tensor)]
            salt = zlib.crc32(repr((self.seed, name, places)).encode()) & MASK
            args = tree_map(lambda x: moved(x, salt, 0.5 * self.times), args)
        out = func(*args, **(kwargs or {}))
        if name in FUNCTIONS:
            salt = zlib.crc32(repr((self.seed, name)).encode()) & MASK
            out = tree_map(lambda x: moved(x, salt, self.times), out)
        return out


def moved(x: Any, salt: int, units: float) -> Any:
    """x with each number moved by up to so many units in the last place; zeros and exact small integers stay."""
    if not isinstance(x, torch.Tensor) or x.dtype not in BITS or x.device.type != "cpu" or x.numel() < 2:
        return x
    with torch.no_grad():
        bits = x.contiguous().view(BITS[x.dtype]).long()
        mixed = (bits ^ salt) * 0x9E3779B1
        mixed = ((mixed ^ (mixed >> 15)) * 0x85EBCA6B) & MASK
        share = mixed.double() / MASK * 2 - 1
        wide = x.double()
        eps = torch.finfo(x.dtype).eps
        # float64 itself has no wider type: the factor rounds there, to zero or one unit
        new = (wide * (1 + share * units * eps)).to(x.dtype)
        return torch.where((wide == wide.round()) | ~wide.isfinite(), x, new)
