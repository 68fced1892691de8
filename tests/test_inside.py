"""Looking into a model: every value is the model's own, for all models, and what cannot be known is None."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import AS_KIMI, TINY_GPT, TINY_KIMI, TINY_VARIANT, make_text
from test_kimi_doc import imported
from torch import nn

from nanokimi.config import KimiConfig, ModelConfig, ModuleConfig, YarnConfig
from nanokimi.data.store import PreparedData
from nanokimi.data.tokenizers.own import ByteTokenizer, CharTokenizer, WithEndOfText, train_sentencepiece
from nanokimi.errors import TrainingError, UserError
from nanokimi.generation.sampling import Sampling
from nanokimi.generation.text import TextSettings, complete
from nanokimi.inside import Subject, attention_map, attention_maps, favourites, look, write_and_look
from nanokimi.inside.attention import Call, watched_attention
from nanokimi.inside.pieces import Pieces, visible
from nanokimi.inside.subject import blocks_of, readings
from nanokimi.inside.view import View, Wanted, with_maps
from nanokimi.measure.cost import model_cost
from nanokimi.measure.evaluate import evaluate
from nanokimi.model.build import build_model
from nanokimi.play.look import map_sizes
from nanokimi.runtime.plugins import name_plugin
from nanokimi.train.prune import expert_usage

TOKENIZER = CharTokenizer("".join(chr(33 + i) for i in range(60)))
CONTEXT = 12
EXAMPLE = Path(__file__).parent.parent / "examples" / "sliding_window.py"
MODULE = """
import torch
import torch.nn.functional as F
from torch import nn

class Mine(nn.Module):
    more = 0

    def __init__(self, vocab_size, context_length):
        super().__init__()
        self.embed, self.qkv = nn.Embedding(vocab_size, 16), nn.Linear(16, 48)
        self.head = nn.Linear(16, vocab_size)

    def forward(self, ids):
        q, k, v = (x.unflatten(-1, (2, 8)).transpose(1, 2) for x in self.qkv(self.embed(ids)).chunk(3, dim=-1))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        for _ in range(self.more):
            out = F.scaled_dot_product_attention(q, k, out, is_causal=True)
        return self.head(out.transpose(1, 2).flatten(-2))


class Twice(Mine):
    more = 1


class Without(Mine):
    def forward(self, ids):
        return self.head(self.embed(ids))
