"""NanoKimi: equal to Hugging Face's DeepSeek-V3, rightly initialised, able to learn, free of hidden state."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_KIMI
from hf_parity import InFloat64, Tensors, deepseek_gradients, deepseek_reference, same_function, wide_copy

from nanokimi.config import KimiConfig, OptimConfig, YarnConfig
from nanokimi.model.build import build_model
from nanokimi.model.kimi import NanoKimi
from nanokimi.model.output import Output
from nanokimi.optim.build import build_optimizer


def random_config(seed: int) -> tuple[KimiConfig, int, int]:
    """A configuration, a batch size and a length. The first seeds make sure of the corner cases."""
    rng = random.Random(seed)
    experts = rng.choice([2, 3, 4, 6, 8])
    chosen = rng.randint(1, min(experts, 3))
    nope, rope = rng.choice([4, 8, 12, 16]), rng.choice([2, 4, 6, 8])
    length = rng.randint(5, 24)
    yarn = YarnConfig(
        factor=rng.choice([2.0, 4.0, 32.0]),
        original_max_position_embeddings=rng.choice([8, 16, 64]),
        beta_fast=rng.choice([1.0, 4.0, 32.0]),
        beta_slow=1.0,
        mscale=rng.choice([1.0, 0.707]),
        mscale_all_dim=rng.choice([1.0, 0.707]),
    )
    layers = rng.randint(1, 3)
    config = KimiConfig(
        vocab_size=rng.randint(20, 70),
        hidden_size=rng.choice([16, 20, 24, 32]),
        num_hidden_layers=layers,
        num_attention_heads=rng.choice([1, 2, 3, 4]),
        q_lora_rank=rng.choice([None, 8, 12, 24]),
        kv_lora_rank=rng.choice([6, 8, 16]),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        v_head_dim=[nope, nope + rope, nope + rope + 4, 3, nope - 2][seed % 5],
        intermediate_size=rng.choice([24, 40]),
        moe_intermediate_size=rng.choice([6, 8, 12, 16]),
        n_routed_experts=experts,
        n_shared_experts=seed % 3,
        num_experts_per_tok=chosen,
        first_k_dense_replace=min((seed // 3) % 3, layers),
        # a single gate divided by itself is 1 whatever the router says: its gradient would be rounding noise
        norm_topk_prob=chosen > 1 and rng.random() < 0.7,
        routed_scaling_factor=rng.choice([1.0, 1.4, 2.5]),
        aux_loss_alpha=0.0,
        rope_theta=rng.choice([100.0, 10000.0, 50000.0]),
        rope_scaling=yarn if seed % 2 else None,
        max_position_embeddings=32,
        tie_word_embeddings=seed % 5 == 2,
        initializer_range=rng.uniform(0.1, 0.3),
    )
    return config, rng.randint(1, 3), length


def randomised(config: KimiConfig, seed: int) -> NanoKimi:
    """A model whose norm gains and router biases are no longer their trivial initial values."""
    model = build_model(config, seed)
    assert isinstance(model, NanoKimi)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                assert "norm" in name
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        for router in model.routers():
            router.e_score_correction_bias += 0.2 * torch.randn(config.n_routed_experts, generator=generator)
    return model


def tiny_batch(
    config: KimiConfig, batch: int, length: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids and the ids that follow them."""
    assert config.vocab_size is not None
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.vocab_size, (batch, length + 1), generator=generator)
    return ids[:, :-1], ids[:, 1:]


