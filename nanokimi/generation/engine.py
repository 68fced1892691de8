"""Generation: read the prompt at once (prefill), then one token at a time with the cache (decode)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch

from nanokimi.generation.sampling import sample_token
from nanokimi.kernels.decode import decode_step, decoding_model
from nanokimi.model.build import LanguageModel
from nanokimi.model.cache import Cache


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    *,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    use_cache: bool = True,
    context_length: int | None = None,
    stop_id: int | None = None,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` ids that continue the prompt, until `stop_id` (end-of-text), which is not yielded.

    The model sees at most `context_length` tokens (None: as many as it has positions for). When the window is full, its
    newer half is kept and read again. Positions in the window have then changed, so the cache would not be valid. The
    uncached path moves the window in the same way, so both give the same tokens.

    Raises:
        ValueError: the prompt is empty, or `context_length` is more than the model has positions for.
    """
    if len(prompt_ids) == 0:
        raise ValueError("the prompt is empty: there is nothing to continue")
    positions = model.config.max_position_embeddings
    assert positions is not None, "resolve() fills this in"
    limit = positions if context_length is None else context_length
    if not 1 <= limit <= positions:
        raise ValueError(f"context_length is {limit}, the model has positions for 1 to {positions}")
    use_cache = use_cache and getattr(model, "can_cache", True)
    if use_cache:
        model = cast(LanguageModel, decoding_model(model))
    layers = model.config.num_hidden_layers
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    was_training = model.training
    model.eval()
    try:
        window, cache = list(prompt_ids)[-limit:], None
        decode = decode_step(model)
        for _ in range(max_new_tokens):
            if len(window) > limit:
                window, cache = window[-max(limit // 2, 1) :], None
            if cache is not None:
                logits_W = decode(window[-1], cache)
            else:
                cache = Cache(layers, limit) if use_cache else None
                logits_W = model(torch.tensor([window], device=device), cache).logits_BTW[0, -1]
            token = sample_token(logits_W, generator, temperature=temperature, top_k=top_k, top_p=top_p)
            if token == stop_id:
                return
            window.append(token)
            yield token
    finally:
        model.train(was_training)
