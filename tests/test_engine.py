"""The engine: sampling rules against transformers', batches against single texts, stop strings, what `sample` does."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import PATIENCE
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generation import CONFIGS, make_model, prompt_of

from nanokimi import cli
from nanokimi.data.tokenizers.own import ByteTokenizer
from nanokimi.errors import UserError
from nanokimi.generation.engine import Engine, Request, generate
from nanokimi.generation.sampling import Sampling, penalize_repetition, truncate_logits
from nanokimi.generation.text import (
    Piece,
    TextSettings,
    TextStream,
    complete,
    in_order,
    requests_of,
    stream_pieces,
)
from nanokimi.measure.cost import model_cost
from nanokimi.model.build import build_model

# ---- the rules


@pytest.mark.parametrize(
    "rule",
    [
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.6},
        {"temperature": 0.3},
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"repetition_penalty": 1.3, "temperature": 0.7, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
    ],
)
def test_the_rules_are_those_of_transformers(rule: dict[str, Any]) -> None:
    """Each alone, and all in our order: the same probabilities to 12 digits."""
    of_them = {
        "repetition_penalty": transformers.RepetitionPenaltyLogitsProcessor,
        "temperature": transformers.TemperatureLogitsWarper,
        "top_k": transformers.TopKLogitsWarper,
        "top_p": transformers.TopPLogitsWarper,
        "min_p": transformers.MinPLogitsWarper,
    }
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        logits_W = 3 * torch.randn(40, generator=generator, dtype=torch.float64)
        seen = torch.randint(40, (6,), generator=generator)
        theirs = logits_W[None]
        for name, value in rule.items():
            theirs = of_them[name](value)(seen[None], theirs)
        ours = penalize_repetition(logits_W, set(seen.tolist()), rule.get("repetition_penalty", 1.0))
        ours = truncate_logits(
            ours / rule.get("temperature", 1.0), rule.get("top_k"), rule.get("top_p"), rule.get("min_p")
        )
        torch.testing.assert_close(ours.softmax(-1), theirs[0].softmax(-1), rtol=1e-12, atol=0)
        assert not torch.equal(ours, logits_W), "the rule does something"


def test_the_penalty_is_for_prompt_and_text() -> None:
    """At an extreme penalty and without chance, no token comes twice while others have a positive logit."""
    model = make_model("nanogpt", vocab_size=40)
    prompt = prompt_of(5)
    written = list(generate(model, [i % 40 for i in prompt], 8, temperature=0, repetition_penalty=100.0))
    assert len({*written, *(i % 40 for i in prompt)}) == len(written) + len({i % 40 for i in prompt})


# ---- batches

LENGTHS = (1, 7, 20, 32, 50, 3)


def requests(**changes: Any) -> list[Request]:
    choice = Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.2)
    wanted = (40, 0, 25, 60, 60, 9)
    return [
        Request(prompt_ids=prompt_of(n), max_new_tokens=w, sampling=choice, seed=n, **changes)
        for n, w in zip(LENGTHS, wanted, strict=True)
    ]


def written_by(engine: Engine, batch: list[Request]) -> list[list[int]]:
    writings = [engine.start(request) for request in batch]
    heard: dict[int, list[int]] = {id(writing): [] for writing in writings}
    for found in engine.rounds(writings):
        for writing, token in found:
            heard[id(writing)].append(token)
    assert all(writing.finish_reason is not None for writing in writings)
    assert [writing.written for writing in writings] == list(heard.values())
    return list(heard.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_text_is_the_same_alone_and_in_a_batch(name: str) -> None:
    model = make_model(name)
    together = written_by(Engine(model), requests())
    alone = [written_by(Engine(model), [request])[0] for request in requests()]
    assert together == alone and list(map(len, alone)) == [40, 0, 25, 60, 60, 9]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("context", [32, 9])
def test_a_batch_computed_together_gives_the_same_texts(name: str, use_cache: bool, context: int) -> None:
    """What an accelerator does; in float64, where the rounding of a row does not depend on the others."""
    model = make_model(name).double()
    stop = 17
    batch = requests(stop_id=stop)
    together = written_by(Engine(model, together=True, use_cache=use_cache, context_length=context), batch)
    alone = [written_by(Engine(model, context_length=context), [request])[0] for request in batch]
    assert together == alone and all(stop not in ids for ids in alone)
    assert len(set(map(len, alone))) > 3, "some ended early"


def test_a_batch_is_one_forward_pass_per_token() -> None:
    model = make_model("nanogpt")
    shapes = []
    model.register_forward_pre_hook(lambda _module, arguments: shapes.append(tuple(arguments[0].shape)))
    batch = [Request(prompt_ids=prompt_of(n), max_new_tokens=w) for n, w in ((4, 3), (6, 1), (4, 4))]
    written_by(Engine(model, together=True), batch)
    # The second row reads its prompt while the others write, and leaves after its one token.
    assert shapes == [(3, 4), (3, 1), (3, 1), (1, 1)]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("together", [True, False])
def test_the_cache_bytes_are_those_of_the_formula(name: str, together: bool) -> None:
    """After 5 prompt tokens and 9 written ones, the last of which is never read, 13 are held; at most 32."""
    model = make_model(name)
    per_token = 4 * model_cost(CONFIGS[name], 32).cache_numbers_per_token
    engine = Engine(model, together=together)
    writings = [
        engine.start(Request(prompt_ids=prompt_of(5), max_new_tokens=w, seed=w)) for w in (9, 9, 90, 0)
    ]
    for _ in engine.rounds(writings):
        pass
    assert [w.cache_bytes for w in writings] == [13 * per_token, 13 * per_token, 32 * per_token, 0]


# ---- text


def pieces_of(text: str, stop: list[str]) -> tuple[list[str], bool]:
    stream, shown = TextStream(ByteTokenizer(), stop), []
    for byte in text.encode():
        shown.append(stream.push(byte))
        if stream.stopped:
            return shown, True
    return [*shown, stream.finish()], False


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="ab\u00e9\U0001f600", max_size=12),
    stop=st.lists(st.text(alphabet="ab\u00e9", min_size=1, max_size=4), max_size=3),
)
def test_a_text_ends_before_its_first_stop_string(text: str, stop: list[str]) -> None:
    """Against every prefix: the text ends where the first of them becomes complete."""
    complete_at = [n for n in range(len(text) + 1) if any(text[:n].endswith(one) for one in stop)]
    expected = text
    if complete_at:
        so_far = text[: complete_at[0]]
        expected = min((so_far[: so_far.find(one)] for one in stop if one in so_far), key=len)
    shown, stopped = pieces_of(text, stop)
    assert "".join(shown) == expected and stopped == bool(complete_at)


def test_text_is_shown_as_soon_as_it_is_certain() -> None:
    assert pieces_of("abcab!", ["abx"])[0] == ["", "", "abc", "", "", "ab!", ""]
    assert pieces_of("caf\u00e9", [])[0] == ["c", "a", "f", "", "\u00e9", ""]
    assert pieces_of("ab", ["abx"])[0] == ["", "", "ab"]


def test_pieces_of_a_batch_are_put_in_order() -> None:
    pieces = [
        Piece(1, "x"),
        Piece(0, "a"),
        Piece(2, "p", "stop"),
        Piece(0, "b", "stop"),
        Piece(1, "", "length"),
    ]
    assert [(p.row, p.text) for p in in_order(iter(pieces), 3)] == [
        (0, "a"), (0, "b"), (1, "x"), (1, ""), (2, "p"),
    ]  # fmt: skip


def test_completions_of_several_prompts() -> None:
    model = make_model("nanokimi", vocab_size=256)
    tokenizer = ByteTokenizer()
    wanted = TextSettings(max_new_tokens=20, seed=4, num_samples=2, sampling=Sampling(temperature=1.0))
    found = complete(model, tokenizer, ["one", "a longer prompt"], wanted)
    assert [one.prompt for one in found] == ["one"] * 2 + ["a longer prompt"] * 2
    assert [one.seed for one in found] == [4, 5, 4, 5] and len({one.text for one in found}) == 4
    for one in found:
        ids = generate(model, tokenizer.encode(one.prompt).tolist(), 20, temperature=1.0, seed=one.seed)
        assert one.text == tokenizer.decode(list(ids))
        assert (one.finish_reason, one.tokens, one.prompt_tokens) == ("length", 20, len(one.prompt))
    stop = found[0].text[7:9]
    again = complete(model, tokenizer, "one", TextSettings(**{**vars(wanted), "stop": (stop,)}))
    assert again[0].text == found[0].text[: found[0].text.find(stop)] and again[0].finish_reason == "stop"
    assert again[0].tokens < 20, "it ended when the stop string was complete"
    nothing = complete(model, tokenizer, "one", TextSettings(max_new_tokens=0))
    assert (nothing[0].text, nothing[0].finish_reason) == ("", "length")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stop": ("",)}, "a stop string is empty"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63 - 1, "num_samples": 2}, "below 2^63"),
        ({"sampling": Sampling(min_p=1.5)}, "min_p is 1.5"),
        ({"sampling": Sampling(repetition_penalty=0.0)}, "repetition_penalty is 0.0"),
        ({"sampling": Sampling(temperature=float("nan"))}, "temperature is nan"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("^", r"\^")):
        requests_of(ByteTokenizer(), ["a"], TextSettings(**changes))


def test_a_reader_may_stop_early() -> None:
    model = make_model("nanokimi", vocab_size=256).train()
    engine = Engine(model)
    writings = [engine.start(r) for r in requests_of(ByteTokenizer(), ["a"], TextSettings())]
    stream: Iterator[Piece] = stream_pieces(engine, ByteTokenizer(), writings)
    next(stream)
    assert not model.training
    stream.close()  # type: ignore[attr-defined]
    assert model.training


def test_a_batch_that_does_not_fit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Engine, "_read", full)
    with pytest.raises(MemoryError, match="out of memory while writing 3 texts: write fewer at once"):
        complete(make_model("nanogpt"), ByteTokenizer(), ["a"] * 3, TextSettings())


# ---- `nanokimi sample`


def test_samples_have_seeds_counted_up(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(make_run())

    def texts(*options: str) -> list[str]:
        assert cli.main(["sample", run, *options]) == 0
        printed = capsys.readouterr().out.split("--- ")[1:]
        return [one.partition("\n")[2] for one in printed]

    both = texts("--num_samples", "2", "--seed", "5")
    assert both == [*texts("--seed", "5"), *texts("--seed", "6")] and both[0] != both[1]
    assert cli.main(["sample", run, "--num_samples", "2", "--seed", "5"]) == 0
    assert "--- NanoKimi, sample 2, seed 6\nthe small boy" in capsys.readouterr().out
    stop = both[0][len("the small boy") + 4]
    assert texts("--seed", "5", "--stop", stop) == [
        "the small boy" + both[0].removeprefix("the small boy").partition(stop)[0] + "\n"
    ]
    assert texts("--seed", "5", "--min_p", "1") == texts("--seed", "6", "--top_k", "1")
    assert texts("--seed", "5", "--repetition_penalty", "50") != texts("--seed", "5")
    assert cli.main(["sample", run, "--prompt", "a " * 30, "--max_new_tokens", "3", "--stats"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "nanokimi: note: the prompt has 60 tokens, and the model reads the last 16"
    assert said[1].startswith("nanokimi: 60 tokens read, 3 written, ended by length, cache ")


def test_piped_lines_are_prompts(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot be used costs one line, not the program."""
    run = str(make_run(model="nanogpt"))
    lines = b"the dog\n\n\xff\r\nthe dog"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert cli.main(["sample", run, "--interactive", "--temperature", "1.5"]) == 0
    printed = capsys.readouterr()
    first, second = printed.out.split("--- NanoGPT\n")[1:]
    assert first.startswith("the dog") and second.startswith("the dog") and first != second
    assert printed.err == "nanokimi: a line that is not UTF-8 is left out\n"
    assert cli.main(["sample", run, "--interactive", "--prompt", "x"]) == 2
    assert "leave out --prompt" in capsys.readouterr().err