def loss_of(output: Output, targets: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood."""
    return F.cross_entropy(output.logits_BTW.flatten(0, 1), targets.flatten())


def logits_and_gradients(
    model: NanoKimi, ids: torch.Tensor, targets: torch.Tensor
) -> tuple[Tensors, Tensors]:
    """Ours, and DeepSeek-V3's with the same weights, under our names."""
    reference = deepseek_reference(model)
    output, theirs = model(ids), reference(ids).logits
    assert output.aux_loss is None
    loss_of(output, targets).backward()
    F.cross_entropy(theirs.flatten(0, 1), targets.flatten()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return gradients | {"logits": output.logits_BTW}, deepseek_gradients(reference) | {"logits": theirs}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("seed", range(24))
def test_logits_and_all_gradients_equal_deepseek_v3(seed: int) -> None:
    config, batch, length = random_config(seed)
    model = randomised(config, seed)
    ids, targets = tiny_batch(config, batch, length, seed)
    rounded = logits_and_gradients(model, ids, targets)
    with InFloat64():
        exact = logits_and_gradients(wide_copy(model), ids, targets)
    same_function(*rounded, *exact)


def test_the_random_configurations_cover_the_corners() -> None:
    """Otherwise the comparison above could quietly lose what makes it worth having."""
    configs = [random_config(seed)[0] for seed in range(24)]
    assert {c.q_lora_rank is None for c in configs} == {True, False}
    assert {c.rope_scaling is None for c in configs} == {True, False}
    assert {c.norm_topk_prob for c in configs} == {True, False}
    assert {c.n_shared_experts for c in configs} == {0, 1, 2}
    assert {c.tie_word_embeddings for c in configs} == {True, False}
    assert {c.first_k_dense_replace for c in configs} == {0, 1, 2}
    assert any(c.v_head_dim > c.qk_nope_head_dim + c.qk_rope_head_dim for c in configs)
    assert any(c.v_head_dim < c.qk_nope_head_dim for c in configs)
    assert any(c.first_k_dense_replace == c.num_hidden_layers for c in configs)
    assert any(c.n_routed_experts == c.num_experts_per_tok for c in configs)


def test_loss_at_initialisation_is_that_of_a_uniform_guess() -> None:
    config = replace(TINY_KIMI, initializer_range=0.02)
    model = build_model(config, 0)
    ids, targets = tiny_batch(config, 16, 32)
    assert loss_of(model(ids), targets).item() == pytest.approx(math.log(61), rel=0.02)


@pytest.mark.parametrize("rescaled", [False, True])
def test_every_parameter_is_initialised(rescaled: bool) -> None:
    """Each is spoilt first, so that one which init_weights forgets stands out."""
    sizes = replace(TINY_KIMI, q_lora_rank=24, initializer_range=0.07, rescale_prenorm_residual=rescaled)
    model = build_model(sizes, 0)
    outputs = 2 * sizes.num_hidden_layers
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(99.0)
    model.init_weights()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            small = rescaled and name.removesuffix(".weight").endswith(("o_proj", "down_proj"))
            std = 0.07 / math.sqrt(outputs) if small else 0.07
            margin = 5 / math.sqrt(2 * parameter.numel())  # five standard errors of a sample's deviation
            assert float(parameter.detach().std()) == pytest.approx(std, rel=margin), name
            assert abs(float(parameter.detach().mean())) < 5 * std / math.sqrt(parameter.numel()), name
    assert all(not router.e_score_correction_bias.any() for router in model.routers())


def test_seed_decides_the_weights() -> None:
    first, again, other = (build_model(TINY_KIMI, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_one_batch_is_learnt_by_heart() -> None:
    model = build_model(TINY_KIMI, 0)
    ids, targets = tiny_batch(TINY_KIMI, 4, 16)
    optimizer = build_optimizer(model, OptimConfig(name="muonclip", lr=1e-2), TINY_KIMI.num_attention_heads)
    for _ in range(100):
        output = model(ids, want_max_logits=True)
        loss = loss_of(output, targets) + output.aux_loss
        loss.backward()
        optimizer.step(max_logits_LH=output.max_logits_LH)
        optimizer.zero_grad()
    assert loss_of(model(ids), targets).item() < 0.1


def test_activation_checkpointing_changes_nothing_but_memory() -> None:
    config = replace(TINY_KIMI, num_hidden_layers=3, aux_loss_alpha=1e-2)
    ids, targets = tiny_batch(config, 3, 20)
    results = []
    for checkpointing in (False, True):
        model = build_model(config, 0)
        model.activation_checkpointing = checkpointing
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: (s.append(t), t)[1], lambda t: t):
            output = model(ids, want_max_logits=True)
        loss = loss_of(output, targets) + output.aux_loss
        loss.backward()
        results.append((output, loss, [p.grad for p in model.parameters()], sum(t.numel() for t in saved)))
    (plain, loss, gradients, kept), (other, other_loss, other_gradients, other_kept) = results
    assert torch.equal(loss, other_loss)
    assert all(torch.equal(a, b) for a, b in zip(gradients, other_gradients, strict=True))
    assert all(torch.equal(a.counts_E, b.counts_E) for a, b in zip(plain.routing, other.routing, strict=True))
    assert torch.equal(plain.max_logits_LH, other.max_logits_LH)
    assert other_kept < kept / 2


def test_statistics_are_values_that_do_not_accumulate() -> None:
    model = build_model(TINY_KIMI, 0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids, _ = tiny_batch(TINY_KIMI, 2, 12)
    first, second = model(ids, want_max_logits=True), model(ids, want_max_logits=True)
    assert len(first.routing) == len(second.routing) == len(model.routers()) == 1
    for a, b in zip(first.routing, second.routing, strict=True):
        assert torch.equal(a.counts_E, b.counts_E) and int(a.counts_E.sum()) == 2 * 12 * 2
        assert torch.equal(a.entropy, b.entropy) and torch.equal(a.balance_loss, b.balance_loss)
    assert torch.equal(first.max_logits_LH, second.max_logits_LH)
    assert torch.equal(first.aux_loss, second.aux_loss)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_auxiliary_loss_is_the_weighted_sum_over_layers() -> None:
    config = replace(TINY_KIMI, num_hidden_layers=3, aux_loss_alpha=0.25)
    output = build_model(config, 0)(tiny_batch(config, 2, 12)[0])
    assert len(output.routing) == 2
    expected = 0.25 * sum(r.balance_loss.item() for r in output.routing)
    assert output.aux_loss.item() == pytest.approx(expected, rel=1e-6)
    assert build_model(replace(config, aux_loss_alpha=0.0), 0)(tiny_batch(config, 2, 12)[0]).aux_loss is None
