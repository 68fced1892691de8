"""Several texts, such as languages: shares of the training tokens, parts and scores of each text on its own."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import TINY_GPT
from report_fixture import write_comparison, write_report_json

from nanokimi.cli import main
from nanokimi.cli.evaluate import evaluation_text
from nanokimi.compare.report import read_by_gzip, score_baselines
from nanokimi.compare.summary import summary_table
from nanokimi.config import DatasetConfig, RunConfig, TrainConfig
from nanokimi.config.files import load_config, save_config
from nanokimi.config.rules import validate
from nanokimi.data.batches import Mixture, Prefetched, sample_batch
from nanokimi.data.build import find_store
from nanokimi.data.changes import changed_source
from nanokimi.data.corpus import Corpus
from nanokimi.data.mixture import weighted_texts
from nanokimi.data.overlap import content_hash
from nanokimi.data.parts import PARTS, Ranges
from nanokimi.data.store import PreparedData, open_prepared, prepare, val_openings
from nanokimi.errors import UserError
from nanokimi.interop.card import numbers, text_lines
from nanokimi.measure.evaluate import evaluate
from nanokimi.model.build import build_model
from nanokimi.report import page
from nanokimi.report.records import read_comparison
from nanokimi.train.state import build_state

END = "<|endoftext|>"
ENGLISH = "the small boy found a red ball and gave it to his friend".split()
GERMAN = "der kleine junge fand einen roten ball und gab ihn seinem freund zur\u00fcck".split()


def sentence(words: list[str], number: int, length: int = 14) -> str:
    """A document, different for each number."""
    rng = np.random.default_rng(number)
    return " ".join([*rng.choice(words, length), str(number)])


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A table with a column for each language, and a single text."""
    rows = [{"en": sentence(ENGLISH, i), "de": sentence(GERMAN, i)} for i in range(120)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "whole.txt").write_text(
        "\n".join(sentence(ENGLISH, i).upper() for i in range(60)), encoding="utf-8"
    )
    return tmp_path


def mixed(folder: Path, *weights: float, **settings: Any) -> DatasetConfig:
    """English, German and, with a third weight, a single text."""
    sources: list[dict[str, Any]] = [
        {"name": "english", "path": str(folder / "pairs.jsonl"), "text_column": "en"},
        {"name": "german", "path": str(folder / "pairs.jsonl"), "text_column": "de"},
        {"name": "whole", "path": str(folder / "whole.txt")},
    ]
    named = [{**one, "weight": weight} for one, weight in zip(sources, weights, strict=False)]
    return DatasetConfig(**{"sources": tuple(named), "tokenizer": "byte", "workers": 1, **settings})


def stretch(data: PreparedData, part: str, number: int) -> str:
    """The text of one source in a part."""
    sizes = [one[f"{part}_tokens"] for one in data.sources]
    start = sum(sizes[:number])
    return data.tokenizer.decode(getattr(data, f"{part}_ids")[start : start + sizes[number]])


def test_each_text_has_its_parts_as_if_it_were_alone(texts: Path) -> None:
    data = prepare(mixed(texts, 2, 1, 1), texts / "out", 8)
    alone = prepare(
        DatasetConfig(path=str(texts / "pairs.jsonl"), text_column="de", tokenizer="byte", workers=1),
        texts / "de",
        8,
    )
    for part in PARTS:
        assert stretch(data, part, 1) == data.tokenizer.decode(getattr(alone, f"{part}_ids"))
        assert "small" not in stretch(data, part, 1).replace("SMALL", "")
        assert stretch(data, part, 2).isupper() or stretch(data, part, 2).count(END) == 1
        for kind in ("tokens", "text_bytes", "text_chars", "documents"):
            assert sum(one[f"{part}_{kind}"] for one in data.sources) == data.metadata[f"{part}_{kind}"]
    whole = (texts / "whole.txt").read_text()
    assert "".join(stretch(data, part, 2).removesuffix(END) for part in PARTS) == whole
    assert data.metadata["path"] == "english, german, whole"
    assert [round(one["share"], 6) for one in data.sources] == [0.5, 0.25, 0.25]
    assert len(val_openings(data)) == 3 and "ball" not in val_openings(data)[2]


def test_other_weights_train_otherwise_and_are_scored_on_the_same_text(texts: Path) -> None:
    """So pages and pictures set their runs side by side."""
    one, other = (prepare(mixed(texts, weight, 1), texts / str(weight), 8) for weight in (1, 3))
    assert one.fingerprint != other.fingerprint and one.scoring_sha256 == other.scoring_sha256
    assert one.metadata["sha256"] == other.metadata["sha256"]
    assert prepare(mixed(texts, 1), texts / "en", 8).metadata["sha256"] != one.metadata["sha256"]