"""
VARIANTS: dict[str, ModelConfig] = {
    "kimi": TINY_KIMI,
    "yarn": replace(
        TINY_KIMI,
        rope_scaling=YarnConfig(factor=4.0, original_max_position_embeddings=8),
        qk_rope_head_dim=12,
    ),
    "gpt": TINY_GPT,
    "gqa": replace(TINY_VARIANT, attention="gqa", num_key_value_heads=2, positions="rope"),
    "soft": replace(TINY_VARIANT, experts="soft"),
    "topk": replace(TINY_VARIANT, experts="topk", n_shared_experts=1),
    "choice": replace(TINY_VARIANT, experts="expert_choice"),
    "composed": AS_KIMI,
    "latent": replace(TINY_VARIANT, attention="latent"),
}


def subject(config: ModelConfig, context: int = CONTEXT, **more: Any) -> Subject:
    """A model with large initial weights, so that it is sure of something."""
    model = build_model(config, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return Subject("Tiny", model, TOKENIZER, context, **more)


def ids_of(tokens: int, seed: int = 1) -> list[int]:
    return torch.randint(0, 60, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def own_module(folder: Path, cls: str = "Mine") -> ModuleConfig:
    (folder / "mine.py").write_text(MODULE)
    name = name_plugin(f"{folder / 'mine.py'}:{cls}").name
    return ModuleConfig(source=name, vocab_size=61, max_position_embeddings=32)


@pytest.mark.parametrize("name", ["kimi", "gpt", "composed", "latent", "own"])
def test_surprises_sum_to_the_loss_of_an_evaluation(name: str, tmp_path: Path) -> None:
    one = subject(own_module(tmp_path) if name == "own" else VARIANTS[name])
    text = np.array(ids_of(5 * CONTEXT + 3), dtype=np.uint16)
    data = PreparedData(TOKENIZER, text[:5], text[5:], {"val_text_bytes": 1, "val_text_chars": 1})
    scored = evaluate(one.model, data, CONTEXT)
    for window, nats in enumerate(scored.window_nats[:3]):
        found = look(one, text[4 + window * CONTEXT : 5 + (window + 1) * CONTEXT].tolist())
        assert sum(found.bits) * math.log(2) == pytest.approx(nats, rel=1e-5)
        assert found.tokens[0].surprise is None and len(found.bits) == CONTEXT


def test_the_alternatives_are_the_likeliest_tokens_with_their_probabilities() -> None:
    one, ids = subject(TINY_GPT), ids_of(CONTEXT)
    found = look(one, ids)
    shares_TW = one.model(torch.tensor([ids])).logits_BTW[0].softmax(dim=-1).detach()
    for place, token in enumerate(found.tokens[1:], start=1):
        shares_W = shares_TW[place - 1]
        assert token.expected is not None and token.rank is not None and token.surprise is not None
        best = shares_W.topk(10)
        assert [a.id for a in token.expected.alternatives] == best.indices.tolist()
        assert [a.probability for a in token.expected.alternatives] == pytest.approx(
            best.values.tolist(), rel=1e-4
        )
        assert token.rank == 1 + int((shares_W > shares_W[token.id]).sum())
        assert 2**-token.surprise == pytest.approx(float(shares_W[token.id]), rel=1e-4)
        assert token.expected.entropy == pytest.approx(float(-(shares_W * shares_W.log2()).sum()), rel=1e-4)
    assert found.next.alternatives[0].id == int(shares_TW[-1].argmax())
    with torch.no_grad():
        one.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="not finite"):
        look(one, ids)


@pytest.mark.parametrize("name", ["kimi", "composed", "topk", "soft", "choice"])
def test_the_experts_are_those_of_the_forward_pass(name: str) -> None:
    """Their counts are the router's own, and their outputs, weighted by the gates, add up to the layer's."""
    one, ids = subject(VARIANTS[name]), ids_of(CONTEXT)
    layer = [i for i, block in enumerate(blocks_of(one.model)) if hasattr(block.feed_forward, "gate")][-1]
    part: Any = blocks_of(one.model)[layer].feed_forward
    seen: list[Any] = []
    hook = part.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output[0])))
    found = look(one, ids).experts[-1]
    hook.remove()
    routing = one.model(torch.tensor([ids])).routing[-1]
    assert found.layer == layer and found.load is not None and found.choices is not None
    counts = routing.counts_E.detach()
    assert found.load.tolist() == pytest.approx((counts / counts.sum()).tolist(), rel=1e-5)
    x_TD, y_TD = seen[0][0][0].clone(), seen[0][1][0].clone()  # made in inference mode
    for token in range(CONTEXT):
        x_1D, total = x_TD[token : token + 1], torch.zeros_like(y_TD[token])
        for expert, gate in found.of(token):
            own = torch.tensor([[expert]]), torch.ones(1, 1), F.one_hot(torch.tensor([expert]), 4)[0]
            total += gate * part.experts(x_1D, *own)[0]
        if part.shared_experts is not None:
            total += part.shared_experts(x_1D)[0]
        assert torch.allclose(total, y_TD[token], rtol=1e-3, atol=1e-5)
    gates = [gate for _, gate in found.of(0)]
    assert gates == sorted(gates, reverse=True) and found.shared == (part.shared_experts is not None)
    if name in ("kimi", "composed"):
        assert sum(gates) == pytest.approx(1.4) and len(gates) == 2
    assert "shares" not in vars(part.gate) and "choose" not in vars(part) and not part.gate._forward_hooks


@pytest.mark.parametrize("name", ["kimi", "yarn", "gpt", "gqa", "composed"])
def test_the_weights_of_attention_rebuild_the_output_of_the_layer(name: str) -> None:
    one, ids = subject(VARIANTS[name]), ids_of(CONTEXT)
    part: Any = blocks_of(one.model)[1].attention
    outputs: list[torch.Tensor] = []
    hook = part.register_forward_hook(lambda _, inputs, output: outputs.append(output[0]))
    maps = attention_maps(one, ids, 1)
    hook.remove()
    assert maps is not None and [one.head for one in maps] == list(range(part.num_heads))
    with torch.no_grad(), watched_attention(one, CONTEXT) as calls:
        one.model(torch.tensor([ids]))
    call = calls.found(1)
    assert isinstance(call, Call) and set(calls.calls) == {0, 1}
    width = getattr(part, "value_dim", call.v_BHSV.shape[-1])  # MLA's values are padded
    heads = []
    for one_map in maps:
        weights_TT = one_map.weights_TT
        assert np.allclose(weights_TT.sum(axis=1), 1, atol=1e-6) and not np.triu(weights_TT, 1).any()
        heads.append(torch.from_numpy(weights_TT) @ call.v_BHSV[0, one_map.head, :, :width])
    project = getattr(part, "c_proj", None) or part.o_proj
    assert torch.allclose(project(torch.cat(heads, dim=-1)), outputs[0][0], rtol=1e-3, atol=1e-5)


def test_a_users_attention_and_module_show_their_maps(tmp_path: Path) -> None:
    """One computes its softmax itself, of the other nothing but torch's call is known."""
    name = name_plugin(f"{EXAMPLE}:SlidingWindowAttention").name
    own = subject(replace(TINY_VARIANT, attention=name), context=24)
    ids = ids_of(20)
    found = attention_map(own, ids, 0, 3)
    assert found is not None and np.allclose(found.weights_TT.sum(axis=1), 1, atol=1e-5)
    ages = np.subtract.outer(np.arange(20), np.arange(20))
    assert (found.weights_TT[(ages < 0) | (ages >= 16)] == 0).all() and (
        found.weights_TT[ages == 15] > 0
    ).all()
    module = subject(own_module(tmp_path))
    maps = attention_maps(module, ids, 0)
    assert maps is not None and len(maps) == 2 and np.allclose(maps[0].weights_TT.sum(axis=1), 1, atol=1e-6)
    seen = look(module, ids)
    assert seen.layers is None and seen.max_logits is None and seen.cache is None and not seen.experts
    assert len(seen.unknown) == 3
    for cls, layers in (("Twice", [0, 0, 1, 1]), ("Without", [])):
        one = subject(own_module(tmp_path, cls))
        view = with_maps(View(look(one, ids)), one, Wanted(), 9)
        assert [each.layer for each in view.maps] == layers and bool(view.maps_note) == (cls == "Without")
        assert map_sizes(one) == ((2, 2) if cls == "Twice" else (0, 0)), "what `play` offers"
    assert map_sizes(module) == (1, 2) and map_sizes(own) == (2, 4)
    assert attention_maps(subject(VARIANTS["latent"]), ids, 0) is None
    for layer, head, words in ((2, 0, "no layer 2"), (-1, 0, "layers 0 to 1"), (0, 2, "no head 2")):
        with pytest.raises(UserError, match=words):
            attention_map(subject(TINY_KIMI), ids, layer, head)


