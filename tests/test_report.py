"""The report shows what the folders say, ranks nothing that may not be ranked, and needs nothing but itself."""

from __future__ import annotations

import ast
import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_fixture import write_comparison, write_report_json

from nanokimi.errors import UserError
from nanokimi.report import page as report_page
from nanokimi.report import records, units, write_report
from nanokimi.report.incidents import incident_lines
from nanokimi.report.metrics import (
    PARAMS,
    PEAK_MEMORY,
    STEP_TIME,
    TEST_LOSS,
    TRAIN_TIME,
    make_costs,
    winner_of,
)
from nanokimi.report.pairs import caveats, headline, spread_words
from nanokimi.report.picture import draw_bars, draw_costs
from nanokimi.report.plots import PAPER, position_losses
from nanokimi.report.records import Arm, Run
from nanokimi.report.search_note import is_caution, search_note
from nanokimi.runtime.files import read_json

FEW: dict[str, Any] = {"searched": False, "kinds": ("train", "eval", "sample", "event")}
"""A report with a third of the figures, whose drawing is most of the time that a test takes."""
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
LOADING = ("script", "link", "img", "iframe", "object", "embed", "audio", "video", "base", "form")


class Page(HTMLParser):
    """A page as its tags, its text, and whether every tag was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def sections(self) -> set[str]:
        return {attrs["id"] or "" for tag, attrs in self.tags if tag == "section" and "id" in attrs}

    def classes(self) -> list[str]:
        return [name for _, attrs in self.tags for name in (attrs.get("class") or "").split()]


def page_of(folder: Path) -> tuple[Page, str]:
    """The page of a folder, without the picture, whose drawing takes long."""
    html = report_page.render(report_page.make_context(*records.read_comparison(folder)))
    return parsed(html), html


def parsed(html: str) -> Page:
    """A page, each of whose links must lead to one of its sections."""
    found = Page(html)
    links = {(attrs["href"] or "")[1:] for tag, attrs in found.tags if tag == "a"}
    assert links <= found.sections()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A long comparison of three arms and two seeds with everything in it, and its report; not to be written to."""
    folder = tmp_path_factory.mktemp("comparison")
    write_comparison(folder, steps=2000, eval_every=100)
    write_report(folder)
    return folder


def read(folder: Path) -> tuple[Page, str]:
    html = (folder / "report.html").read_text(encoding="utf-8")
    return parsed(html), html


def test_page_needs_no_network(folder: Path) -> None:
    page, html = read(folder)
    own = [tag for tag, attrs in page.tags if tag == "script" and "src" not in attrs]
    assert [tag for tag, _ in page.tags if tag in LOADING] == own
    for tag, attrs in page.tags:
        for name in ("src", "href", "xlink:href", "data", "srcset"):
            value = attrs.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value[:80])
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", html))
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_same_folder_gives_the_same_page(folder: Path) -> None:
    assert page_of(folder)[1] == read(folder)[1]


def test_every_reference_inside_the_page_has_one_target(folder: Path) -> None:
    """A clip path whose id two figures share would cut one figure by the other's frame."""
    page, html = read(folder)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', html)) <= set(ids)


def test_numbers_are_those_of_the_folder(folder: Path) -> None:
    report = read_json(folder / "report.json")
    text = read(folder)[0].text
    assert report["verdict"]["sentence"] in text
    for pair in report["comparisons"]:
        assert f"{pair['mean']:+.4f}" in text and f"{pair['ci95'][0]:+.4f} to {pair['ci95'][1]:+.4f}" in text
    for run in report["runs"]:
        assert f"{run['test_loss']:.4f}" in text, "of each seed"
    for arm in report["arms"]:
        assert f"{arm['test_loss']:.4f} \u00b1 {arm['deviation']:.4f}" in text
        assert f"{arm['test_bits_per_byte']:.4f}" in text
        assert f"{arm['params_total']:,.0f}" in text and f"{arm['tokens']:,.0f}" in text
        assert f"{arm['peak_memory_bytes'] / 1e6:.0f} MB" in text
    for baseline in report["data"]["baselines"].values():
        assert f"{baseline['bits_per_byte']:.4f}" in text
    for segment in report["segments"]:
        for arm in segment["arms"].values():
            assert f"{arm['train_loss']:.4f}" in text
    for shared in (report["repeat"], report["command"], report["data"]["sha256"]):
        assert shared in text


