"""Whether two commits of ours train the same function: NanoKimi of the old `tales` preset, in fp32 and in float64.

    git worktree add /tmp/old 2b8908d && git worktree add /tmp/new 2394d4c
    for tree in /tmp/old /tmp/new; do
        PYTHONPATH=$tree python benchmarks/drift.py --text tinyshakespeare.txt --dtype fp64 --steps 200
    done

Tokens are pairs of bytes of any text, so that no data has to be prepared and both commits see the same. In float64
rounding is too small to reach the loss within some hundred steps, so losses that differ there show a different
function. (The script calls what those two commits have; later ones choose Newton-Schulz's dtype in kernels/muon.py.)
The result is in docs/corrections.md.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

VOCABULARY = 2048
HELD_OUT = 40_000  # tokens at the end
PRESET_OF = "2b8908d:nanokimi/presets/tales.yaml"


def pairs_of(text: Path) -> np.ndarray:
    """The text's pairs of bytes as ids, the most frequent first."""
    text_bytes = np.frombuffer(text.read_bytes(), np.uint8).astype(np.int64)
    even = len(text_bytes) // 2 * 2
    _, pair, counts = np.unique(
        text_bytes[:even:2] * 256 + text_bytes[1:even:2], return_inverse=True, return_counts=True
    )
    rank = np.empty(len(counts), np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return np.minimum(rank[pair], VOCABULARY - 1).astype(np.uint16)


def in_float64(state: Any) -> None:
    """Compute everything in the step in float64, also where those commits say float() for fp32."""
    import nanokimi.optim.muon as muon

    log_softmax = torch.Tensor.log_softmax
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    torch.Tensor.log_softmax = lambda x, dim, dtype=None: log_softmax(x, dim)  # type: ignore[method-assign]
    state.model.double()
    muon.fastest_dtype = lambda matrices: torch.float64  # type: ignore[attr-defined]
    for group in state.optimizer.param_groups:
        if group["algorithm"] == "muon":
            group["ns_dtype"] = torch.float64


def main() -> None:
    """Train, and print the loss of every tenth step with all its digits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--dtype", choices=("fp32", "fp64"), default="fp64")
    parser.add_argument("--steps", type=int, default=200)
    chosen = parser.parse_args()
    from nanokimi.config.files import load_config
    from nanokimi.config.rules import resolve
    from nanokimi.train.state import build_state
    from nanokimi.train.step import train_step

    torch.set_num_threads(1)
    preset = subprocess.run(["git", "show", PRESET_OF], capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tales.yaml"
        path.write_text(preset)
        words = [
            "--seed",
            "1337",
            "--model",
            "nanokimi",
            "--train.max_steps",
            str(chosen.steps),
            "--dataset.path",
            "tales",
        ]
        config = load_config(str(path), words)
    config = resolve(config, vocab_size=VOCABULARY, device="cpu", dtype="fp32", threads=1)
    data: Any = SimpleNamespace(train_ids=pairs_of(chosen.text)[:-HELD_OUT])
    state = build_state(config, data, Path("no-folder"))
    if chosen.dtype == "fp64":
        in_float64(state)
    for step in range(chosen.steps):
        loss = train_step(state)["loss"]
        if step % 10 == 0 or step == chosen.steps - 1:
            print(step, repr(loss), flush=True)


if __name__ == "__main__":
    main()
