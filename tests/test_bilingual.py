"""The trial of two languages in a mixture, benchmarks/bilingual.py: sections are documents, weights change losses."""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import TINY_ARMS
from test_mixture import ENGLISH, GERMAN

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SETTINGS = f"""\
seed: 1
dataset: {{tokenizer: bpe, vocab_size: 300, workers: 1}}
train: {{context_length: 16, batch_size: 8, max_steps: 80, eval_every: 80, dtype: fp32, device: cpu, threads: 1}}
{TINY_ARMS}
arms:
  NanoGPT: {{from: nanogpt}}
"""
PAGE = """<?xml version="1.0"?>
<html><head><title>Not text</title><link rel="next" href="x"/></head><body>
<div class="navheader"><table><tr><th>Links<br>above</th></tr></table></div>
<div class="chapter"><div class="titlepage"><h1 class="title"><a id="one"/>Chapter 1.\u00a0Only a title</h1></div>
<div class="toc"><dl><dt><span>1.1. <a href="x">A list</a></span></dt></dl></div>
<div class="section"><div class="titlepage"><h2>1.1. Bread</h2></div>
<p>Bread &amp; butter
   is <em>good</em>.</p><hr/><pre>apt install <b>bread</b></pre>
<ul><li><p>One</p></li><li><p>Two<br/>three</p></li></ul>
<table><tr><td>bread</td></tr></table></div>
<div class="section"><div class="titlepage"><h2>1.2. Tea</h2></div><h3>Tip</h3><p>Hot.</p></div></div>
<div class="navfooter"><p>Links below</p></div></body></html>
"""


