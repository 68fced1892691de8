"""Generation: the cache changes nothing, sampling is what it says, nothing is left behind."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import TINY_GPT, TINY_KIMI
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nanokimi.config import RunConfig
from nanokimi.generation import story
from nanokimi.generation.engine import generate
from nanokimi.generation.sampling import sample_token, truncate_logits
from nanokimi.generation.story_scores import copied_share, distinct_ngrams, repetition
from nanokimi.model.build import LanguageModel, build_model

CONFIGS = {"nanokimi": TINY_KIMI, "nanogpt": TINY_GPT}


def make_model(name: str, **changes: Any) -> LanguageModel:
    """Weights large enough that the text is not one token over and over."""
    return build_model(replace(CONFIGS[name], initializer_range=0.3, **changes), 0)


def prompt_of(length: int) -> list[int]:
    return [(7 * i * i + 3) % 61 for i in range(length)]


@torch.no_grad()
def naive_greedy(model: LanguageModel, prompt: list[int], new_tokens: int, limit: int) -> list[int]:
    """Argmax, reading the whole window each time; a window that is full makes room by dropping its older half."""
    window, written = prompt[-limit:], []
    for _ in range(new_tokens):
        if len(window) == limit + 1:
            window = window[-(limit // 2) :]
        token = int(model(torch.tensor([window])).logits_BTW[0, -1].argmax())
        window, written = [*window, token], [*written, token]
    return written


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    ("length", "context"), [(1, None), (20, None), (32, None), (50, None), (3, 8), (9, 1)]
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_cached_text_is_uncached_text(
    name: str, length: int, context: int | None, temperature: float
) -> None:
    """Far past the context, where the window has moved several times."""
    model = make_model(name)
    options: dict[str, Any] = dict(temperature=temperature, context_length=context, seed=5)
    cached = list(generate(model, prompt_of(length), 90, **options))
    uncached = list(generate(model, prompt_of(length), 90, use_cache=False, **options))
    assert cached == uncached and len(cached) == 90
    assert len(set(cached)) > 3 or context == 1  # one token of context soon goes in circles


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("length", "limit"), [(1, 32), (32, 32), (40, 32), (5, 7)])
def test_greedy_text_is_the_argmax_of_each_window(name: str, length: int, limit: int) -> None:
    model = make_model(name)
    expected = naive_greedy(model.eval(), prompt_of(length), 60, limit)
    written = list(generate(model, prompt_of(length), 60, temperature=0, context_length=limit))
    assert written == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_seed_decides_the_text(name: str) -> None:
    model = make_model(name)

    def write(seed: int) -> list[int]:
        torch.manual_seed(seed + 99)  # the global generator must not matter
        return list(generate(model, [1, 2], 30, temperature=1.0, seed=seed))

    assert write(1) == write(1)
    assert write(1) != write(2)


def test_tokens_come_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanokimi.kernels.decode.gpt_library", lambda: None)  # C does not call the model
    model = make_model("nanogpt")
    calls = []
    model.register_forward_pre_hook(lambda _module, arguments: calls.append(arguments[0].shape[1]))
    stream = generate(model, prompt_of(4), 10)
    next(stream)
    assert calls == [4]
    next(stream)
    next(stream)
    assert calls == [4, 1, 1]  # the prompt at once, then single tokens


@settings(max_examples=150, deadline=None)
@given(
    logits=st.lists(st.integers(-60, 60), min_size=1, max_size=12, unique=True),
    top_k=st.none() | st.integers(1, 14),
    top_p=st.none() | st.floats(0.01, 1.0),
)
def test_truncation_equals_a_naive_one(logits: list[int], top_k: int | None, top_p: float | None) -> None:
    values = [x / 10 for x in logits]
    ranking = sorted(range(len(values)), key=lambda i: -values[i])
    kept = ranking[:top_k] if top_k is not None else ranking
    if top_p is not None and top_p < 1:
        total = sum(math.exp(values[i]) for i in kept)
        nucleus, held = [], 0.0
        for i in kept:
            assume(abs(held - top_p) > 1e-9)
            if held >= top_p:
                break
            nucleus.append(i)
            held += math.exp(values[i]) / total
        kept = nucleus
    truncated = truncate_logits(torch.tensor(values, dtype=torch.float64), top_k, top_p)
    assert set(truncated.isfinite().nonzero().flatten().tolist()) == set(kept)
    assert all(float(truncated[i]) == values[i] for i in kept)


def test_truncation_by_hand() -> None:
    logits = torch.tensor([0.1, 0.5, 0.05, 0.35], dtype=torch.float64).log()

    def kept(top_k: int | None, top_p: float | None) -> list[int]:
        return truncate_logits(logits, top_k, top_p).isfinite().nonzero().flatten().tolist()

    assert kept(2, None) == [1, 3] and kept(None, 0.9) == [0, 1, 3] and kept(None, 0.6) == [1, 3]
    assert (
        kept(None, 0.01) == [1] and kept(1, None) == [1] and kept(None, None) == kept(9, 1.0) == [0, 1, 2, 3]
    )
    assert kept(2, 0.55) == [1]  # 0.5 of the remaining 0.85 is 0.588 of it


def test_temperature_0_takes_the_likeliest() -> None:
    generator = torch.Generator().manual_seed(0)
    for seed in range(20):
        logits = torch.randn(50, generator=torch.Generator().manual_seed(seed))
        assert sample_token(logits, generator, temperature=0) == int(logits.argmax())


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, None), (0.5, None, None), (2.0, 4, None), (1.0, None, 0.8)],
)
def test_frequencies_are_the_probabilities(
    temperature: float, top_k: int | None, top_p: float | None
) -> None:
    """Chi-square: with at most 5 degrees of freedom a sound sampler exceeds 30 once in 100000 times."""
    logits = torch.tensor([1.5, 0.0, -0.5, 0.9, 0.4, -1.0])
    weights = {i: math.exp(float(x) / temperature) for i, x in enumerate(logits)}
    ranking = sorted(weights, key=lambda i: -weights[i])
    if top_k is not None:
        ranking = ranking[:top_k]
    if top_p is not None:
        ranking = ranking[:3]  # by hand: 0.431, 0.236 and 0.143 reach 0.8
    expected = {i: weights[i] / sum(weights[j] for j in ranking) for i in ranking}
    generator = torch.Generator().manual_seed(3)
    draws = 4000
    drawn = Counter(
        sample_token(logits, generator, temperature=temperature, top_k=top_k, top_p=top_p)
        for _ in range(draws)
    )
    assert set(drawn) == set(expected)
    chi_square = sum((drawn[i] - draws * p) ** 2 / (draws * p) for i, p in expected.items())
    assert chi_square < 30


def test_half_precision_logits_are_sampled_in_float64() -> None:
    """So that a seed draws the same token whatever the device computes in."""
    logits = torch.randn(200, generator=torch.Generator().manual_seed(0)).bfloat16()
    probabilities = (logits.double() / 0.9).softmax(-1)
    for seed in range(20):
        expected = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(seed)).item()
        for x in (logits, logits.float(), logits.double()):
            assert sample_token(x, torch.Generator().manual_seed(seed), temperature=0.9) == expected
    near = torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64)  # a tie in fp32
    assert sample_token(near, torch.Generator(), temperature=0) == 1


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("training", [True, False])
def test_mode_is_restored(name: str, training: bool) -> None:
    """Also when the consumer stops early, and when sampling fails."""
    model = make_model(name).train(training)
    list(generate(model, [1], 3))
    assert model.training == training
    stream = generate(model, [1], 30)
    next(stream)
    assert not model.training and not torch.is_inference_mode_enabled()
    stream.close()
    assert model.training == training
    for _ in generate(model, [1], 30):
        break
    assert model.training == training
    with pytest.raises(IndexError):
        list(generate(model, [61], 3))  # no such token
    assert model.training == training


def test_dropout_is_off_while_writing() -> None:
    model = make_model("nanogpt", dropout=0.5).train()
    texts = {tuple(generate(model, [1, 2], 20, temperature=0)) for _ in range(2)}
    assert texts == {tuple(generate(make_model("nanogpt"), [1, 2], 20, temperature=0))}


def test_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        next(generate(make_model("nanogpt"), [], 3))


class Bytes:
    """A tokenizer of bytes, in one line."""

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def test_streamed_story_never_shows_half_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(data: bytes) -> list[str]:
        def ids(*_: object) -> Iterator[int]:
            return iter(data)

        monkeypatch.setattr(story, "story_ids", ids)
        return list(story.stream_story(None, Bytes(), "", RunConfig()))  # type: ignore[arg-type]

    text = "a caf\u00e9, a \U0001f600!"
    pieces = stream(text.encode())
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > len(text) / 2  # as soon as possible, not all at the end
    assert "".join(stream("ab\u00e9".encode()[:-1])) == "ab\ufffd"  # cut short: shown as it is


def test_distinct_ngrams_by_hand() -> None:
    assert distinct_ngrams([1, 2, 1, 2, 1], 2) == pytest.approx(2 / 4)  # 12 21 12 21
    assert distinct_ngrams([1, 2, 3, 4], 2) == 1.0
    assert distinct_ngrams([5] * 10, 1) == pytest.approx(0.1)
    assert distinct_ngrams([1], 2) == 1.0


def test_repetition_by_hand() -> None:
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)  # abcd bcda cdab dabc abcd
    assert repetition("the dog the dog the dog", 2) == pytest.approx(3 / 5)
    assert repetition("one two three") == 0.0
    assert repetition("every word of this is new") == 0.0


def test_copied_share_by_hand() -> None:
    training = "once upon a time there was a fox"
    assert copied_share("upon a time", training, length=5) == 1.0
    assert copied_share("xxxx a time xxxx", training, length=6) == 0.5  # " a time "
    assert copied_share("nothing alike", training, length=5) == 0.0
    assert copied_share("fox", training, length=5) == 0.0  # shorter than what counts
    assert copied_share("a time was a fox", training, length=6) == 1.0  # two overlapping stretches cover it