def test_what_a_model_wrote_and_what_an_event_says_is_text_and_not_markup(tmp_path: Path) -> None:
    hostile = '<script>alert(1)</script>\n  two  spaces & <b>bold</b> "quoted"'
    names, kinds = ("<i>NanoKimi</i>", "NanoGPT"), ("eval", "sample", "router")
    report = write_comparison(
        tmp_path, searched=False, prompt="<script>x</script>", story=hostile, names=names, kinds=kinds
    )
    event = {"kind": "event", "step": 3, "event": "out_of_memory", "detail": "<script>alert(2)</script>"}
    with (tmp_path / report["runs"][0]["folder"] / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")
    page, html = page_of(tmp_path)
    assert "<script>x" not in html and "<script>alert" not in html
    assert all("alert(" not in one for one in re.findall(r"<script.*?</script>", html, re.DOTALL))
    assert "<b>bold" not in html and "<i>NanoKimi" not in html
    assert any('two  spaces & <b>bold</b> "quoted"' in text for text in page.texts)
    assert "<script>alert(2)</script>" in page.text


def test_leaking_arm_is_named_and_nothing_is_ranked(tmp_path: Path) -> None:
    write_comparison(tmp_path, searched=False, kinds=(), outcomes={"NanoGPT": "LEAKING"})
    page, _ = page_of(tmp_path)
    assert "LEAKING: its numbers are void" in page.text
    assert "NanoGPT (LEAKING)" in page.text and "position 3 sees token 9" in page.text
    assert "won" not in page.classes()


def test_an_arm_without_an_audit_is_shown_and_not_ranked(tmp_path: Path) -> None:
    report = write_comparison(tmp_path, searched=False, kinds=())
    for run in report["runs"]:
        if run["arm"] == "NanoGPT":
            del run["audit"]
    write_report_json(tmp_path, report)
    page, _ = page_of(tmp_path)
    assert "No verdict: NanoGPT (not audited)" in page.text


def test_leaking_arm_is_not_ranked_even_if_the_verdict_says_so(tmp_path: Path) -> None:
    report = write_comparison(tmp_path, **FEW, outcomes={"NanoKimi": "LEAKING"})
    report["verdict"] |= {"ranked": True, "winner": "NanoKimi"}
    _, arms = records.read_comparison(tmp_path)
    assert winner_of(TEST_LOSS, arms, report["verdict"]) is None
    assert winner_of(TRAIN_TIME, arms, report["verdict"]) == "NanoGPT", "the sound ones are"


def test_one_seed_names_no_winner(tmp_path: Path) -> None:
    report = write_comparison(tmp_path, searched=False, kinds=(), seeds=(1337,))
    report["verdict"]["winner"] = "NanoKimi"
    report["spread"] = {"seed": 0.05, "rounding": 0.02, "runs": 24, "file": "docs/results/null.jsonl"}
    write_report_json(tmp_path, report)
    page, _ = page_of(tmp_path)
    assert "won" not in page.classes() and "one seed: decides nothing" in page.text
    assert "0.0200 by rounding alone (standard deviations over 24 runs" in spread_words(report)
    report["spread"]["rounding"] = None
    assert "from seed to seed (standard deviation over 24 runs" in spread_words(report)
    _, arms = records.read_comparison(tmp_path)
    assert winner_of(TRAIN_TIME, arms, report["verdict"]) is None


def test_what_was_searched_stands_in_the_report(tmp_path: Path) -> None:
    report = write_comparison(tmp_path, kinds=())
    hyperparameter = {"low": 5e-4, "high": 6.4e-2, "scale": "log", "setting": "optim.lr"}
    report["arms"][0]["search"] = {
        "kind": "search",
        "cpu_seconds": 240.0,
        "file": "tales.json",
        "space": {"lr": hyperparameter},
        "design": "8 Sobol points",
        "seeds": [2337],
        "best": {"optim.lr": 0.02},
        "loss": 1.3,
        "trials": 3,
        "runs": 4,
        "interior": {"lr": False},
        "table": [{"values": {"lr": 0.02}, "losses": [1.3, 1.4]}, {"values": {"lr": 0.04}, "losses": [None]}],
        "sensitivity": {"lr": [[0.01, 1.5], [0.02, 1.3], [0.04, None]]},
        "changed": ["optim.lr"],
    }
    write_report_json(tmp_path, report)
    text = page_of(tmp_path)[0].text
    for part in (
        "AT THE EDGE",
        "8 Sobol points",
        "diverged",
        "Not as in the search: optim.lr",
        "not searched",
        "NOT THE SAME SEARCH",
    ):
        assert part in text, part
    older = "which does not record the settings that were not searched"
    assert text.count(older) == len(report["arms"])
    report["arms"][0]["search"]["settings"] = {"train.batch_size": 8}
    write_report_json(tmp_path, report)
    assert page_of(tmp_path)[0].text.count(older) == len(report["arms"]) - 1


def test_whoever_reads_a_verdict_is_told_if_the_arms_did_not_have_the_same_chance(tmp_path: Path) -> None:
    """A setting of one arm that is changed after its search, such as its rate, once passed for the same search."""
    arms = write_comparison(tmp_path, kinds=())["arms"]
    assert search_note(arms).startswith("Every arm was tuned with the same search")
    conditions = [
        {**arm, "search": {**arm["search"], "changed": ["train.max_steps", "dataset.path"]}} for arm in arms
    ]
    elsewhere = " It was made with other values of dataset.path and train.max_steps."
    assert search_note(conditions) == search_note(arms) + elsewhere, "another text is another text for all"
    *others, last = arms
    own = {**last, "search": {**last["search"], "changed": ["optim.lr", "dataset.path"]}}
    found = search_note([*others, own])
    assert found.startswith("NOT AS SEARCHED") and "NanoGPT (optim.lr). The search was made" in found
    assert found.endswith("with other values of dataset.path."), "another text does not go unsaid beside it"
    assert is_caution(found) and is_caution(search_note(conditions)) and not is_caution(search_note(arms))
    fewer = {**last, "search": {**last["search"], "trials": 4}}
    assert search_note([*others, fewer]).endswith("differ in trials.")
    assert search_note([*others, {**last, "search": None}]).endswith("no search was made for NanoGPT.")
    assert search_note([{**arm, "search": None} for arm in arms]).startswith("NOT TUNED")
    assert search_note([{**arms[0], "search": None}]) == ""


def test_the_bars_of_the_picture_show_their_seeds(tmp_path: Path) -> None:
    """A mean without its spread looked as certain as a count of parameters."""
    from matplotlib.figure import Figure

    write_comparison(tmp_path, kinds=())
    _, arms = records.read_comparison(tmp_path)
    for arm in arms:
        for number, run in enumerate(arm.runs):
            run.metadata["ms_per_step"] = 40.0 + number
    costs = make_costs(arms, [STEP_TIME, PARAMS])
    axes = Figure().add_subplot()
    draw_costs(axes, PAPER, arms, costs)
    top = max(costs[0][2])
    drawn = [line.get_xdata() for line in axes.lines]
    timed = [[run.metadata["ms_per_step"] / top for run in arm.runs] for arm in arms]
    assert drawn == [pytest.approx([min(one), max(one)]) for one in timed], "parameters do not differ"
    axes = Figure().add_subplot()
    draw_bars(axes, PAPER, [("mine", "black", 1.0, [0.9, 1.1, 1.0]), ("gzip", "grey", 3.0, [])], "Bits")
    assert [list(line.get_xdata()) for line in axes.lines] == [[0.9, 1.1]]


def test_quality_without_a_winner_is_not_marked(tmp_path: Path) -> None:
    """The interval held zero: the lower loss is no win, the lower cost still is."""
    report = write_comparison(tmp_path, **FEW)
    report["verdict"]["winner"] = None
    _, arms = records.read_comparison(tmp_path)
    assert winner_of(TEST_LOSS, arms, report["verdict"]) is None
    assert winner_of(TRAIN_TIME, arms, report["verdict"]) == "NanoGPT"


def test_costs_within_two_percent_are_a_tie() -> None:
    def arm(name: str, slot: int, peak: int) -> Arm:
        runs = tuple(Run(seed=seed, metadata={"audit": {"causal": True}}, records=[]) for seed in (1, 2))
        return Arm(name=name, slot=slot, metadata={"peak_memory_bytes": peak}, runs=runs)

    verdict = {"ranked": True, "winner": None}
    assert winner_of(PEAK_MEMORY, [arm("a", 0, 1000), arm("b", 1, 1010)], verdict) is None
    assert winner_of(PEAK_MEMORY, [arm("a", 0, 1100), arm("b", 1, 1000)], verdict) == "b"


def test_sections_without_data_are_left_out(tmp_path: Path, folder: Path) -> None:
    full, _ = read(folder)
    optional = {"loss", "position", "segments", "memory", "router", "logits", "stories"}
    assert optional <= full.sections()
    report = write_comparison(tmp_path / "bare", kinds=())
    report["data"]["baselines"] = {}
    report["segments"] = []
    for run in report["runs"]:
        run["loss_by_position"] = []
    write_report_json(tmp_path / "bare", report)
    bare, _ = page_of(tmp_path / "bare")
    assert not optional & bare.sections()
    assert "Load CV" not in bare.text and "unigram" not in bare.text


def test_positions_that_few_texts_reach_are_not_drawn() -> None:
    """A mean over three tokens at the end of the longest story would stand out of the picture and say nothing."""

    def losses(**counts: list[int]) -> list[float]:
        run = Run(seed=1, metadata={"loss_by_position": [3.0, 2.0, 1.0, 9.0], **counts}, records=[])
        return position_losses(Arm(name="a", slot=0, metadata={}, runs=(run, run)))

    assert losses(tokens_by_position=[100, 90, 10, 3]) == [3.0, 2.0, 1.0]
    assert losses(tokens_by_position=[2, 2, 2, 1]) == [3.0, 2.0, 1.0, 9.0]
    assert losses() == [3.0, 2.0, 1.0, 9.0], "a result of an older version"
    assert position_losses(Arm(name="a", slot=0, metadata={}, runs=())) == []


def test_eight_runs_are_all_shown(tmp_path: Path) -> None:
    names = tuple(f"arm {i}" for i in range(8))
    write_comparison(tmp_path, searched=False, names=names, seeds=(1,))
    write_report(tmp_path)
    page, _ = read(tmp_path)
    assert all(name in page.text for name in names)


def test_one_run_is_a_report_and_its_prompt_is_not_told_twice(tmp_path: Path) -> None:
    words = {"prompt": "Once upon", "story": "Once upon a time"}
    write_comparison(tmp_path, searched=False, names=("NanoKimi",), seeds=(1,), steps=40, **words)
    page, _ = page_of(tmp_path)
    assert "NanoKimi" in page.text
    assert page.texts.count("Once upon") == 3, (
        "after each of two evaluations, and the last on the first screen"
    )
    assert not [text for text in page.texts if text.startswith("Once upon a")]


def incidents_of(page: Page) -> str:
    """The block of that name, up to the table after it."""
    return page.text.partition("Incidents ")[2].partition("At equal budgets")[0]


def test_incidents_are_told_with_their_steps_and_losses(tmp_path: Path) -> None:
    report = write_comparison(tmp_path, **FEW, steps=400, eval_every=50, incidents=True)
    page, _ = page_of(tmp_path)
    told = incidents_of(page)
    spikes = sorted(report["runs"][0]["spikes"], key=lambda s: s["usual"] - s["loss"])
    assert [spike["step"] for spike in spikes] == [280, 320, 380, 220]
    named = [f"step {s['step']} ({s['loss']:.2f} against a usual {s['usual']:.2f})" for s in spikes]
    assert f"4 loss spikes, the highest at {named[0]}, {named[1]} and {named[2]}." in told
    assert "2 batches skipped, at steps 120 and 124, because" in told
    assert "Rolled back to an earlier state once, at step 128," in told
    assert "Ran out of memory once, at step 20, and went on with micro-batches of 6 (12 windows" in told
    assert "Interrupted and resumed once, at step 200." in told
    assert "1 loss spike, at step 240 (" in told and "seed 1338" in told
    assert "Hollow marks on the upper edge: loss spikes." in page.text
    assert "some batches were skipped (see Incidents)" in page.text


def test_without_incidents_nothing_is_said_of_them(tmp_path: Path) -> None:
    """An old report, which has none of the fields, and a new one where all are empty are the same page."""
    report = write_comparison(tmp_path, **FEW, names=("NanoKimi",), seeds=(1,))
    write_report(tmp_path)
    old, png = read(tmp_path)[1], (tmp_path / "comparison.png").read_bytes()
    assert "Incidents" not in old and "spike" not in old and "skipped" not in old
    for run in report["runs"]:
        run |= {"spikes": [], "batches_skipped": 0, "micro_batch_size": 4}
    write_report_json(tmp_path, report)
    write_report(tmp_path)
    assert read(tmp_path)[1] == old
    assert (tmp_path / "comparison.png").read_bytes() == png


def test_one_sort_of_incident_alone(tmp_path: Path) -> None:
    """Counts without events, and a spike whose record is not there to be marked."""
    for skipped, told in ((1, "1 batch skipped, because"), (1200, "1,200 batches skipped, because")):
        (line,) = incident_lines(Run(seed=1, metadata={"batches_skipped": skipped}, records=[]))
        assert told in line
    report = write_comparison(tmp_path, searched=False, kinds=("train", "eval"))
    report["runs"][2] |= {"spikes": [{"step": 9000, "loss": 3.0, "usual": 1.5}]}
    write_report_json(tmp_path, report)
    told_of = incidents_of(page_of(tmp_path)[0])
    assert "1 loss spike, at step 9,000 (3.00 against" in told_of
    assert "NanoGPT" in told_of and "NanoKimi" not in told_of


def test_many_incidents_stay_short(tmp_path: Path) -> None:
    many = [
        {"kind": "event", "step": i, "event": "nonfinite_skipped", "detail": "x" * 999} for i in range(90)
    ]
    many += [{"kind": "event", "step": 7, "event": "out_of_memory", "detail": "<b>\n" + "y" * 999}]
    spikes = [{"step": i + 1, "loss": 2.0 + i, "usual": 1.0} for i in range(80)]
    arm = Run(seed=1, metadata={"spikes": spikes}, records=many)
    assert len(" ".join(incident_lines(arm))) < 700
    assert (
        "80 loss spikes, of which the 25 highest are marked, the highest at step 80" in incident_lines(arm)[0]
    )
    assert "90 batches skipped, at steps 0, 1, 2 and 87 more," in incident_lines(arm)[1]
    assert "\n" not in incident_lines(arm)[2]


def test_spikes_are_placed_where_they_happened(tmp_path: Path) -> None:
    """The highest first, even in a run that has more than can be marked."""
    write_comparison(tmp_path, **FEW, steps=400, eval_every=50, incidents=True)
    _, arms = records.read_comparison(tmp_path)
    run = arms[0].runs[0]
    assert records.spike_places(run, "step") == [280, 320, 380, 220]
    seconds = records.spike_places(run, "train_seconds")
    assert seconds == pytest.approx([step * 0.0413 for step in (280, 320, 380, 220)])
    spikes = [{"step": i + 1, "loss": 2.0 + i, "usual": 1.0} for i in range(80)]
    busy = Run(seed=1, metadata={"spikes": spikes}, records=run.records)
    assert records.spike_places(busy, "step") == list(range(80, 80 - records.MAX_SPIKES, -1))


def test_long_run_stays_small(folder: Path) -> None:
    assert len(read(folder)[1]) < 4e6
    _, arms = records.read_comparison(folder)
    xs, ys = records.training_curve(arms[0].runs, "step")
    assert len(xs) == len(ys) == records.MAX_POINTS
    assert xs[0] == 1 and xs[-1] == 2000


def test_trailing_mean_by_hand() -> None:
    assert records.trailing_mean([4.0, 2.0, 6.0, 1.0], 2) == [4.0, 3.0, 4.0, 3.5]


def test_thinning_keeps_a_spike() -> None:
    xs, ys = records.peaks(([float(i) for i in range(1000)], [0.0] * 499 + [7.0] + [0.0] * 500), limit=50)
    assert len(xs) == 50 and xs[-1] == 999 and max(ys) == 7.0


def test_loss_axis_forgets_the_start(tmp_path: Path) -> None:
    write_comparison(tmp_path, steps=400, eval_every=50)
    _, arms = records.read_comparison(tmp_path)
    curves = [records.validation_curve(arm.runs, "step") for arm in arms]
    low, high = records.loss_limits(curves)
    assert low < curves[0][1][-1] < high < curves[0][1][0]


def test_equal_time_is_read_between_two_evaluations(tmp_path: Path) -> None:
    write_comparison(tmp_path, steps=400, eval_every=50)
    _, arms = records.read_comparison(tmp_path)
    row = next(row for row in records.equal_budgets(arms) if row["key"] == "train_seconds")
    slow, _, fast = (records.validation_curve(arm.runs, "train_seconds") for arm in arms)
    assert row["budget"] == fast[0][-1] < slow[0][-1]
    assert row["losses"]["NanoGPT"] == fast[1][-1]
    after = next(i for i, seconds in enumerate(slow[0]) if seconds > row["budget"])
    assert slow[1][after] < row["losses"]["NanoKimi"] < slow[1][after - 1]


def test_expert_shares_average_to_one(tmp_path: Path) -> None:
    write_comparison(tmp_path, names=("NanoKimi",), seeds=(1,), steps=3000, eval_every=1000)
    _, arms = records.read_comparison(tmp_path)
    edges, shares = records.expert_shares(arms[0].kind("router"), 1)
    columns = len(shares[0])
    assert len(edges) == columns + 1 <= records.MAX_COLUMNS + 1
    assert edges[-1] == 3000 and edges == sorted(set(edges))
    for column in range(columns):
        assert math.isclose(sum(row[column] for row in shares), 1.0)


def test_broken_folders_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"report\.json"):
        write_report(tmp_path)
    report = write_comparison(tmp_path)
    (tmp_path / "nanogpt" / "seed-1337" / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        write_report(tmp_path)
    write_report_json(tmp_path, {**report, "schema_version": 99})
    with pytest.raises(UserError, match="99"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("show", "value", "expected"),
    [
        (units.short, 1_234_567, "1.23 M"),
        (units.short, 999_600, "1,000 k"),
        (units.short, 12, "12"),
        (units.count, 1_234_567, "1,234,567"),
        (units.size, 512_300_000, "512 MB"),
        (units.size, 640, "640 B"),
        (units.milliseconds, 1234.5, "1,234 ms"),
        (units.milliseconds, 0.0421, "0.0421 ms"),
        (units.seconds, 83.21, "83.2 s"),
        (units.seconds, 605.4, "10 min 05 s"),
        (units.seconds, 7260, "2 h 01 min"),
        (units.relative, 1.68, "+68 %"),
        (units.relative, 0.6, "-40 %"),
        (units.relative, 4.2, "4.20x"),
        (units.fixed, None, "n/a"),
    ],
)
def test_units(show: Any, value: float | None, expected: str) -> None:
    assert show(value) == expected


def test_report_imports_only_the_runtime() -> None:
    runtime = ("nanokimi.runtime.drawing", "nanokimi.runtime.files", "nanokimi.runtime.text")
    allowed = (*runtime, "nanokimi.errors", "nanokimi.report")
    for path in (Path(records.__file__).parent).glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                assert module.startswith(allowed) or module.split(".")[0] in sys.stdlib_module_names, (
                    path,
                    module,
                )


def test_the_headline_has_every_loss_and_the_lead_with_its_interval(tmp_path: Path) -> None:
    report = write_comparison(tmp_path, **FEW)
    _, arms = records.read_comparison(tmp_path)
    losses = [arm["test_loss"] for arm in report["arms"]]
    kimi, muon, adamw = (f"{loss:.3f}" for loss in losses)
    said = f"NanoKimi {kimi}, NanoGPT with Muon {muon}, NanoGPT {adamw} nats per token; "
    ahead = f"NanoKimi ahead by {abs(report['comparisons'][0]['mean']):.3f} \u00b1 0.060, two seeds"
    assert headline(report, arms) == said + ahead
    report["verdict"]["winner"] = None
    apart = ahead.replace("NanoKimi ahead by ", "NanoKimi and NanoGPT with Muon not distinguishable (")
    assert headline(report, arms) == said + apart.replace(", two", " apart), two")
    assert "<h1" in page_of(tmp_path)[1] and said in page_of(tmp_path)[0].text


def test_the_headline_claims_nothing_without_seeds_or_after_a_leak(tmp_path: Path) -> None:
    one = write_comparison(tmp_path / "one", **FEW, seeds=(1,))
    assert headline(one, records.read_comparison(tmp_path / "one")[1]).endswith("; one seed, so no winner")
    void = write_comparison(tmp_path / "void", **FEW, outcomes={"NanoKimi": "LEAKING"})
    _, arms = records.read_comparison(tmp_path / "void")
    said = headline(void, arms)
    assert said.startswith("No verdict: NanoKimi (LEAKING); NanoGPT with Muon ") and "ahead" not in said
    found = caveats(void, arms, [{"key": "5-gram", "nats": 0.5}], "NOT THE SAME SEARCH: x.")
    assert found[0].startswith("NanoKimi did not pass its audit") and found[-1] == "NOT THE SAME SEARCH: x."
    assert "A 5-gram model, which only counts, does better: 0.500 nats per token." in found
    assert caveats(void, arms[1:], [{"key": "5-gram", "nats": 9.0}], "Every arm was tuned alike.") == []
