"""The audit: does a language model read the answer? Works on any module that maps token ids to logits.

A causal model's logits at a position may depend on that position and earlier ones of the same row, on nothing else.
So: change the tokens after a cut, or other rows of the batch, and look whether any logit before moves. This is done
for every cut, in evaluation and in training mode (dropout seeded alike), on a copy of the module.

Changing the inputs can change the order of rounding (experts get other tokens beside them), so a movement counts only
above a small share of the logits' size. A suspicion is confirmed in float64 where the module allows it: rounding
vanishes there (also the kind that tips a router's near-tie), a leak stays.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

Call = Callable[[nn.Module, torch.Tensor], object]

TOLERANCE_FP32 = 2e-5  # share of the largest logit
TOLERANCE_FP64 = 1e-10


@dataclass(frozen=True)
class AuditResult:
    """Whether a module is causal, and the evidence."""

    causal: bool
    max_leak: float  # largest movement of a logit that must not move (absolute, fp32)
    where: str | None  # the worst leak in words, None if causal
    cuts: int  # positions at which the future was changed
    context_length: int
    tolerance: float  # movements up to here are rounding


@dataclass(frozen=True)
class _Leak:
    size: float
    where: str


def audit(
    module: nn.Module,
    *,
    vocab_size: int,
    context: int,
    batch_size: int = 3,
    max_cuts: int = 256,
    seed: int = 0,
    call: Call | None = None,
) -> AuditResult:
    """Test whether `module` is causal and treats rows of a batch independently.

    Args:
        module: maps ids (B, T) to logits (B, T, W): a tensor, a tuple that starts with it, or an object or dictionary
            with `logits` (Hugging Face) or `logits_BTW` (ours). A `forward` with a `targets` parameter (nanoGPT's,
            which otherwise computes only the last position) is given the ids as targets.
        vocab_size: ids are drawn below it.
        context: length of the sequences (T).
        batch_size: rows, at least 2.
        max_cuts: when T - 1 is more, that many cuts are spread evenly (the number used is in the result).
        seed: of the test's tokens and of dropout.
        call: how to call the module, if not as above; returns any of the forms above.

    Returns:
        AuditResult. The module, its mode and the global random state are left as they were.

    Raises:
        ValueError: the logits do not have the shape (B, T, W), or an argument is too small.
    """
    if batch_size < 2 or context < 2 or vocab_size < 2:
        raise ValueError("the audit needs batch_size, context and vocab_size of at least 2")
    call = call or _default_call(module)
    cuts = sorted({round(1 + i * (context - 2) / max(max_cuts - 1, 1)) for i in range(max_cuts)})
    leak, scale = _worst_leak(module, torch.float32, call, vocab_size, context, batch_size, cuts, seed)
    tolerance = TOLERANCE_FP32 * scale
    causal = leak.size <= tolerance
    if not causal and _runs_in_float64(module, call, vocab_size, context):
        confirmed, scale64 = _worst_leak(
            module, torch.float64, call, vocab_size, context, batch_size, cuts, seed
        )
        causal = confirmed.size <= TOLERANCE_FP64 * scale64
    return AuditResult(causal, leak.size, None if causal else leak.where, len(cuts), context, tolerance)


def _worst_leak(
    module: nn.Module,
    dtype: torch.dtype,
    call: Call,
    vocab_size: int,
    context: int,
    batch_size: int,
    cuts: list[int],
    seed: int,
) -> tuple[_Leak, float]:
    """The largest forbidden movement, and the size of the largest logit."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(vocab_size, (batch_size, context), generator=generator)
    # an offset of 1 to W - 1 changes every token for sure
    changed_BT = (ids_BT + torch.randint(1, vocab_size, ids_BT.shape, generator=generator)) % vocab_size
    worst, scale = _Leak(0.0, "nowhere"), 0.0

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        for training in (False, True):
            mode = "training" if training else "evaluation"

            copied = copy.deepcopy(module).to(dtype).train(training)
            buffers = [buffer.clone() for buffer in copied.buffers()]

            def logits(
                ids: torch.Tensor, copied: nn.Module = copied, kept: list[torch.Tensor] = buffers
            ) -> torch.Tensor:
                torch.manual_seed(seed)
                found = _find_logits(call(copied, ids.to(device)), ids)
                for buffer, value in zip(copied.buffers(), kept, strict=True):
                    buffer.copy_(value)  # running statistics of one call must not reach the next
                return found

            reference_BTW = logits(ids_BT)
            if reference_BTW.isnan().any():
                raise ValueError("the module's logits are NaN: there is nothing to audit")
            scale = max(scale, float(reference_BTW.nan_to_num(posinf=0, neginf=0).abs().max()))
            for cut in cuts:
                future_BT = torch.cat((ids_BT[:, :cut], changed_BT[:, cut:]), dim=1)
                moved_BT = _movement(logits(future_BT), reference_BTW)[:, :cut]
                row, position = divmod(int(moved_BT.argmax()), cut)
                where = f"position {position} of row {row} sees tokens from position {cut} on ({mode} mode)"
                worst = max(worst, _Leak(float(moved_BT.max()), where), key=lambda leak: leak.size)
            for row in range(batch_size):
                others_BT = changed_BT.clone()
                others_BT[row] = ids_BT[row]
                moved_T = _movement(logits(others_BT), reference_BTW)[row]
                where = f"position {int(moved_T.argmax())} of row {row} sees other rows of the batch ({mode} mode)"
                worst = max(worst, _Leak(float(moved_T.max()), where), key=lambda leak: leak.size)
    return worst, scale


def _movement(logits_BTW: torch.Tensor, reference_BTW: torch.Tensor) -> torch.Tensor:
    """Largest change over the vocabulary (B, T); a logit that becomes NaN has moved infinitely."""
    change_BTW = (logits_BTW - reference_BTW).abs().nan_to_num(nan=float("inf"))
    return change_BTW.masked_fill(logits_BTW == reference_BTW, 0.0).amax(dim=-1)


def _default_call(module: nn.Module) -> Call:
    if "targets" in inspect.signature(module.forward).parameters:
        return lambda m, ids_BT: m(ids_BT, targets=ids_BT)
    return lambda m, ids_BT: m(ids_BT)


def _find_logits(output: object, ids_BT: torch.Tensor) -> torch.Tensor:
    if isinstance(output, dict):
        output = output.get("logits")
    for name in ("logits_BTW", "logits"):
        output = getattr(output, name, output)
    if isinstance(output, tuple | list):
        output = output[0]
    if not isinstance(output, torch.Tensor) or output.dim() != 3 or output.shape[:2] != ids_BT.shape:
        found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(
            f"the module returned {found} for ids of shape {tuple(ids_BT.shape)}: expected (B, T, W)"
        )
    return output


def _runs_in_float64(module: nn.Module, call: Call, vocab_size: int, context: int) -> bool:
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            call(
                copy.deepcopy(module).double().eval(),
                torch.zeros(2, context, dtype=torch.long, device=device),
            )
    except (RuntimeError, TypeError, NotImplementedError):
        return False  # a kernel without float64, or a device without it (MPS)
    return True
