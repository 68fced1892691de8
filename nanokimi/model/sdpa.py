"""Causal softmax attention by torch's fused kernel, and its largest logits for QK-Clip."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def attend(
    q_BHTX: torch.Tensor,
    k_BHSX: torch.Tensor,
    v_BHSV: torch.Tensor,
    scale: float,
    *,
    dropout: float = 0.0,
    want_max_logits: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """softmax(scale * q k^T) v over the keys at or before each query. The last query is at the last key.

    Returns (B, H, T, V) and, if wanted, each head's largest scaled logit of a visible key (H,).
    """
    max_logits_H = causal_max_logits(q_BHTX, k_BHSX, scale) if want_max_logits else None
    return causal_attention(q_BHTX, k_BHSX, v_BHSV, scale, dropout), max_logits_H


def causal_attention(
    q_BHTX: torch.Tensor, k_BHSX: torch.Tensor, v_BHSV: torch.Tensor, scale: float, dropout: float = 0.0
) -> torch.Tensor:
    """softmax(scale * q k^T) v, (B, H, T, V), by torch's fused kernel.

    Values are padded to the width of the keys: with unequal widths torch falls back to a kernel that materializes the
    whole T x S matrix.
    """
    width, value_dim = q_BHTX.shape[-1], v_BHSV.shape[-1]
    if value_dim < width:
        v_BHSV = F.pad(v_BHSV, (0, width - value_dim))
    T, S = q_BHTX.shape[2], k_BHSX.shape[2]
    # More keys than queries: a prefill that continues a cache. A single query sees every key.
    mask_TS = visible_keys(T, S, q_BHTX.device) if 1 < T < S else None
    out = F.scaled_dot_product_attention(
        q_BHTX, k_BHSX, v_BHSV, attn_mask=mask_TS, is_causal=T == S and T > 1, scale=scale, dropout_p=dropout
    )
    return out[..., :value_dim]


def visible_keys(queries: int, keys: int, device: torch.device) -> torch.Tensor:
    """(T, S) booleans, True where the key is at or before the query. The last query is at the last key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(diagonal=keys - queries)


@torch.no_grad()
def causal_max_logits(
    q_BHTX: torch.Tensor, k_BHSX: torch.Tensor, scale: float, chunk: int = 128
) -> torch.Tensor:
    """Each head's exact largest scaled logit over the batch and all visible keys, in fp32 (H,), for a positive `scale`.

    Fused attention does not return its logits, so they are computed again, `chunk` queries at a time and only with the
    keys that the last of these sees. Scaling after the maximum rounds to the same number.
    """
    queries, keys = q_BHTX.shape[2], k_BHSX.shape[2]
    chunk = min(chunk, queries)
    unseen_CC = torch.full((chunk, chunk), float("-inf"), device=q_BHTX.device).triu_(1)
    max_H = q_BHTX.new_full((q_BHTX.shape[1],), float("-inf"), dtype=torch.float32)
    with torch.autocast(q_BHTX.device.type, enabled=False):
        for start in range(0, queries, chunk):
            stop = min(start + chunk, queries)
            rows, seen = stop - start, keys - queries + stop
            logits_BHTS = q_BHTX[:, :, start:stop].float() @ k_BHSX[:, :, :seen].float().mT
            logits_BHTS[..., seen - rows :] += unseen_CC[:rows, :rows]  # earlier keys are visible to all
            # In two steps: torch is slow at a maximum over axes that are not adjacent.
            max_H = torch.maximum(max_H, logits_BHTS.amax(dim=(2, 3)).amax(dim=0))
    return max_H * scale
