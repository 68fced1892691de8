"""What a training step and a decoded token cost: reads of the device and launches, against stated numbers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from conftest import TINY_GPT, TINY_KIMI

from nanokimi.generation.engine import generate
from nanokimi.kernels import decode
from nanokimi.kernels.accelerate import accelerate_
from nanokimi.model.build import build_model
from pretend_device.counts import COUNTS
from pretend_device.states import (
    COPIES_OF_A_STEP,
    FENCES_OF_A_STEP,
    READS_OF_A_STEP,
    cost_of_a_step,
    k2_27m,
    started,
    tiny_config,
)
from pretend_device.tensors import CAPABILITY, DEVICE, KIND

SIZES = {"tiny": tiny_config, "k2-27m": partial(k2_27m, layers=3)}
LAUNCHES: dict[str, tuple[int, int, int]] = {  # at most; compute capability 8, 9, and MPS
    "tiny nanokimi": (640, 594, 787),
    "tiny nanogpt": (178, 178, 289),
    "k2-27m nanokimi": (1029, 937, 1299),
    "k2-27m nanogpt": (159, 159, 308),
}


def check_the_cost_of_a_step(folder: Path) -> dict[str, Any]:
    """Reads and launches, in the dtype that the device chooses, and attention by a fused kernel."""
    found: dict[str, Any] = {}
    for name, most in LAUNCHES.items():
        size, model = name.split()
        counts = found[name] = cost_of_a_step(started(SIZES[size](folder), folder / name, model))
        limit = most[2 if KIND == "mps" else CAPABILITY[0] - 8]
        assert counts["fences"] == FENCES_OF_A_STEP and counts["copies"] == COPIES_OF_A_STEP, (name, counts)
        assert counts["reads"] == READS_OF_A_STEP, (name, COUNTS.reads)
        assert counts["launches"] <= limit, (name, counts, limit, COUNTS.launched_at.most_common(20))
        kernels = {line.split()[-1] for line in COUNTS.attention}
        fused = {"mps"} if KIND == "mps" else {"cudnn"} if CAPABILITY[0] == 9 else {"flash"}
        assert kernels == fused or size == "tiny", COUNTS.attention  # the tiny NanoGPT has dropout
    return found


def check_a_step_in_other_dtypes(folder: Path) -> None:
    """fp32, and fp16, whose scaler looks once more for infinities."""
    for dtype in ("fp32", "fp16"):
        for model in ("nanokimi", "nanogpt"):
            counts = cost_of_a_step(
                started(tiny_config(folder, dtype=dtype), folder / f"{model}-{dtype}", model)
            )
            assert counts["reads"] == READS_OF_A_STEP + (dtype == "fp16"), (dtype, model, dict(COUNTS.reads))


def check_decoding(_: Path) -> None:
    """The tokens of the CPU. A small model decodes on a copy there; a larger one reads the device once for a token."""
    for config in (TINY_KIMI, TINY_GPT):
        model: Any = build_model(config, seed=0)
        expected = list(generate(model, [1, 2, 3], 8))
        model.to(DEVICE)
        accelerate_(model)
        of_copy = []
        for tokens in (1, 8):
            COUNTS.reset()
            assert list(generate(model, [1, 2, 3], tokens)) == expected[:tokens]
            of_copy.append(COUNTS.totals())
        assert of_copy[0] == of_copy[1], of_copy  # the copy's, none of the tokens'
        assert 0 < of_copy[0]["reads"] <= len(model.state_dict()) + 2, of_copy
        assert model.training and next(model.parameters()).device == DEVICE
        decode.LARGEST_ON_CPU, most = 0, decode.LARGEST_ON_CPU
        COUNTS.reset()
        assert list(generate(model, [1, 2, 3], 8)) == expected
        decode.LARGEST_ON_CPU = most
        assert sum(COUNTS.reads.values()) == 8, COUNTS.reads
