"""`nanokimi inspect`: one offline page in which all text is escaped, or a table in the terminal."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY_GPT, TINY_KIMI
from rich.console import Console

import nanokimi as nk
from nanokimi import cli
from nanokimi.cli.inspect import write_page
from nanokimi.data.tokenizers.own import ByteTokenizer
from nanokimi.errors import UserError
from nanokimi.inside import Subject, attention_map, look
from nanokimi.inside.inspection import Inspection
from nanokimi.inside.look import LayerExperts
from nanokimi.inside.page import MOST_PAGE_BYTES, fitted, fragment, page
from nanokimi.inside.payload import packed, packed_bytes
from nanokimi.inside.terminal import load_line, print_view, shade
from nanokimi.inside.view import View, Wanted, spread
from nanokimi.model.build import build_model

HOSTILE = "</script><b onclick=x>&\u2028\x1b[2J\u202e\u4f60\n"


def byte_subject(config: Any = TINY_KIMI, context: int = 64) -> Subject:
    sizes = replace(config, vocab_size=256, max_position_embeddings=context, initializer_range=0.3)
    return Subject("A <b>model</b></script>", build_model(sizes, seed=1), ByteTokenizer(), context, tau=100.0)


def data_of(html: str) -> list[dict[str, Any]]:
    """What the script of a page is given."""
    found = re.findall(r'<script type="application/json">(.*?)</script>', html, flags=re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])  # type: ignore[no-any-return]


def comparison(make_run: Callable[..., Path], folder: Path) -> Path:
    """A comparison's folder of two arms that share their data."""
    for model in ("nanokimi", "nanogpt"):
        run = make_run(f"{folder.name}/{model}/seed-7", model)
        (folder / "data").exists() or shutil.copytree(run / "data", folder / "data")
        shutil.rmtree(run / "data")
    return folder


def test_hostile_text_is_shown_as_text() -> None:
    subject = byte_subject()
    html = page([View(look(subject, list(HOSTILE.encode()), prompt_tokens=5))])
    assert "<b>" not in html and "<b " not in html and "\x1b" not in html
    assert html.count("<script") == html.count("</script") == 2
    assert "\u202e" not in html and "\u2028" not in html
    one = data_of(html)[0]
    shown = "".join(token["text"] for token in one["tokens"])
    assert shown.startswith(
        "</script><b onclick=x>&<U+2028>\u2082\u2083\u241b[2J<U+202E>\u2082\u2083\u4f60\u2082\u2083\u21b5"
    )
    assert one["name"] == "A <b>model</b></script>"  # tokens are single bytes, and this is whole


def test_the_page_fetches_nothing_and_says_so() -> None:
    html = page([View(look(byte_subject(), list(b"hello")))])
    assert "default-src 'none'" in html and not re.search(r"https?:|//[a-z]+\.|@import|url\(", html)
    one = fragment([View(look(byte_subject(), list(b"hello")))])
    assert all(part in html for part in one) and one.html.startswith('<div class="nanokimi-inside">')


def test_the_page_holds_the_numbers_of_the_look() -> None:
    subject = byte_subject()
    ids = list(b"the small boy")
    found = look(subject, ids, prompt_tokens=4)
    (view,) = fitted([(View(found), subject)], Wanted())
    one = data_of(page([view]))[0]
    assert [token["id"] for token in one["tokens"]] == ids and one["written"] == len(ids) - 4
    for token, shown in zip(found.tokens[1:], one["tokens"][1:], strict=True):
        assert token.expected is not None and shown["bits"] == pytest.approx(token.surprise, abs=1e-4)
        assert shown["expected"]["ids"] == [each.id for each in token.expected.alternatives]
        assert all(str(each.id) in one["labels"] for each in token.expected.alternatives)
    layer, packed_layer = found.experts[0], one["experts"][0]
    gates = np.frombuffer(base64.b64decode(packed_layer["gates"]), dtype="<u2").reshape(len(ids), -1)
    for place in range(len(ids)):
        own = dict(layer.of(place))
        assert set(np.flatnonzero(gates[place])) == set(own)
        for expert, gate in own.items():
            assert gates[place, expert] / 65535 * packed_layer["most"] == pytest.approx(gate, abs=1e-4)
    assert len(one["maps"]) == 4 and one["mapsNote"] == ""
    exact = attention_map(subject, ids, 1, 0)
    shown = next(each for each in one["maps"] if (each["layer"], each["head"]) == (1, 0))
    roots = np.frombuffer(base64.b64decode(shown["data"]), dtype=np.uint8)
    rows, columns = np.tril_indices(len(ids))
    assert exact is not None and np.allclose(
        roots / 255, np.sqrt(exact.weights_TT[rows, columns]), atol=0.003
    )
    assert len(shown["data"]) == packed_bytes(len(ids)) == len(packed(exact.weights_TT))