def test_a_long_text_is_read_as_the_engine_wrote_it() -> None:
    """At temperature 0 every written token is the likeliest, also beyond the context."""
    assert [tuple(one) for one in readings(15, 6)] == [(0, 0, 6), (4, 6, 10), (8, 10, 14), (12, 14, 15)]
    for config in (TINY_KIMI, TINY_GPT):
        one = subject(config, context=9)
        settings = TextSettings(max_new_tokens=30, sampling=Sampling(temperature=0))
        found = write_and_look(one, "ABC", settings)
        assert found.text == "ABC" + complete(one.model, TOKENIZER, "ABC", settings, context_length=9)[0].text
        assert [token.written for token in found.tokens] == [False] * 3 + [True] * 30
        assert {token.rank for token in found.tokens[3:]} == {1}
        maps = attention_maps(one, found.ids, 0)
        assert maps is not None and np.allclose(maps[0].weights_TT.sum(axis=1), 1, atol=1e-6)
        assert all(len(layer.choices.chosen_MK) == 33 for layer in found.experts if layer.choices)


def test_the_prompt_must_fit() -> None:
    one = subject(TINY_GPT)
    with pytest.raises(UserError, match="has 13 tokens, and Tiny reads 12 at once"):
        write_and_look(one, "A" * 13, TextSettings(max_new_tokens=2))
    with pytest.raises(UserError, match="the prompt is empty"):
        write_and_look(one, "", TextSettings(max_new_tokens=2))
    with pytest.raises(UserError, match="the prompt is empty"):
        look(one, [])
    alone = look(one, [4])
    assert alone.mean_bits is None and alone.next.alternatives


