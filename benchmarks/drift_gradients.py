"""Whether two commits of ours compute the same step in bf16: gradients and updates at the same weights, and float64's.

    git worktree add /tmp/old 2b8908d && git worktree add /tmp/new 83d6c45
    python -m nanokimi.tales --seed 1337 --stories 14000 > tales.txt
    PYTHONPATH=/tmp/new python benchmarks/drift_gradients.py --text tales.txt --train 100 --weights weights.npz
    for tree in old new; do for dtype in bf16 fp64; do
        PYTHONPATH=/tmp/$tree python benchmarks/drift_gradients.py --text tales.txt --weights weights.npz \\
            --dtype $dtype --out $tree-$dtype.npz
    done; done
    python benchmarks/drift_gradients.py --reference old-fp64.npz old-bf16.npz new-bf16.npz new-fp64.npz

benchmarks/drift.py follows whole runs, which rounding alone drives apart. One step at given weights is free of that.
The model and its text are those of drift.py; the batches are those of steps 100 to 103, and the update is the one that
the optimizer makes of the gradient when its state is empty. The result is in docs/corrections.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import drift
import numpy as np
import torch

STEPS = range(100, 104)


def train_weights(state: Any, steps: int, path: Path) -> None:
    """Train, and write the weights."""
    from nanokimi.train.step import train_step

    for _ in range(steps):
        train_step(state)
    weights = {name: tensor.numpy() for name, tensor in state.model.state_dict().items()}
    np.savez(path, **weights)


def gradients_and_updates(state: Any, weights: Path) -> dict[str, np.ndarray]:
    """Of each of the steps, at the weights of the file: the gradient of each parameter, and its change in one step."""
    from nanokimi.train.step import forward_backward, train_step

    start = {name: torch.from_numpy(array) for name, array in np.load(weights).items()}
    found = {}
    for step in STEPS:
        copy_weights(state.model, start)
        state.step = step
        state.optimizer.state.clear()
        state.model.zero_grad(set_to_none=True)
        forward_backward(state)
        for name, parameter in state.model.named_parameters():
            found[f"gradient/{step}/{name}"] = parameter.grad.double().numpy().copy()
        state.model.zero_grad(set_to_none=True)
        train_step(state)
        for name, parameter in state.model.named_parameters():
            found[f"update/{step}/{name}"] = (parameter.detach().double() - start[name].double()).numpy()
    return found


@torch.no_grad()
def copy_weights(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Overwrite all weights, in the model's own type."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(weights[name])


def judge(reference: Path, files: list[Path]) -> None:
    """Print each file's error relative to the reference's length, and its part along the reference in lengths of it.

    Of all gradients, of all updates, and of the gradients of each layer of one name.
    """
    true = np.load(reference)
    layers = sorted({layer_of(name) for name in true.files if name.startswith("gradient")})
    for path in files:
        found = np.load(path)
        for part in ("gradient", "update", *layers):
            names = [name for name in true.files if name.startswith(part) or layer_of(name) == part]
            length = sum(float(np.sum(true[name] ** 2)) for name in names)
            error = sum(float(np.sum((found[name] - true[name]) ** 2)) for name in names)
            along = sum(float(np.sum(found[name] * true[name])) for name in names)
            print(
                f"{path.stem} {part}: relative error {(error / length) ** 0.5:.2g}, along it {along / length:.5f}"
            )


def layer_of(name: str) -> str:
    """The layer of a gradient, without its place in the model, as in `gradient of q_proj`."""
    return f"gradient of {name.split('.')[-2]}" if name.startswith("gradient") else ""


def main() -> None:
    """Make the weights, or the gradients and updates of one commit, or compare files of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--text", type=Path)
    parser.add_argument("--dtype", choices=("bf16", "fp32", "fp64"), default="fp32")
    parser.add_argument("--train", type=int, default=0, help="train for so many steps, and write --weights")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", type=Path, help="write gradients and updates at --weights to this file")
    parser.add_argument("--reference", type=Path, help="judge the files by this one")
    parser.add_argument("files", nargs="*", type=Path)
    chosen = parser.parse_args()
    if chosen.reference is not None:
        return judge(chosen.reference, chosen.files)
    if chosen.text is None or chosen.weights is None or bool(chosen.train) == (chosen.out is not None):
        parser.error("say --text, --weights, and --train or --out; or --reference and files")
    torch.set_num_threads(1)
    chosen.steps, chosen.seed = 200, 1337
    state = drift.state_of(chosen, drift.pairs_of(chosen.text)[: -drift.HELD_OUT])
    if chosen.train:
        return train_weights(state, chosen.train, chosen.weights)
    np.savez(chosen.out, **gradients_and_updates(state, chosen.weights))
    return None


if __name__ == "__main__":
    main()
