"""AdamW takes torch's own steps, and training leaves torch's compiler alone until it is asked for."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY_ARMS, make_text
from torch import nn

from nanokimi.optim.adamw import AdamW

OPTIONS = dict(lr=3e-3, betas=(0.8, 0.99), eps=1e-9)
SETTINGS = (
    "train: {context_length: 16, batch_size: 4, max_steps: 2, eval_batch_size: 8, device: cpu, threads: 1}\n"
)


def made(kind: type[torch.optim.AdamW], fused: bool) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}]
    return model, kind(groups, fused=fused, **OPTIONS)  # type: ignore[arg-type]


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for number in range(4):
        optimizer.zero_grad()
        model(torch.randn(6, 7, generator=generator)).square().mean().backward()
        if number == 2:
            next(model.parameters()).grad = None  # a parameter that has none is left alone
        optimizer.step()


@pytest.mark.parametrize("fused", [True, False])
def test_steps_are_torchs_own_to_the_bit(fused: bool) -> None:
    """Also after the state of torch's optimizer was loaded, as from a checkpoint of before."""
    (ours, optimizer), (theirs, reference) = made(AdamW, fused), made(torch.optim.AdamW, fused)
    take_steps(ours, optimizer, 1)
    take_steps(theirs, reference, 1)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)
    again, resumed = made(AdamW, fused)
    again.load_state_dict(theirs.state_dict())
    resumed.load_state_dict(copy.deepcopy(reference.state_dict()))  # it would share the tensors
    take_steps(again, resumed, 2)
    take_steps(theirs, reference, 2)
    for p, q in zip(again.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_closure_is_called_and_its_loss_returned() -> None:
    model, optimizer = made(AdamW, True)

    def closure() -> torch.Tensor:
        loss: torch.Tensor = model(torch.ones(1, 7)).sum()
        loss.backward()
        return loss.detach()

    before = [p.clone() for p in model.parameters()]
    assert float(optimizer.step(closure)) != 0  # type: ignore[arg-type]
    assert not all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_training_does_not_import_the_compiler(tmp_path: Path) -> None:
    """It costs a process seconds and 70 MB, and every arm of a comparison is a process."""
    (tmp_path / "tiny.yaml").write_text(SETTINGS + TINY_ARMS)
    (tmp_path / "text.txt").write_text(make_text())
    program = (
        "import sys; from nanokimi import cli; words = sys.argv[1:]; "
        "names = ('nanokimi', 'nanogpt'); "
        "status = max(cli.main([*words, '--model', name, '--out', name]) for name in names); "
        "sys.exit(status or int('torch._dynamo' in sys.modules))"
    )
    words = ["train", "--config", "tiny.yaml", "--data", "text.txt"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