@pytest.mark.parametrize("name", ["kimi", "gpt", "gqa", "latent"])
def test_the_cache_is_what_the_cost_says(name: str) -> None:
    config = VARIANTS[name]
    found, cost = look(subject(config), [1, 2]).cache, model_cost(config, CONTEXT)
    assert found is not None
    assert found.bytes_per_token == 4 * cost.cache_numbers_per_token
    assert found.bytes_fixed == 4 * cost.cache_numbers_fixed
    ordinary = {"kimi": 2 * 2 * (16 + 16), "gpt": 2 * 2 * 32, "gqa": 2 * 2 * 32, "latent": None}[name]
    assert found.ordinary_bytes_per_token == (None if ordinary is None else 4 * ordinary)
    if isinstance(config, KimiConfig):
        assert ordinary == config.num_hidden_layers * imported("kimi_tables").kept_by_heads(config), (
            "the document"
        )
    assert sum(part.numbers for part in found.parts) * 4 * 2 == found.bytes_per_token


def test_the_largest_logits_are_those_that_qk_clip_sees() -> None:
    one, ids = subject(TINY_KIMI, tau=100.0), ids_of(30)
    found = look(one, ids)
    passes = [one.model(torch.tensor([ids[a:c]]), want_max_logits=True) for a, _, c in readings(30, CONTEXT)]
    largest = torch.stack([output.max_logits_LH for output in passes]).amax(dim=0)
    assert found.max_logits is not None and found.tau == 100.0
    assert torch.equal(torch.from_numpy(found.max_logits), largest)


def test_favourites_are_counted_over_the_validation_text() -> None:
    text = np.array([ord(c) % 60 for c in make_text(900)], dtype=np.uint16)
    data = PreparedData(TOKENIZER, text[:100], text[100:], {})
    one = subject(TINY_KIMI, data=data)
    found = favourites(one, tokens=400)
    assert found is not None and (found.tokens, found.of) == (400, 800)
    usage_LE = expert_usage(one.model, replace(data, val_ids=data.val_ids[:400]), CONTEXT)
    assert found.layers[-1].load == pytest.approx((usage_LE / usage_LE.sum(dim=1, keepdim=True))[-1].numpy())
    read = text[99:499]
    choices = [layer for layer in look(one, read[:CONTEXT].tolist()).experts][-1]  # the first window alone
    assert choices.choices is not None
    all_chosen = [look(one, read[i : i + CONTEXT].tolist()).experts[-1] for i in range(0, 400, CONTEXT)]
    pairs = [
        (int(read[i * CONTEXT + place]), expert)
        for i, window in enumerate(all_chosen)
        for place in range(min(CONTEXT, 400 - i * CONTEXT))
        for expert, _ in window.of(place)
    ]
    best = [one for row in found.layers[-1].favourites for one in row]
    assert best and all(one.lift > 1 for one in best)
    for expert, row in enumerate(found.layers[-1].favourites):
        share = sum(e == expert for _, e in pairs) / 400
        for one_token in row:
            assert one_token.seen == int((read == one_token.id).sum()) >= 10
            assert one_token.taken == pairs.count((one_token.id, expert))
            assert one_token.lift == pytest.approx(one_token.taken / one_token.seen / share)
    assert favourites(subject(TINY_GPT, data=data)) is None
    with pytest.raises(UserError, match="came without its validation text"):
        favourites(subject(TINY_KIMI))