def test_ctrl_c_stops_the_text_and_not_the_program(make_run: Callable[..., Path]) -> None:
    command = [sys.executable, "-m", "nanokimi", "sample", str(make_run()), "--interactive"]
    mine, its = pty.openpty()
    process = subprocess.Popen(
        [*command, "--max_new_tokens", "100000000"], stdin=its, stdout=its, stderr=its, start_new_session=True
    )
    os.close(its)
    heard = ""

    def wait_for(*words: str) -> None:
        nonlocal heard
        deadline = time.monotonic() + PATIENCE
        while not all(word in heard for word in words):
            assert time.monotonic() < deadline, heard[-500:]
            heard += os.read(mine, 65536).decode(errors="replace")

    try:
        for word in ("small", "boys"):
            heard = heard if word == "small" else ""
            wait_for("> ") if word == "small" else None
            os.write(mine, f"the {word}\n".encode())
            wait_for(f"--- NanoKimi\r\nthe {word}")
            length = len(heard)
            while len(heard) < length + 50:  # it writes
                heard += os.read(mine, 65536).decode(errors="replace")
            process.send_signal(2)
            heard = ""
            wait_for("nanokimi: stopped", "> ")
        os.write(mine, b"\x04")
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        os.close(mine)


def test_a_wrong_length_of_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="context_length is 33, the model has positions for 1 to 32"):
        Engine(build_model(CONFIGS["nanogpt"], 0), context_length=33)
