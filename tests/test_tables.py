"""README's and the documents' tables are those that the recorded runs give, and a changed digit is found."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import tomllib
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from nanokimi.measure.audit import audit
from nanokimi.train.loop import MOST_WORK_LOST

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "tables.py"


def imported_tables() -> ModuleType:
    """benchmarks/tables.py, which is no package's."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import tables
    finally:
        sys.path.pop(0)
    return tables


def test_every_table_follows_from_the_recorded_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    assert imported_tables().main() == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", ["ladder-shakespeare", "ladder-tales"])
def test_the_pictures_of_withdrawn_ladders_are_of_the_recorded_runs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are drawn from the tables, whose differences and intervals must be those of the lines."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    pictures, tables = (importlib.import_module(module) for module in ("study_pictures", "study_tables"))
    recorded = tables.old_differences(pictures.RESULTS / "old" / f"{name}.jsonl")
    effects = pictures.old_effects(f"{name}-down.png")
    assert [one["name"] for one in effects] == [one for one in recorded if one.startswith("without ")]
    for one in effects:
        found = recorded[one["name"]]
        assert [one["mean"], *one["ci95"]] == pytest.approx([found.mean, found.low, found.high], abs=6e-5)


@pytest.mark.parametrize(("name", "document"), [("tales", "README.md"), ("speed", "docs/performance.md")])
def test_a_changed_digit_is_found(name: str, document: str, tmp_path: Path) -> None:
    """The check would fail: the table is replaced by what the runs say, whatever stood there."""
    tables = imported_tables()
    text = (ROOT / document).read_text(encoding="utf-8")
    begin = text.index(f"<!-- table {name}:")
    at = next(i for i in range(text.index("\n|---", begin), len(text)) if text[i].isdigit())
    changed = text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]
    (tmp_path / "changed.md").write_text(changed, encoding="utf-8")
    assert tables.filled(tmp_path / "changed.md", tables.DOCUMENTS[document]) == text


def test_a_table_of_pairs_claims_a_searchs_noise_only_where_a_search_is_recorded() -> None:
    tables = imported_tables()
    searched, unsearched = (tables.pair_table(name).splitlines()[0] for name in ("tales-short", "seed-2"))
    assert "searches' noise (decides)" in searched and "no search" not in searched
    assert "(decides: no search is recorded)" in unsearched and "noise" not in unsearched


@pytest.mark.parametrize("study", ["ladder-tales", "ladder-shakespeare"])
def test_a_gap_that_a_study_does_not_list_is_reckoned_as_those_that_it_lists(study: str) -> None:
    imported_tables()
    from prose_numbers import arm_gap
    from recorded import RESULTS
    from study_tables import study_report

    effects = {one["name"]: one for one in study_report(RESULTS / f"{study}.jsonl")["effects"]}
    for over in ("NanoGPT", "NanoGPT with Muon"):
        listed = effects[f"NanoKimi against {over}, per token"]
        high, low = (-bound for bound in listed["ci95"])
        wanted = f"{-listed['mean']:.3f} nats (95% interval {low:.3f} to {high:.3f})"
        assert arm_gap(study, "NanoKimi", over) == wanted


def test_a_missing_mark_is_no_silent_pass(tmp_path: Path) -> None:
    tables = imported_tables()
    (tmp_path / "README.md").write_text("# nothing here\n", encoding="utf-8")
    with pytest.raises(ValueError, match="expected"):
        tables.filled(tmp_path / "README.md", tables.DOCUMENTS["README.md"])


NOT_MEASURED = {
    "3.11": "the oldest Python, in pyproject.toml",
    "256": "positions, max_cuts of the audit",
    "5%": "MOST_WORK_LOST of train/loop.py",
    "0.25M 1M 5M 27M 100M 350M 1B": "names of presets; tests/test_presets.py counts their parameters",
    "0.25M 1M 5M 27M 1M": "those of them that have searched settings; tests/test_presets.py compares their searches",
}
"""Numbers of README's prose that no run decides, each held by a test; one that stands there twice is here twice."""
NAMES = r"Kimi K2|GPT-2|DeepSeek-V2|V3|seed \d|fp32|float64|5-gram|exit status 2"
FRACTIONS = r"half|halves|(?:third|quarter|fifth|sixth|seventh|eighth|ninth|tenth)s?|twice|thrice"
"""Measurements in words. An ordinal, such as "the third run", is found as well: say it otherwise."""


def numbers_in_prose(text: str) -> list[str]:
    """Those outside tables of measurements, code, links' targets and marks."""
    for pattern in (
        r"<!-- table (\S+):.*?<!-- end \1 -->",
        r"```.*?```",
        r"`[^`\n]*`",
        r"\]\([^)]*\)",
        r"<!--=[\w-]+-->[^<]*<!--=-->",
        NAMES,
    ):
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    return re.findall(rf"\d[\d.,]*(?<![.,])[%MBk]?|\b(?i:{FRACTIONS})\b", text)


def test_every_other_number_of_readme_is_made_by_the_same_command() -> None:
    found = numbers_in_prose((ROOT / "README.md").read_text(encoding="utf-8"))
    assert Counter(found) == Counter(number for numbers in NOT_MEASURED for number in numbers.split())


def test_a_number_written_by_hand_is_found() -> None:
    text = (
        "better by 0.07 nats, <!--=lead-->0.07<!--=-->, or 12% of Kimi K2's, at a sixth or four Fifths of it"
    )
    assert numbers_in_prose(text) == ["0.07", "12%", "sixth", "Fifths"]
    assert numbers_in_prose("one-half, <!--=fast-->1/6<!--=--> of it, behalf") == ["half"]


def test_a_changed_number_is_found_and_an_unknown_one_refused() -> None:
    tables = imported_tables()
    assert tables.with_numbers("<!--=leaky-->1<!--=-->") == tables.with_numbers("<!--=leaky-->2<!--=-->")
    with pytest.raises(ValueError, match="nothing is known of the number moon"):
        tables.with_numbers("<!--=moon-->1<!--=-->")


def test_what_no_run_decides_is_what_the_code_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11"
    assert inspect.signature(audit).parameters["max_cuts"].default == 256
    assert MOST_WORK_LOST == (0.05, 60.0)
