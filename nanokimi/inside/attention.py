"""Where a head looks: the weights of its softmax, from the calls that the model itself makes.

While a model reads, torch hands each call of its attention function to a TorchFunctionMode, with the queries, keys and
mask that the model made; the weights follow from them. An attention that calls a softmax of its own shows the weights
themselves. So this works for every model, also for a user's, without a second copy of its code. Where a layer makes no
such call, or several, its map is None.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from nanokimi.inside.subject import Subject, blocks_of, reading, readings, require_layer
from nanokimi.model.variants.latent import LatentAttention

SOFTMAXES = (torch.Tensor.softmax, torch.softmax, F.softmax)


@dataclass(frozen=True)
class AttentionMap:
    """The weights of one head over a text."""

    layer: int
    head: int
    heads: int
    """How many the layer has."""
    weights_TT: np.ndarray
    """Row t: how much token t takes from each token up to itself. A row sums to 1."""


@dataclass(frozen=True)
class Call:
    """One call of an attention function."""

    q_BHTX: torch.Tensor
    k_BHSX: torch.Tensor
    v_BHSV: torch.Tensor
    scale: float
    mask_TS: torch.Tensor | None
    """What is added to the logits."""

    @property
    def heads(self) -> int:
        """How many heads it has."""
        return self.q_BHTX.shape[1]

    def weights(self, head: int) -> torch.Tensor:
        """The softmax of one head of the first sequence, (T, S), in float64 on the CPU."""
        keys = self.k_BHSX.shape[1]
        q_TX, k_SX = self.q_BHTX[0, head], self.k_BHSX[0, head * keys // self.heads]
        logits_TS = q_TX.cpu().double() @ k_SX.cpu().double().mT * self.scale
        if self.mask_TS is not None:
            mask = self.mask_TS
            while mask.dim() > 2:
                mask = mask[0] if mask.dim() == 4 or len(mask) == 1 else mask[head]
            logits_TS = logits_TS + mask.cpu().double()
        return logits_TS.softmax(dim=-1)


@dataclass(frozen=True)
class Softmax:
    """The result of a softmax that an attention called itself."""

    weights_BHTS: torch.Tensor

    @property
    def heads(self) -> int:
        """How many heads it has."""
        return self.weights_BHTS.shape[1]

    def weights(self, head: int) -> torch.Tensor:
        """Those of one head of the first sequence, (T, S), in float64 on the CPU."""
        return self.weights_BHTS[0, head].float().cpu().double()


@dataclass
class AttentionCalls(TorchFunctionMode):
    """The attention calls of one forward pass of `tokens` tokens, by layer."""

    tokens: int
    wanted: int | None = None
    """Keep only this layer's; None: all."""
    inside: int | None = None
    """The layer whose attention runs; None outside, or if the layers are unknown."""
    by_layer: bool = True
    """Whether the model's layers are known; otherwise each call is a layer."""
    calls: dict[int, list[Call]] = field(default_factory=dict)
    softmaxes: dict[int, list[Softmax]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, and keep what it shows."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.by_layer and self.inside is None:
            return result
        if func is F.scaled_dot_product_attention:
            self._keep(self.calls, call_of(*args, **kwargs))
        elif func in SOFTMAXES and self._is_map(result, args, kwargs):
            self._keep(self.softmaxes, Softmax(result))
        return result

    def _is_map(self, result: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a softmax gives each token weights over all tokens."""
        axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
        return axis in (-1, 3) and result.dim() == 4 and result.shape[2:] == (self.tokens, self.tokens)

    def _keep(self, kept: dict[int, list[Any]], one: Any) -> None:
        layer = self.inside if self.inside is not None else len(kept)
        if self.by_layer and self.wanted is not None and layer != self.wanted:
            return
        kept.setdefault(layer, []).append(one)

    @property
    def count(self) -> int:
        """How many calls there were, of the kind that there were most of."""
        return max(len(self.calls), len(self.softmaxes))

    def found(self, layer: int) -> Call | Softmax | None:
        """What a layer's attention did; None if it shows no call, or several."""
        for kept in (self.calls, self.softmaxes):
            if layer in kept:
                return kept[layer][0] if len(kept[layer]) == 1 else None
        return None


def call_of(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Call:
    """The arguments of F.scaled_dot_product_attention as a call."""
    T, S = query.shape[-2], key.shape[-2]
    mask = attn_mask
    if is_causal:
        mask = torch.ones(T, S, dtype=torch.bool, device=query.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))
    return Call(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale, mask)


@contextmanager
def watched_attention(subject: Subject, tokens: int, wanted: int | None = None) -> Iterator[AttentionCalls]:
    """While the block runs, a forward pass shows its attention calls. LatentAttention has no weights over tokens."""
    blocks = blocks_of(subject.model)
    calls = AttentionCalls(tokens, wanted, by_layer=bool(blocks))
    hooks = []

    def enter(layer: int | None) -> Any:
        def hook(*_: Any) -> None:
            calls.inside = layer

        return hook

    for layer, block in enumerate(blocks):
        if isinstance(block.attention, LatentAttention):
            continue
        hooks.append(block.attention.register_forward_pre_hook(enter(layer)))
        hooks.append(block.attention.register_forward_hook(enter(None)))
    try:
        with calls:
            yield calls
    finally:
        for hook in hooks:
            hook.remove()


def layers_shown(subject: Subject, ids: Sequence[int]) -> int:
    """How many layers of attention can be asked for: the model's, or, if they are unknown, the calls that it makes."""
    blocks = blocks_of(subject.model)
    if blocks:
        return len(blocks)
    with reading(subject.model) as device:
        ids_BT = torch.tensor([list(ids[: subject.context_length])], device=device)
        with watched_attention(subject, ids_BT.shape[1]) as calls:
            subject.model(ids_BT)
    return calls.count


def attention_maps(
    subject: Subject,
    ids: Sequence[int],
    layer: int,
    heads: Sequence[int] | None = None,
    *,
    most: int | None = None,
) -> list[AttentionMap] | None:
    """The maps of a layer's heads (None: all, or the first `most`) over a text, layers and heads counted from 0.

    None if the layer does not show them. Raises UserError if there is no such layer or head.
    """
    blocks = blocks_of(subject.model)
    if blocks:
        require_layer(layer, len(blocks))
    rows: dict[int, np.ndarray] = {}
    total = 0
    with reading(subject.model) as device:
        for one in readings(len(ids), subject.context_length):
            ids_BT = torch.tensor([list(ids[one.start : one.stop])], device=device)
            with watched_attention(subject, one.stop - one.start, layer) as calls:
                subject.model(ids_BT)
            if not blocks:
                require_layer(layer, calls.count)
            found = calls.found(layer)
            if found is None:
                return None
            total = found.heads
            for head in range(total)[:most] if heads is None else heads:
                require_layer(head, total, "head")
                weights = found.weights(head)[one.first - one.start :].numpy()
                whole_TT = rows.setdefault(head, np.zeros((len(ids), len(ids)), dtype=np.float32))
                whole_TT[one.first : one.stop, one.start : one.stop] = weights
    return [AttentionMap(layer, head, total, weights) for head, weights in rows.items()]


def attention_map(subject: Subject, ids: Sequence[int], layer: int, head: int) -> AttentionMap | None:
    """The map of one head; see `attention_maps`."""
    found = attention_maps(subject, ids, layer, [head])
    return None if found is None else found[0]
