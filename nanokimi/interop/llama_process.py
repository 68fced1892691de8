"""Run a GGUF file in llama.cpp (llama-cpp-python), in a process of its own: what is wrong with a file can abort it.

`python -m nanokimi.interop.llama_process REQUEST.json RESULT.npz`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

FLOAT32 = 0
"""llama.cpp's number for fp32, which keys and values are then cached in."""


def run_llama(request: dict[str, Any]) -> dict[str, np.ndarray]:
    """What llama.cpp makes of a file.

    Args:
        request: "path", "context" (tokens), "windows" (B lists of T ids), "prompts" (P lists of ids), "count" (tokens
            to write after each prompt) and "lines" (texts).

    Returns:
        "logits" (B, T, W), "written" (P, count) and "written_logits" (P, count, W) that chose them, "ids" of all lines
        with "lengths" of each, "bytes" of the pieces of all lines with "sizes" of each.
    """
    import llama_cpp

    context = max(request["context"], 8)
    llama = llama_cpp.Llama(
        model_path=request["path"],
        n_ctx=context,
        n_batch=context,
        n_ubatch=context,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        flash_attn=False,
        type_k=FLOAT32,
        type_v=FLOAT32,
        verbose=False,
    )
    logits = []
    for window in request["windows"]:
        llama.reset()
        llama.eval(window)
        logits.append(np.array(llama.scores[: len(window)], dtype=np.float32))
    written = [greedy(llama, prompt, request["count"]) for prompt in request["prompts"]]
    ids = [llama.tokenize(line.encode(), add_bos=True, special=False) for line in request["lines"]]
    texts = [b"".join(piece(llama, token) for token in line) for line in ids]
    return {
        "logits": np.array(logits),
        "written": np.array([ids for ids, _ in written], dtype=np.int64),
        "written_logits": np.array([logits for _, logits in written]),
        "ids": np.array([token for line in ids for token in line], dtype=np.int64),
        "lengths": np.array([len(line) for line in ids], dtype=np.int64),
        "bytes": np.frombuffer(b"".join(texts), dtype=np.uint8),
        "sizes": np.array([len(text) for text in texts], dtype=np.int64),
    }


def greedy(llama: Any, prompt: list[int], count: int) -> tuple[list[int], np.ndarray]:
    """The likeliest tokens after a prompt, one at a time, and the logits (count, W) that chose them."""
    llama.reset()
    llama.eval(prompt)
    written: list[int] = []
    while len(written) < count:
        written.append(int(np.argmax(llama.scores[llama.n_tokens - 1])))
        if len(written) < count:
            llama.eval(written[-1:])
    return written, np.array(llama.scores[len(prompt) - 1 : len(prompt) - 1 + count], dtype=np.float32)


def piece(llama: Any, token: int) -> bytes:
    """The bytes that a token stands for."""
    import ctypes

    import llama_cpp

    buffer = ctypes.create_string_buffer(1024)
    vocab = llama_cpp.llama_model_get_vocab(llama.model)
    size = llama_cpp.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, False)
    return buffer.raw[: max(size, 0)]


def main() -> None:
    """Read the request, and write the result."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    np.savez(sys.argv[2], **run_llama(request))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