@pytest.fixture
def bilingual(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/bilingual.py, which is no package's."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("bilingual")


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/bilingual_text.py."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("bilingual_text")


def test_a_section_is_a_document_without_links_commands_and_tables(texts: ModuleType) -> None:
    assert texts.sections_of(PAGE) == [
        "1.1. Bread\nBread & butter is good.\nOne\nTwo\nthree",
        "1.2. Tea\nTip\nHot.",
    ]


def test_what_nobody_has_translated_is_left_out(texts: ModuleType) -> None:
    german = ["1. Brot\nBread is good.", "2. Tee\nTee ist gut.", "Tea"]
    assert texts.without_untranslated(german, ["1. Bread\nBread is good.", "Tea"]) == ["1. Brot", german[1]]


def section(words: list[str], number: int) -> str:
    """A page's section of made-up sentences, different for each number."""
    chosen = random.Random(number).choices(words, k=40)
    return f'<div class="titlepage"><h2>{words[0]} {number}</h2></div><p>{" ".join(chosen)}.</p>'


def package(folder: Path, name: str, pages: dict[str, str]) -> Path:
    """A Debian package with these pages."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    root = folder / name
    (root / "DEBIAN").mkdir(parents=True)
    head = (
        f"Package: {name}\nVersion: 1.5\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
    )
    (root / "DEBIAN" / "control").write_text(head)
    (root / "usr").mkdir()
    for page, text in pages.items():
        (root / "usr" / page).write_text(text, encoding="utf-8")
    made = folder / f"{name}.deb"
    command = ["dpkg-deb", "--root-owner-group", "--build", str(root), str(made)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return made


def run(bilingual: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    monkeypatch.setattr("sys.argv", ["bilingual.py", *map(str, words)])
    status: int = bilingual.main()
    return status


def test_weights_change_what_each_language_costs(
    bilingual: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    english, german = ("".join(section(words, i) for i in range(60)) for words in (ENGLISH, GERMAN))
    packages = [
        package(tmp_path, "manual-en", {"ch01.en.html": english}),
        package(tmp_path, "manual-de", {"ch01.de.html": german}),
    ]
    (tmp_path / "tiny.yaml").write_text(SETTINGS, encoding="utf-8")
    words = ["--config", tmp_path / "tiny.yaml", "--seeds", "1", "--weights", "9:1", "1:9"]
    assert run(bilingual, monkeypatch, *packages, *words, "--out", tmp_path / "rows.jsonl") == 0
    (row,) = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert row["packages"] == {"manual-en": "1.5", "manual-de": "1.5"} and row["benchmark"] == "bilingual"
    assert [one["documents"] for one in row["texts"].values()] == [60, 60]
    first, second = row["mixtures"]
    assert [one["share"] for one in first["languages"].values()] == [0.9, 0.1]
    for mixture in (first, second):
        for facts in mixture["languages"].values():
            assert facts["passes"] == pytest.approx(
                facts["share"] * 80 * 8 * 16 / facts["train_tokens"], rel=1e-4
            )
    bits = [
        {name: score["bits_per_byte"] for name, score in one["runs"][0]["languages"].items()}
        for one in (first, second)
    ]
    assert bits[0]["English"] < bits[1]["English"] and bits[0]["German"] > bits[1]["German"]
    assert bits[0]["English"] < bits[0]["German"] and bits[1]["English"] > bits[1]["German"]
    kept = {key: value for key, value in row.items() if key not in ("command", "options")}
    assert str(tmp_path) not in json.dumps(kept) and row["options"]["config"] == "tiny.yaml"
    shown = capsys.readouterr().out
    assert f"| 9 to 1 | English | 90% | {first['languages']['English']['passes']:.2f} |" in shown


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        (None, "no Debian package that can be unpacked: "),
        (
            {"ch01.en.html": section(ENGLISH, 1), "index.html": "x"},
            r"no page of them is German \(\*\.de\.html\)",
        ),
    ],
)
def test_other_packages_are_refused(
    bilingual: ModuleType,
    pages: dict[str, str] | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = tmp_path / "missing.deb" if pages is None else package(tmp_path, "manual-en", pages)
    assert run(bilingual, monkeypatch, given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and re.search(message, line)


def mixture(weights: list[float], bits: dict[str, list[float]]) -> dict[str, Any]:
    """A mixture as it is recorded; `bits` are English by arm and seed, and German has twice as many."""
    languages = {
        name: {"share": share / sum(weights), "passes": share / 2, "bytes_per_token": 2.5}
        for name, share in zip(("English", "German"), weights, strict=True)
    }
    runs = [
        {
            "arm": arm,
            "seed": seed,
            "languages": {"English": {"bits_per_byte": b}, "German": {"bits_per_byte": 2 * b}},
        }
        for arm, values in bits.items()
        for seed, b in enumerate(values, 1)
    ]
    return {"weights": weights, "languages": languages, "runs": runs}


def test_the_table_has_mean_and_deviation_by_language(bilingual: ModuleType) -> None:
    lines = bilingual.mixture_table([mixture([3.0, 1.0], {"A": [2.0, 2.2], "B": [3.0]})]).splitlines()
    assert lines[0].endswith("| A (bits per byte) | B (bits per byte) |")
    assert lines[2:] == [
        "| 3 to 1 | English | 75% | 1.50 | 2.50 | 2.100 +- 0.141 | 3.000 |",
        "| 3 to 1 | German | 25% | 0.50 | 2.50 | 4.200 +- 0.283 | 6.000 |",
    ]


@pytest.mark.slow  # needs the packages
def test_the_packages_are_those_that_were_measured(bilingual: ModuleType, tmp_path: Path) -> None:
    packages = sorted(Path(os.environ.get("DEBIAN_MANUALS", "nowhere")).glob("debian-*.deb"))
    if not packages:
        pytest.skip("download the packages as docs/data.md says, and name their folder in DEBIAN_MANUALS")
    facts, _ = bilingual.write_languages(list(map(str, packages)), tmp_path)
    row = bilingual.recorded_row()
    if facts["packages"] != row["packages"]:
        pytest.skip("the packages are of other versions than those that were measured")
    assert facts["texts"] == row["texts"]
