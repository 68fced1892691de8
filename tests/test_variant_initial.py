"""A variant's initial weights are torch's own, or Xavier's, where it says so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from conftest import TINY_VARIANT
from torch import nn

from nanokimi.config import RunConfig, VariantConfig
from nanokimi.config.files import load_config
from nanokimi.config.rules import validate
from nanokimi.errors import UserError
from nanokimi.model.build import build_model

WIDE = replace(
    TINY_VARIANT, hidden_size=96, bias=True, lm_head_bias=True, tie_word_embeddings=False, vocab_size=500
)
SHAPES: dict[str, VariantConfig] = {
    "dense": WIDE,
    "soft experts": replace(WIDE, experts="soft", feed_forward="swiglu", moe_intermediate_size=64),
    "chosen experts": replace(WIDE, experts="topk", feed_forward="relu", moe_intermediate_size=64),
}


def matrices(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every matrix that multiplies, each expert's alone."""
    for name, p in model.named_parameters():
        if p.dim() >= 2 and "embed" not in name:
            yield from ((name, matrix) for matrix in p.detach().reshape(-1, *p.shape[-2:]))


@pytest.mark.parametrize("name", SHAPES)
def test_torch_means_what_torchs_own_layers_begin_with(name: str) -> None:
    """A fresh nn.Linear and nn.Embedding of the same sizes spread their numbers alike."""
    model = build_model(replace(SHAPES[name], initialization="torch"), 0)
    for key, matrix in matrices(model):
        fresh = nn.Linear(matrix.shape[1], matrix.shape[0])
        assert float(matrix.std()) == pytest.approx(float(fresh.weight.std()), rel=0.15), key
        assert float(matrix.abs().max()) <= matrix.shape[1] ** -0.5, key
    for key in ("model.embed_tokens.weight", "model.embed_positions.weight"):
        assert float(model.get_parameter(key).std()) == pytest.approx(1.0, rel=0.05)
    bias = model.get_parameter("lm_head.bias")
    assert float(bias.std()) == pytest.approx(float(nn.Linear(96, 500).bias.std()), rel=0.15)
    assert torch.equal(model.get_parameter("model.norm.weight"), torch.ones(96))
    assert torch.equal(model.get_parameter("model.norm.bias"), torch.zeros(96))


@pytest.mark.parametrize("name", SHAPES)
def test_xavier_means_glorots_formula_for_every_matrix(name: str) -> None:
    model = build_model(replace(SHAPES[name], initialization="xavier"), 0)
    tables = [(key, p.detach()) for key, p in model.named_parameters() if "embed" in key]
    for key, matrix in [*matrices(model), *tables]:
        expected = nn.init.xavier_uniform_(torch.empty_like(matrix))
        assert float(matrix.std()) == pytest.approx(float(expected.std()), rel=0.15), key
        assert float(matrix.abs().max()) <= (6 / sum(matrix.shape)) ** 0.5, key


def test_a_tied_head_begins_as_the_embedding() -> None:
    model = build_model(replace(WIDE, initialization="torch", tie_word_embeddings=True), 0)
    assert float(model.get_parameter("model.embed_tokens.weight").std()) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("initialization", ["torch", "xavier"])
def test_a_spread_that_nothing_reads_is_refused(initialization: str) -> None:
    smoke = load_config("smoke")
    model = VariantConfig(initialization=initialization, initializer_range=0.1)  # type: ignore[arg-type]
    config: RunConfig = replace(smoke, variant=replace(smoke.variant, model=model))
    with pytest.raises(UserError, match=r"initializer_range has no effect with .*initialization"):
        validate(config)
