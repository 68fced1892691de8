"""What the page is given: a view as plain lists and strings, which JSON and the script of the page understand.

Large tables are bytes in base64: of each token and expert the gate in 16 bits, of each map of attention the triangle at
and below the diagonal, the square roots of its weights in 8 bits, because most weights are small.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np

from nanokimi.inside.attention import AttentionMap
from nanokimi.inside.favourites import Favourites
from nanokimi.inside.look import LayerExperts, Look, Prediction, Token
from nanokimi.inside.pieces import visible
from nanokimi.inside.view import View

GATE_STEPS, WEIGHT_STEPS = 65535, 255


def payload(view: View) -> dict[str, Any]:
    """A view as JSON has it."""
    look = view.look
    labels: dict[int, str] = {}
    return {
        "name": look.name,
        "context": look.context_length,
        "meanBits": look.mean_bits,
        "written": sum(token.written for token in look.tokens),
        "tokens": [_token(token, labels) for token in look.tokens],
        "next": _prediction(look.next, labels),
        "labels": labels,
        "layers": look.layers,
        "experts": [_experts(layer) for layer in look.experts],
        "maxLogits": None if look.max_logits is None else np.round(look.max_logits, 3).tolist(),
        "tau": look.tau,
        "cache": _cache(look),
        "favourites": _favourites(view.favourites),
        "maps": [_map(one) for one in view.maps],
        "mapsNote": view.maps_note,
        "unknown": list(look.unknown),
    }


def _token(token: Token, labels: dict[int, str]) -> dict[str, Any]:
    piece = token.piece
    found: dict[str, Any] = {"id": token.id, "text": flowing(token), "label": piece.label}
    if piece.parts > 1:
        found["part"] = [piece.part, piece.parts]
    if token.written:
        found["written"] = 1
    if token.surprise is not None and token.expected is not None:
        found |= {
            "bits": round(token.surprise, 4),
            "rank": token.rank,
            "expected": _prediction(token.expected, labels),
        }
    return found


def flowing(token: Token) -> str:
    """A token in running text: later parts of a character are small numbers."""
    if token.piece.part > 1:
        return "".join(chr(0x2080 + int(digit)) for digit in str(token.piece.part))
    return visible(token.piece.text, spaces=False) or token.piece.label


def _prediction(expected: Prediction, labels: dict[int, str]) -> dict[str, Any]:
    for one in expected.alternatives:
        labels[one.id] = one.label
    return {
        "entropy": round(expected.entropy, 4),
        "ids": [one.id for one in expected.alternatives],
        "shares": [float(f"{one.probability:.4g}") for one in expected.alternatives],
    }


def _experts(layer: LayerExperts) -> dict[str, Any]:
    found: dict[str, Any] = {"layer": layer.layer, "experts": layer.experts, "shared": layer.shared}
    if layer.choices is None or layer.load is None:
        return found
    chosen_MK, gates_MK = layer.choices.chosen_MK, layer.choices.gates_MK
    most = float(gates_MK.max()) or 1.0
    gates_ME = np.zeros((len(chosen_MK), layer.experts), dtype="<u2")
    rows, columns = np.nonzero(chosen_MK >= 0)
    steps = np.maximum(np.round(gates_MK[rows, columns] / most * GATE_STEPS), 1)  # 0: not chosen
    gates_ME[rows, chosen_MK[rows, columns]] = steps
    return {**found, "most": most, "gates": _base64(gates_ME), "load": np.round(layer.load, 5).tolist()}


def _cache(look: Look) -> dict[str, Any] | None:
    cache = look.cache
    if cache is None:
        return None
    return {
        "bytes": cache.bytes_per_token,
        "fixed": cache.bytes_fixed,
        "parts": [[part.what, part.numbers] for part in cache.parts],
        "ordinary": cache.ordinary_bytes_per_token,
        "ordinaryParts": [[part.what, part.numbers] for part in cache.ordinary_parts],
    }


def _favourites(found: Favourites | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "tokens": found.tokens,
        "of": found.of,
        "layers": [
            {
                "layer": layer.layer,
                "load": np.round(layer.load, 5).tolist(),
                "experts": [
                    [[one.label, round(one.lift, 2), round(one.taken, 1), one.seen] for one in row]
                    for row in layer.favourites
                ],
            }
            for layer in found.layers
        ],
    }


def _map(one: AttentionMap) -> dict[str, Any]:
    return {"layer": one.layer, "head": one.head, "data": packed(one.weights_TT)}


def packed(weights_TT: np.ndarray) -> str:
    """The rows of a map, each up to its own token, as square roots in 8 bits, in base64."""
    rows, columns = np.tril_indices(len(weights_TT))
    roots = np.sqrt(np.clip(weights_TT[rows, columns], 0.0, 1.0))
    return _base64(np.round(roots * WEIGHT_STEPS).astype(np.uint8))


def packed_bytes(tokens: int) -> int:
    """The length of what `packed` returns for a text of so many tokens."""
    return -(-(tokens * (tokens + 1) // 2) // 3) * 4


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def as_json(content: Any) -> str:
    """JSON that can stand inside a script element: no character of it can end one, or begin a comment."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