def test_windows_lie_in_one_text_and_keep_the_shares() -> None:
    ids, context = np.arange(1000), 7
    mixture = Mixture(np.array([0, 900, 960]), np.array([900, 60, 40]), np.array([0.2, 0.5, 0.3]))
    rows = np.concatenate(
        [
            sample_batch(ids, seed=3, index=i, batch_size=100, context_length=context, mixture=mixture)[0]
            for i in range(40)
        ]
    )
    first, last = (np.searchsorted([900, 960], rows[:, place], side="right") for place in (0, -1))
    assert np.array_equal(first, last)
    shares = np.bincount(first) / len(rows)
    assert np.allclose(shares, mixture.shares, atol=5 * math.sqrt(0.25 / len(rows)))
    # targets are in the text, too, and every place of the smallest text is drawn
    assert rows[:, -1].max() < 999 and set(rows[first == 2, 0]) == set(range(960, 1000 - context))


def test_batches_follow_from_seed_and_index_also_when_opened_again(
    texts: Path, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepare(mixed(texts, 3, 1), texts / "out", 16)
    config = replace(tiny_config(), dataset=mixed(texts, 3, 1))
    model = replace(config.nanogpt.model, vocab_size=257, max_position_embeddings=16)
    config = replace(config, model="nanogpt", nanogpt=replace(config.nanogpt, model=model))
    state = build_state(config, data, tmp_path)
    monkeypatch.setattr("nanokimi.train.state.COPY_SEARCH_TOKENS", 200)
    german = data.sources[0]["train_tokens"]
    starts = [data.tokenizer.decode(data.train_ids[start : start + 100]) for start in (0, german)]
    assert state.training_text == "".join(starts), "stories in any language are searched for copies"
    again = Prefetched(data.train_ids, 7, 8, 16, open_prepared(texts / "out").mixture)
    state.batches.at(0)
    assert all(np.array_equal(a, b) for a, b in zip(state.batches.at(5), again.at(5), strict=True))
    plain = Prefetched(data.train_ids, 7, 8, 16)
    assert not np.array_equal(plain.at(5)[0], again.at(5)[0])


def test_weights_are_part_of_what_a_store_and_a_resumed_run_know(texts: Path) -> None:
    one, other = mixed(texts, 1, 1), mixed(texts, 1, 4)
    assert find_store(one).path != find_store(other).path
    prints = [prepare(each, texts / f"out{i}", 8).fingerprint for i, each in enumerate((one, other))]
    assert prints[0] != prints[1]


def test_gzip_remembers_the_end_of_each_text(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = prepare(mixed(texts, 3, 1), texts / "out", 16)
    monkeypatch.setattr("nanokimi.compare.report.GZIP_WINDOW_BYTES", 400)
    english, german = (stretch(data, "train", number).encode() for number in (0, 1))
    assert read_by_gzip(data) == english[-300:] + german[-100:]
    monkeypatch.setattr("nanokimi.measure.baselines.MAX_TRAINING_TOKENS", 3000)
    scores = score_baselines(data)
    five_gram, unigram = (scores[name]["test_loss"] for name in ("5-gram", "unigram"))
    assert five_gram is not None and unigram is not None and five_gram < unigram / 2


def test_near_copies_are_found_across_texts(texts: Path) -> None:
    ranges = Ranges.of(DatasetConfig())
    long = [sentence(ENGLISH, 1000 + i, 60) for i in range(60)]
    tested = next(text for text in long if ranges.part_of(content_hash(text.encode())) == "test")
    copies = (f"{tested} again {i}" for i in range(100))
    copy = next(text for text in copies if ranges.part_of(content_hash(text.encode())) == "train")
    rows = [sentence(GERMAN, i) for i in range(120)]
    for name, documents in (("a", long), ("b", [*rows, copy])):
        (texts / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": one}) for one in documents))
    sources = tuple({"name": name, "path": str(texts / f"{name}.jsonl")} for name in "ab")
    data = prepare(DatasetConfig(sources=sources, tokenizer="byte", workers=1), texts / "out", 8)
    assert data.metadata["near_duplicates_across_split"] == 1
    assert "again" not in stretch(data, "train", 1) and tested in stretch(data, "test", 0)


def test_each_text_is_scored_on_its_own(texts: Path) -> None:
    data = prepare(mixed(texts, 1, 1, 1), texts / "out", 32)
    model = build_model(replace(TINY_GPT, vocab_size=data.tokenizer.vocab_size, initializer_range=0.2), 0)
    whole = evaluate(model, data, 32, part="test")
    assert list(whole.sources) == ["english", "german", "whole"]
    begin = 0
    for one in data.sources:
        end = begin + one["test_tokens"]
        offsets = data.test_doc_offsets.astype(np.int64)
        own = offsets[(offsets >= begin) & (offsets <= end)] - begin
        facts = {key: one[key] for key in one if key.startswith("test_")}
        alone = replace(
            data,
            test_ids=data.test_ids[begin:end],
            val_ids=data.test_ids[end - 1 : end],  # an end-of-text before it
            test_doc_offsets=own,
            metadata={key: value for key, value in data.metadata.items() if key != "sources"} | facts,
        )
        expected, found = evaluate(model, alone, 32, part="test"), whole.sources[one["name"]]
        for score in ("loss", "bits_per_byte", "bits_per_char"):
            assert found[score] == pytest.approx(getattr(expected, score), rel=1e-5)
        begin = end
    tokens = [one["tokens"] for one in whole.sources.values()]
    losses = [one["loss"] for one in whole.sources.values()]
    assert np.average(losses, weights=tokens) == pytest.approx(whole.loss)
    assert whole.record()["test_sources"] == whole.sources


def test_a_tokenizer_sees_the_texts_by_their_weights(tmp_path: Path) -> None:
    documents = [b"x" * 100] * 30 + [b"y" * 100] * 10
    (tmp_path / "train.txt").write_bytes(b"".join(documents))
    np.arange(0, 4100, 100, dtype="<u8").tofile(tmp_path / "train.offsets")
    corpus = Corpus(tmp_path, {"source_units": {"train": [30, 10]}, "source_chars": [3000, 1000]})
    sources = tuple({"name": name, "path": "p", "weight": weight} for name, weight in (("a", 1), ("b", 3)))
    text = "".join(weighted_texts(corpus, DatasetConfig(sources=sources)))
    assert (text.count("x"), text.count("y")) == (1000, 3000)


@pytest.mark.parametrize("several", [True, False])
def test_init_from_takes_one_text_for_several_and_several_for_one(
    several: bool, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text that is given replaces the run's, of which only the tokenizer is kept."""
    one, two = DatasetConfig(path=str(texts / "whole.txt")), mixed(texts, 1, 3)
    run = RunConfig(dataset=one if several else two, train=TrainConfig(max_steps=1))
    save_config(run, texts / "config.yaml")
    (texts / "data").mkdir()
    words = [f"--dataset.sources={json.dumps(two.sources)}"] if several else ["--data", one.path]
    assert main(["train", "--init-from", str(texts), *words, "--print-config"]) == 0, capsys.readouterr().err
    (texts / "printed.yaml").write_text(capsys.readouterr().out)
    found = load_config(str(texts / "printed.yaml")).dataset
    assert (found.path, found.sources) == (("", two.sources) if several else (one.path, ()))
    assert found.tokenizer == str(texts / "data" / "tokenizer.json")


def test_a_changed_text_is_named(texts: Path) -> None:
    dataset = mixed(texts, 1, 1, 1)
    data = prepare(dataset, texts / "out", 8)
    assert changed_source(dataset, data, texts / "out") is None
    for other in (mixed(texts, 1, 1, 2), mixed(texts, 1, 1), DatasetConfig(path=str(texts / "whole.txt"))):
        assert changed_source(other, data, texts / "out") == "dataset.sources", "config.yaml was edited"
    (texts / "whole.txt").write_text("another text\n" * 200)
    assert changed_source(dataset, data, texts / "out") == str(texts / "whole.txt")


def test_sizes_that_do_not_add_up_are_refused(texts: Path) -> None:
    prepare(mixed(texts, 1, 1), texts / "out", 8)
    path = texts / "out" / "data.json"
    content = json.loads(path.read_text())
    content["sources"][0]["val_tokens"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="damaged.*val_tokens"):
        open_prepared(texts / "out")


TWO = [{"name": "a", "path": "a.jsonl"}, {"name": "b", "path": "b.jsonl"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": -1}, "sources[1].weight is -1: it must be a number above 0"),
        ({"weight": True}, "sources[1].weight is True"),
        ({"name": "A"}, "two texts are named 'A'"),
        (
            {"name": False},
            "sources[1].name is False: expected text (in YAML, put a word such as no in quotes)",
        ),
        ({"name": "a\nb"}, "it must be printable"),
        ({"name": "a/b"}, "without '/'"),
        ({"path": ""}, "sources[1].path is ''"),
        ({"column": "x"}, "no setting 'column'; the nearest is text_column"),
    ],
)
def test_impossible_sources_are_one_line(change: dict[str, Any], message: str) -> None:
    dataset = DatasetConfig(sources=(TWO[0], {**TWO[1], **change}))
    with pytest.raises(UserError) as caught:
        validate(RunConfig(dataset=dataset))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "a.txt"}, "are both set"),
        ({"text_column": "de"}, "dataset.text_column has no effect with dataset.sources"),
        ({"split": "nanogpt"}, "dataset.split has no effect with dataset.sources"),
    ],
)
def test_settings_of_one_text_are_refused_for_several(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(RunConfig(dataset=DatasetConfig(sources=tuple(TWO), **settings)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"text_column": "fr"},
            "dataset.sources, second: .*no column 'fr'.*name another with its text_column$",
        ),
        ({"path": "empty.txt"}, "is empty"),
        ({"path": "blank.jsonl"}, "dataset.sources, second .* has no document to train on"),
        ({"path": "missing.txt"}, "does not exist"),
        ({"path": "tokens"}, "holds tokens, which cannot be mixed"),
        ({"path": "few.jsonl"}, "dataset.sources, second .* has no document to (validate|test) with"),
    ],
)
def test_texts_that_cannot_be_mixed_are_one_line(
    texts: Path, change: dict[str, str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (texts / "empty.txt").write_text("")
    (texts / "blank.jsonl").write_text('{"text": " "}\n' * 9)
    (texts / "few.jsonl").write_text('{"text": "only this"}\n')
    (texts / "tokens").mkdir()
    for name in ("train.bin", "val.bin"):
        (texts / "tokens" / name).write_bytes(b"\0\0" * 99)
    second = {"name": "second", "path": "pairs.jsonl", **change}
    second["path"] = str(texts / second["path"])
    sources = [{"name": "first", "path": str(texts / "pairs.jsonl"), "text_column": "en"}, second]
    out = texts / "out"
    assert main(["prepare", f"--dataset.sources={json.dumps(sources)}", "--out", str(out)]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("nanokimi: ")
    assert re.search(message, error)
    assert not out.exists()


def test_the_shorter_text_must_hold_a_window(texts: Path) -> None:
    with pytest.raises(UserError, match=r"whole .* needs 4002: use more of it"):
        prepare(mixed(texts, 1, 1, 1), texts / "out", 4000)


def scores(bits: float) -> dict[str, dict[str, float]]:
    """What a run says of two texts."""
    one = {"tokens": 1000, "loss": bits / 2, "bits_per_byte": bits, "bits_per_char": bits}
    return {"english": one, "german": {**one, "bits_per_byte": 2 * bits}}


def test_a_report_and_the_tables_have_every_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = write_comparison(tmp_path, names=("NanoKimi", "NanoGPT"))
    for number, run in enumerate(report["runs"]):
        run["test_sources"] = scores(1 + number / 10)
    sizes = {"train_tokens": 50_000, "val_tokens": 5000, "test_tokens": 1000}
    report["data"]["sources"] = [
        {"name": "english", "path": "en.txt", "share": 0.75, **sizes},
        {"name": "german", "path": "de.txt", "share": 0.25, **sizes},
    ]
    write_report_json(tmp_path, report)
    monkeypatch.setattr(page, "svg", lambda *_: "")  # drawing takes longer than all else
    text = page.render(page.make_context(*read_comparison(tmp_path)))
    section = text[text.index("Text by text") :][:4000]
    assert "1.1000 \u00b1 0.1414" in section and "2.2000 \u00b1 0.2828" in section  # seeds 1.0 and 1.2
    tokens = report["runs"][0]["tokens"]
    assert "75.0%" in section and f"{0.75 * tokens / 50_000:.3g}"[:4] in section

    arms = [{**arm, "test_sources": scores(1.5)} for arm in report["arms"]]
    lines = summary_table(arms).splitlines()
    assert [line.split() for line in lines if "german" in line] == [["german", "3.0000", "3.0000"]]
    record = {
        "name": "A",
        "seed": 1,
        "folder": "x",
        "test_tokens": 9,
        "test_loss": 1.0,
        "test_perplexity": 2.0,
    }
    record |= {"test_bits_per_byte": 1.5, "test_bits_per_char": 1.5, "test_sources": scores(1.5)}
    table = evaluation_text([record], "test").splitlines()
    assert table[-1].split() == ["A", "1", "german", "1,000", "0.7500", "3.0000", "1.5000"]


def test_a_model_card_names_every_text_without_its_path(texts: Path) -> None:
    run = SimpleNamespace(data=prepare(mixed(texts, 3, 1), texts / "out", 8))
    first, second = text_lines(run)  # type: ignore[arg-type]
    assert first.startswith("- text: english, `pairs.jsonl`, 75.0% of the training tokens, SHA-256")
    assert "german" in second and str(texts) not in first + second
    rows = numbers({"test_loss": 1.0, "test_sources": scores(1.5)}, "final")
    assert "| test bits per byte, german | 3.0000 |" in rows
