"""NanoGPT: equal to Hugging Face's GPT-2, initialised as nanoGPT's, able to learn."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_GPT
from hf_parity import EPS, InFloat64, Tensors, gpt2_gradients, gpt2_reference, same_function, wide_copy

from nanokimi.config import GPTConfig, OptimConfig
from nanokimi.model.build import build_model
from nanokimi.model.gpt import NanoGPT
from nanokimi.optim.build import build_optimizer

SIZES = (  # layers, heads, width, inner width, vocabulary, positions, batch, length
    (1, 1, 16, 64, 30, 16, 1, 16),
    (2, 4, 32, 128, 61, 24, 3, 17),
    (3, 3, 24, 40, 50, 32, 2, 9),
    (2, 2, 20, 100, 23, 12, 2, 1),
)


def batch_of(vocabulary: int, batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids and the ids that follow them."""
    ids = torch.randint(vocabulary, (batch, length + 1), generator=torch.Generator().manual_seed(1))
    return ids[:, :-1], ids[:, 1:]


def logits_and_gradients(model: NanoGPT, ids: torch.Tensor, targets: torch.Tensor) -> tuple[Tensors, Tensors]:
    """Ours, and GPT-2's with the same weights, under our names; the bias of the keys apart."""
    reference = gpt2_reference(model)
    ours, theirs = model(ids).logits_BTW, reference(ids).logits
    F.cross_entropy(ours.flatten(0, 1), targets.flatten()).backward()
    F.cross_entropy(theirs.flatten(0, 1), targets.flatten()).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    expected = gpt2_gradients(reference)
    if not model.config.bias:
        expected = {name: gradient for name, gradient in expected.items() if not name.endswith(".bias")}
    for gradients in (found, expected):
        for name in [name for name in gradients if name.endswith("c_attn.bias")]:
            q, gradients[name + ".k"], v = gradients.pop(name).chunk(3)
            gradients[name + ".qv"] = torch.cat((q, v))
    return found | {"logits": ours}, expected | {"logits": theirs}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_logits_and_all_gradients_equal_gpt2(size: tuple[int, ...], bias: bool) -> None:
    layers, heads, width, inner, vocabulary, positions, batch, length = size
    config = GPTConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        bias=bias,
        initializer_range=0.2,
    )
    model = build_model(config, 5)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # gains and biases away from 1 and 0
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    ids, targets = batch_of(vocabulary, batch, length)
    rounded = logits_and_gradients(model, ids, targets)
    with InFloat64():
        exact = logits_and_gradients(wide_copy(model), ids, targets)
    for (ours, theirs), eps in ((rounded, EPS), (exact, torch.finfo(torch.float64).eps)):
        for name in [name for name in ours if name.endswith("c_attn.bias.k")]:
            # the softmax ignores a shift of all keys: zero but for the rounding of terms as large as the others'
            size_of_terms = theirs[name[:-1] + "qv"].norm()
            for gradients in (ours, theirs):
                assert gradients.pop(name).norm() <= 100 * eps * size_of_terms, name
    same_function(*rounded, *exact)


def test_initial_weights_are_gpt2s() -> None:
    config = replace(TINY_GPT, num_hidden_layers=4, hidden_size=64, intermediate_size=256, bias=True)
    model = build_model(config, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(99.0)
    model.init_weights()
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            assert not parameter.any(), name
        elif parameter.dim() == 1:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            expected = 0.02 / math.sqrt(8) if name.endswith("c_proj.weight") else 0.02
            margin = 5 / math.sqrt(2 * parameter.numel())
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=margin), name


def test_loss_at_initialisation_is_that_of_a_uniform_guess() -> None:
    ids, targets = batch_of(61, 16, 32)
    logits = build_model(TINY_GPT, 0)(ids).logits_BTW
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(math.log(61), rel=0.02)


def test_head_and_embedding_are_one_tensor_that_learns_from_both() -> None:
    model = build_model(TINY_GPT, 0)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert (
        sum(name in ("lm_head.weight", "transformer.wte.weight") for name, _ in model.named_parameters()) == 1
    )
    ids = torch.tensor([[1, 2, 3]])
    model(ids).logits_BTW[..., 7].sum().backward()
    touched = model.lm_head.weight.grad.abs().sum(dim=1) > 0
    assert set(touched.nonzero().flatten().tolist()) == {1, 2, 3, 7}  # read as input, and as output


def test_one_batch_is_learnt_by_heart() -> None:
    model = build_model(TINY_GPT, 0)
    ids, targets = batch_of(61, 4, 16)
    optimizer = build_optimizer(model, OptimConfig(name="adamw", lr=1e-2), TINY_GPT.num_attention_heads)
    for _ in range(120):
        loss = F.cross_entropy(model(ids).logits_BTW.flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    loss = F.cross_entropy(model(ids).logits_BTW.flatten(0, 1), targets.flatten())
    assert loss.item() < 0.1


def test_dropout_acts_in_training_only() -> None:
    dropping, plain = build_model(replace(TINY_GPT, dropout=0.3), 0), build_model(TINY_GPT, 0)
    ids, _ = batch_of(61, 2, 16)
    assert not torch.equal(dropping(ids).logits_BTW, dropping(ids).logits_BTW)
    expected = plain.eval()(ids).logits_BTW
    assert torch.equal(dropping.eval()(ids).logits_BTW, expected)


def test_every_place_of_dropout_is_connected() -> None:
    """With all but one of the places switched off, two training passes still differ."""
    ids, _ = batch_of(61, 2, 16)
    for place in ("embedding", "attention", "residual"):
        model = build_model(replace(TINY_GPT, dropout=0.5), 0)
        model.transformer.drop.p = 0.5 if place == "embedding" else 0.0
        for block in model.transformer.h:
            block.attn.dropout = 0.5 if place == "attention" else 0.0
            block.dropout.p = 0.5 if place == "residual" else 0.0
        assert not torch.equal(model(ids).logits_BTW, model(ids).logits_BTW), place


def test_activation_checkpointing_changes_nothing_but_memory() -> None:
    """Dropout's random numbers included: the recomputed pass draws the same ones."""
    ids, targets = batch_of(61, 3, 20)
    results = []
    for checkpointing in (False, True):
        model = build_model(replace(TINY_GPT, dropout=0.2), 0)
        model.activation_checkpointing = checkpointing
        torch.manual_seed(0)
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: (s.append(t), t)[1], lambda t: t):
            output = model(ids, want_max_logits=True)
        loss = F.cross_entropy(output.logits_BTW.flatten(0, 1), targets.flatten())
        loss.backward()
        kept = sum(t.numel() for t in saved)
        results.append((loss, output.max_logits_LH, [p.grad for p in model.parameters()], kept))
    (loss, logits, gradients, kept), (other_loss, other_logits, other_gradients, other_kept) = results
    assert other_kept < kept / 2
    assert torch.equal(loss, other_loss) and torch.equal(logits, other_logits)
    assert all(torch.equal(a, b) for a, b in zip(gradients, other_gradients, strict=True))
