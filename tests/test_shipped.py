"""The models that ship: what the folder holds, what its card says, and that the weights are those of the run."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import nanokimi as nk
from nanokimi.measure.evaluate import evaluate
from nanokimi.pretrained import run_path
from nanokimi.runtime.files import read_json
from nanokimi.train.run_folder import Run, first_seeds, open_run

ROOT = Path(nk.__file__).parent.parent
FOLDER = run_path("tales-1m")
DOCUMENTS = 4


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    return {path.parent.name: open_run(path) for path in first_seeds(FOLDER)}


def test_the_weights_are_small_and_both_models_are_there(runs: dict[str, Run]) -> None:
    assert set(runs) == {"nanokimi", "nanogpt-with-muon"}
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.safetensors")) <= 8_000_000


def test_nothing_names_the_machine_that_trained() -> None:
    texts = [
        path
        for path in FOLDER.rglob("*")
        if path.suffix in (".json", ".jsonl", ".yaml", ".html", ".md", ".txt")
    ]
    assert len(texts) > 10
    named = re.compile(r"(?<![\w.])/(?:root|home|work|tmp|Users)/")
    assert not [path.name for path in texts if named.search(path.read_text(encoding="utf-8"))]


def test_the_loss_of_whole_stories_is_that_of_the_run_up_to_rounding(runs: dict[str, Run]) -> None:
    for run in runs.values():
        ends = run.data.test_doc_offsets[: DOCUMENTS + 1]
        first = run.data.metadata | {"sources": []}  # whose documents come first: they are all of one text
        ids = run.data.test_ids[: int(ends[-1])]
        few = replace(run.data, test_ids=ids, test_doc_offsets=ends, metadata=first)
        found = evaluate(run.model, few, run.config.train.context_length, DOCUMENTS, part="test").window_nats
        before = np.load(run.folder / "window_nats.npy")[:DOCUMENTS]
        assert np.diff(ends).max() <= run.config.train.context_length
        assert found == pytest.approx(before, rel=0.05) and (found != before).any()


def test_the_card_and_the_page_say_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import pretrained_texts

    models = read_json(FOLDER / pretrained_texts.SHIPPED_FILE)["models"]
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == pretrained_texts.card(models)
    assert (ROOT / "docs" / "pretrained.md").read_text(encoding="utf-8") == pretrained_texts.docs_page(models)
    for model in models:
        result = read_json(FOLDER / model["folder"] / "result.json")
        for name, text in model["texts"].items():
            assert text["before"] == result["test_sources"][name]["loss"]
            assert abs(text["loss"] - text["before"]) < 0.002
        assert model["bytes"] == (FOLDER / model["folder"] / "model.safetensors").stat().st_size
    sys.modules.pop("pretrained_texts", None)


def test_the_page_shows_the_baselines_of_the_record_and_the_models_are_better() -> None:
    """The 5-gram had once counted short stories only, and was worse than the unigram."""
    report = read_json(FOLDER / "report.json")
    losses = {name: one["test_loss"] for name, one in report["data"]["baselines"].items()}
    models = [run["test_loss"] for run in report["runs"]]
    assert losses["floor"] < min(models) <= max(models) < losses["5-gram"] < losses["unigram"]
    page = (FOLDER / "report.html").read_text(encoding="utf-8")
    for name in ("5-gram", "unigram"):
        assert (
            f'<th scope="row">{name}</th><td class="n" data-label="Test loss (nats)">{losses[name]:.4f}</td>'
            in page
        )


def test_a_shipped_model_writes_at_once() -> None:
    model, tokenizer = nk.load("tales-1m")
    (text,) = nk.complete(model, tokenizer, "Once upon a time", max_new_tokens=20)
    assert len(text.text) > 20