@pytest.mark.parametrize("tokens", [200, 400, 10_000])
def test_favourites_are_counted_over_each_text_of_a_mixture(tokens: int) -> None:
    """They stand one after another, and only the first was once read: an expert could like no token of the others."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 20, 1500), rng.integers(20, 23, 500)
    sizes = [{"name": name, "val_tokens": size} for name, size in (("a", 1500), ("b", 500))]
    data = PreparedData(TOKENIZER, first[:100], np.concatenate([first, second]), {"sources": sizes})
    one = subject(TINY_KIMI, data=data)
    found = favourites(one, tokens=tokens)
    read = min(tokens, 2000)
    assert found is not None and (found.tokens, found.of) == (read, 2000)
    stretches = [[first[99], *first[: read * 3 // 4 - 1]], [first[-1], *second[: read // 4 - 1]]]
    windows = [ids[i : i + CONTEXT] for ids in stretches for i in range(0, len(ids), CONTEXT)]
    chosen = [look(one, [int(id) for id in ids]).experts[-1].choices for ids in windows]
    taken_E = sum(np.bincount(each.chosen_MK.ravel(), minlength=4) for each in chosen if each is not None)
    assert found.layers[-1].load == pytest.approx(taken_E / np.sum(taken_E))
    counts = np.bincount([int(id) for ids in windows for id in ids], minlength=61)
    liked = [each for layer in found.layers for row in layer.favourites for each in row]
    assert all(each.seen == counts[each.id] for each in liked)
    assert any(each.id >= 20 for each in liked)


def test_tokens_that_split_a_character_are_shown_with_it() -> None:
    pieces = Pieces(WithEndOfText(ByteTokenizer()))
    text = "a \u4f60\n"
    found = pieces.of([*text.encode(), 256])
    assert [piece.text for piece in found] == ["a", " ", "\u4f60", "", "", "\n", "<|endoftext|>"]
    assert [(piece.part, piece.parts) for piece in found[2:5]] == [(1, 3), (2, 3), (3, 3)]
    assert [piece.label for piece in found] == [
        "a",
        "\u2423",
        "\u4f60",
        "<BD>",
        "<A0>",
        "\u21b5",
        "<|endoftext|>",
    ]
    assert [piece.text for piece in pieces.of([0xFF, 97, 0xE4, 0xBD])] == ["<FF>", "a", "<E4>", "<BD>"]
    chars = CharTokenizer("abc")
    found = Pieces(chars).of(chars.encode("a\u00e9b").tolist())
    assert found[0].text == "a" and found[1][:2] == ("\u00e9", "\u00e9") and found[-1].text == "b"
    assert {piece.text for piece in found[2:-1]} == {""} and Pieces(chars).label(
        chars.escape_id
    ) == "<escape>"
    assert Pieces(chars).label(99) == "<id 99>"
    bpe = train_sentencepiece("bpe", 300, [make_text(2000)], 2000)
    ids = bpe.encode("the small boy \u00e9").tolist()
    assert "".join(piece.text for piece in Pieces(bpe).of(ids)) == "the small boy \u00e9"
    assert Pieces(bpe).label(ids[-1]) == "<A9>"


def test_no_character_can_hide() -> None:
    assert visible("a b\t\x1b[31m\u202e\u0301") == "a\u2423b\u21e5\u241b[31m<U+202E>\u25cc\u0301"
    assert visible(" \n", spaces=False) == " \u21b5\n"


def test_the_model_is_left_as_it_was() -> None:
    one = subject(replace(TINY_GPT, dropout=0.5))
    one.model.train()
    first, second = look(one, ids_of(8)), look(one, ids_of(8))
    assert first.bits == second.bits and one.model.training
    hooked = [module for module in one.model.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert isinstance(one.model, nn.Module) and not hooked
