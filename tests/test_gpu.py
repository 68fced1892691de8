"""What only a GPU can show. Run with `make test-gpu`; skipped, with the reason, where there is no CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY_GPT, TINY_KIMI

from nanokimi.config import GPTConfig, KimiConfig, RunConfig
from nanokimi.measure.audit import audit
from nanokimi.model.build import build_model
from nanokimi.optim.muon import newton_schulz
from nanokimi.train.run import train_alone
from nanokimi.train.run_folder import open_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]
MODELS: list[KimiConfig | GPTConfig] = [TINY_KIMI, TINY_GPT]


@pytest.mark.parametrize("config", MODELS, ids=["nanokimi", "nanogpt"])
def test_cuda_computes_what_the_cpu_computes(config: KimiConfig | GPTConfig) -> None:
    model = build_model(config, seed=0)
    ids = torch.randint(61, (3, 32), generator=torch.Generator().manual_seed(0))
    on_cpu = model(ids, want_max_logits=True)
    on_gpu = model.cuda()(ids.cuda(), want_max_logits=True)
    torch.testing.assert_close(on_gpu.logits_BTW.cpu(), on_cpu.logits_BTW, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(on_gpu.max_logits_LH.cpu(), on_cpu.max_logits_LH, rtol=1e-3, atol=1e-4)


def test_newton_schulz_in_bf16_has_the_spectrum_of_fp32() -> None:
    matrices = torch.randn(4, 64, 96, device="cuda")
    values = torch.linalg.svdvals(newton_schulz(matrices).float())
    assert 0.4 < values.min() and values.max() < 1.3


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["nanokimi", "nanogpt"])
def test_a_run_on_the_gpu_learns_and_is_causal(
    name: str, dtype: str, tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = replace(tiny_config(device="cuda", dtype=dtype, max_steps=40, eval_every=40), model=name)  # type: ignore[arg-type]
    result = train_alone(config, tmp_path / "run")
    assert result["val_loss"] < 2.9 and result["audit"]["causal"]
    assert result["peak_memory_bytes"] > 0


def test_a_run_resumes_on_the_gpu(tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """AdamW's step counts come back from the checkpoint on the CPU and must follow their parameters."""
    from nanokimi.data.store import open_prepared
    from nanokimi.train.checkpoint import load_newest_checkpoint
    from nanokimi.train.loop import train
    from nanokimi.train.run_folder import find_data
    from nanokimi.train.state import build_state

    config = tiny_config(device="cuda", max_steps=6, save_every=3)
    train_alone(config, tmp_path / "run")
    whole = open_run(tmp_path / "run", device="cpu")
    (tmp_path / "run" / "model.safetensors").unlink()
    newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    newest.rename(tmp_path / "away")
    state = build_state(whole.config, open_prepared(find_data(tmp_path / "run")), tmp_path / "run")
    assert load_newest_checkpoint(state) and state.step == 3
    list(train(state))
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(state.model.state_dict()[name].cpu(), value, rtol=1e-3, atol=1e-4)


def test_the_audit_catches_a_leak_on_the_gpu() -> None:
    class Averaging(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(16, 16)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.embedding(ids)
            return x + x.mean(dim=1, keepdim=True)

    assert not audit(Averaging().cuda(), vocab_size=16, context=8).causal
