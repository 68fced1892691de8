"""Whether commits of ours train the same function: NanoKimi of the old `tales` preset, in float64, fp32 and bf16.

    git worktree add /tmp/old 2b8908d && git worktree add /tmp/new 2394d4c
    for tree in /tmp/old /tmp/new; do
        PYTHONPATH=$tree python benchmarks/drift.py --text tinyshakespeare.txt --dtype fp64 --steps 200
    done

Tokens are pairs of bytes of any text, so that no data has to be prepared and both commits see the same. In float64
rounding is too small to reach the loss within some hundred steps, so losses that differ there show a different
function. bf16 has functions of its own, which cannot be widened; there the losses of several whole runs are compared:

    for seed in 1337 1338 1339 1340 1341 1342; do for tree in /tmp/old /tmp/new; do
        PYTHONPATH=$tree python benchmarks/drift.py --text tales.txt --dtype bf16 --seed $seed --record drift.jsonl
    done; done

benchmarks/drift_gradients.py compares single steps in bf16.

(In float64 the script calls what those two commits have; later ones choose Newton-Schulz's dtype in kernels/muon.py.)
The result is in docs/corrections.md, the rows of the runs in bf16 in docs/results/drift.jsonl.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

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


@torch.no_grad()
def held_out_loss(model: Any, ids: np.ndarray, context: int) -> float:
    """Nats per token over whole windows of the held-out tokens, computed in fp32."""
    from nanokimi.measure.evaluate import token_nats

    windows = (len(ids) - 1) // context
    inputs_NT = torch.from_numpy(ids[: windows * context].astype(np.int64)).view(windows, context)
    targets_NT = torch.from_numpy(ids[1 : windows * context + 1].astype(np.int64)).view(windows, context)
    nats = [token_nats(model, x, y) for x, y in zip(inputs_NT.split(8), targets_NT.split(8), strict=True)]
    return float(torch.cat(nats).double().mean())


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--dtype", choices=("bf16", "fp32", "fp64"), default="fp64")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--record", type=Path, default=None, help="append the run's line to this file")
    return parser.parse_args()


def state_of(chosen: argparse.Namespace, ids: np.ndarray) -> Any:
    """The state before the first step."""
    from nanokimi.config.files import load_config
    from nanokimi.config.rules import resolve
    from nanokimi.train.state import build_state

    preset = subprocess.run(["git", "show", PRESET_OF], capture_output=True, text=True, check=True).stdout
    words = ["--seed", str(chosen.seed), "--model", "nanokimi", "--dataset.path", "tales"]
    words += ["--train.max_steps", str(chosen.steps)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tales.yaml"
        path.write_text(preset)
        config = load_config(str(path), words)
    dtype: Literal["bf16", "fp32"] = "bf16" if chosen.dtype == "bf16" else "fp32"
    config = resolve(config, vocab_size=VOCABULARY, device="cpu", dtype=dtype, threads=1)
    state = build_state(config, SimpleNamespace(train_ids=ids, mixture=None), Path("no-folder"))  # type: ignore[arg-type]
    if chosen.dtype == "fp64":
        in_float64(state)
    return state


def main() -> None:
    """Train, and print the loss of every tenth step with all its digits, and that of the held-out tokens."""
    chosen = arguments()
    import nanokimi
    from nanokimi.train.step import train_step

    torch.set_num_threads(1)
    ids = pairs_of(chosen.text)
    state = state_of(chosen, ids[:-HELD_OUT])
    losses = {}
    for step in range(chosen.steps):
        loss = train_step(state)["loss"]
        if step % 10 == 0 or step == chosen.steps - 1:
            losses[step] = loss
            print(step, repr(loss), flush=True)
    held_out = held_out_loss(state.model.eval(), ids[-HELD_OUT:], state.config.train.context_length)
    print("held out", repr(held_out), flush=True)
    if chosen.record is not None:
        tree = Path(nanokimi.__file__).parent
        done = subprocess.run(
            ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        )
        row = {
            "commit": done.stdout.strip(),
            "text": chosen.text.name,
            "dtype": chosen.dtype,
            "seed": chosen.seed,
        }
        row |= {"steps": chosen.steps, "held_out": held_out, "losses": losses}
        with chosen.record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