def test_maps_that_do_not_fit_are_left_out_and_counted() -> None:
    subject = byte_subject()
    view, ids = View(look(subject, list(b"the small boy"))), 13
    bare = len(page([view]).encode())
    (cut,) = fitted([(view, subject)], Wanted(), bare + 20_000 + 3 * packed_bytes(ids))
    assert [(one.layer, one.head) for one in cut.maps] == [(0, 0), (0, 1), (1, 0)]
    assert "3 of 4 maps are here" in cut.maps_note and cut.maps_note in page([cut])
    (chosen,) = fitted([(view, subject)], Wanted(layer=1, head=1))
    assert [(one.layer, one.head) for one in chosen.maps] == [(1, 1)] and chosen.maps_note == ""
    (none,) = fitted([(view, subject)], Wanted(), bare)
    assert none.maps == () and none.maps_note.endswith("Even one is too large: choose a shorter text.")
    assert spread([], 3) == []


def test_the_largest_text_that_is_promised_fits(tmp_path: Path) -> None:
    """500 tokens, experts, two models: at most 3 MB with the maps that fit."""
    ids = np.random.default_rng(0).integers(0, 256, 500).tolist()
    pairs = [(View(look(one, ids)), one) for one in (byte_subject(), byte_subject(TINY_GPT))]
    views = fitted(pairs, Wanted())
    assert 1_000_000 < len(page(views).encode()) <= MOST_PAGE_BYTES
    assert all(view.maps for view in views)


def test_a_page_that_is_too_large_without_maps_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command and by the function: the limit is a promise to whoever mails it."""
    subject = byte_subject()
    found = Inspection(subject, View(look(subject, list(b"the small boy"))))
    monkeypatch.setattr("nanokimi.inside.page.MOST_PAGE_BYTES", 20_000)
    for write in (found.save, lambda path: write_page(path, [(found.view, subject)], Wanted())):
        with pytest.raises(UserError, match="20,000 are the most: choose a shorter prompt"):
            write(tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_inspect_writes_the_text_of_sample(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = comparison(make_run, tmp_path / "both")
    words = ["--prompt", "the dog", "--seed", "3", "--max-new-tokens", "6"]
    assert cli.main(["sample", str(folder), *words]) == 0
    said = capsys.readouterr().out
    out = tmp_path / "out.html"
    command = ["inspect", str(folder), *words, "--favourites", "64", "--html", str(out)]
    assert cli.main(command) == 0
    assert f"Open: {out} (" in capsys.readouterr().out
    models = data_of(out.read_text(encoding="utf-8"))
    for one in models:
        text = "".join(token["text"] for token in one["tokens"]).replace("\u21b5", "")
        assert f"--- {one['name']}\n{text}" in said
        assert one["written"] == len(one["tokens"]) - 7 and len(one["maps"]) == 4
    assert [one["name"] for one in models] == ["NanoGPT", "NanoKimi"]
    assert models[0]["experts"] == [] and models[0]["favourites"] is None
    assert models[1]["favourites"]["tokens"] == 64 and models[1]["tau"] is not None
    before = out.read_bytes()
    assert cli.main(command) == 2 and out.read_bytes() == before
    assert "inspect never overwrites: choose another --html" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".out", "out"))) == [
        "out.html"
    ]
    one = ["inspect", str(folder), *words[:4], "--max-new-tokens", "0", "--arm", "NanoKimi", "--layer", "1"]
    assert cli.main(one) == 0
    table = capsys.readouterr().out
    assert table.startswith("--- NanoKimi: 7 tokens, 0 written") and "NanoGPT" not in table
    assert "layer 1, head 0 looks at" in table and "experts, by layer" in table and "\x1b" not in table
    assert len(re.findall(r"^ ?\d\.  ", table, flags=re.MULTILINE)) == 7


def test_bad_input_is_one_line_and_leaves_nothing(
    make_run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run()
    monkeypatch.chdir(tmp_path)
    Path("taken.html").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    page_too = "--html x.html --favourites 0 --max_new_tokens 1"
    for words, part in (
        ("", "name a run, a comparison or several runs"),
        ("missing", "missing is not a folder"),
        (".", "is no run, but holds one: name run"),
        ("run --promt x", "there is no option --promt here"),
        ("run --prompt=", "empty prompt"),
        (f"run --prompt {'a' * 17}", "the prompt has 17 tokens, and NanoKimi reads 16 at once: shorten it"),
        ("run --head 1", "--head needs --layer"),
        ("run --layer 2 --max_new_tokens 1", "there is no layer 2: the model has layers 0 to 1"),
        (f"run --layer -1 {page_too}", "there is no layer -1: the model has layers 0 to 1"),
        (f"run --layer 0 --head 2 {page_too}", "there is no head 2: the model has heads 0 to 1"),
        ("run --layer one", "--layer is one: expected a whole number"),
        ("run --html taken.html", "taken.html exists, and inspect never overwrites"),
        ("run --html none/x.html", "there is no folder none for x.html"),
        ("run --html=", "option --html is empty"),
        ("run --favourites -1", "--favourites is -1"),
        ("run --arm nanokimi", "run is one run and has no arms"),
        ("run --max_new_tokens -5", "--max_new_tokens is -5: it must be 0 or more"),
        ("run run run run run", "5 models are too many"),
    ):
        assert cli.main(["inspect", *words.split()]) == 2, words
        said = capsys.readouterr()
        assert part in said.err and said.err.count("\n") == 1 and said.out == "", (words, said)
    assert sorted(tmp_path.rglob("*")) == before and run.is_dir()


def test_the_table_is_readable_without_colours_and_without_unicode() -> None:
    subject = byte_subject()
    view = View(look(subject, list("a \u4f60\x1b".encode()), prompt_tokens=2))
    shown: dict[str, str] = {}
    for name, colours in (("plain", None), ("colour", "truecolor")):
        console = Console(width=120, force_terminal=colours is not None, color_system=colours, record=True)  # type: ignore[arg-type]
        with console.capture() as capture:
            print_view(view, console)
        shown[name] = capture.get()
    assert "\x1b" not in shown["plain"] and "\u241b" in shown["plain"]
    assert "\x1b[" in shown["colour"] and "\x1b\x1b" not in shown["colour"]
    for mark in (
        "\u2588",
        "\u4f60",
        "likeliest in its place",
        "QK-Clip's tau is 100",
        "keys and values of every head",
    ):
        assert mark in shown["plain"]


def test_the_more_surprise_the_stronger_the_shade() -> None:
    """In steps of two bits, up to five colours; what nothing predicts has none."""
    assert shade(None) == shade(0.0) == shade(1.9) == ""
    shades = [shade(bits) for bits in (2.0, 4.0, 6.0, 8.0)]
    assert len(set(shades)) == 4 and "" not in shades and shade(100.0) == shades[-1]
    greens = [int(one.partition("#")[2][2:4], 16) for one in shades]
    assert greens == sorted(greens, reverse=True), "darker and darker, also in grey"


def test_the_balanced_share_is_exact() -> None:
    layer = LayerExperts(layer=1, experts=8, shared=0, choices=None, load=np.full(8, 0.125))
    assert "(balanced: 12.5)" in load_line(layer)


def test_a_notebook_shows_what_inspect_returns(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run()
    found = nk.inspect(run, "the dog", max_new_tokens=5, favourite_tokens=32, seed=3)
    html = found._repr_html_()
    assert "<style>" in html and data_of(html)[0]["favourites"]["tokens"] == 32
    assert found.look.text.startswith("the dog") and "12 tokens" in repr(found)
    assert found.attention(1, 0).shape == (12, 12)
    with pytest.raises(UserError, match="no layer 5"):
        found.attention(5, 0)
    loaded = nk.inspect(nk.load(run), "the dog", max_new_tokens=5, seed=3)
    assert loaded.look.bits == found.look.bits and loaded.look.tau is None
    path = found.save(tmp_path / "page.html")
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    with pytest.raises(UserError, match="never overwrites"):
        found.save(path)
