"""`nanokimi plot`: which runs are one arm, what each kind draws, and a page that needs nothing but itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from report_fixture import make_records, write_comparison
from test_report import LOADING, Page

from nanokimi import plot
from nanokimi.cli import main
from nanokimi.compare.plot import FORMATS, MOST_ARMS, Picture, _levels, _opened, shown_of
from nanokimi.config import RunConfig
from nanokimi.config.files import load_config, save_config
from nanokimi.errors import UserError
from nanokimi.report import drawn, plots, study_plots, switched, units
from nanokimi.report.drawn import as_page, as_png, as_svg
from nanokimi.report.kinds import CURVES, KINDS, OF_A_STUDY, Shown, axis_of, panels_of, test_scores
from nanokimi.report.pairs import make_strip
from nanokimi.report.picture import key_of_pairs
from nanokimi.report.plots import DASHES, HATCHES, LOSS, MARKERS, RC, Frame, band_of
from nanokimi.report.reading import SPREAD
from nanokimi.report.records import SLOTS, TOLD_APART, read_comparison, style_of
from nanokimi.runtime.drawing import drawing

test_scores.__test__ = False  # type: ignore[attr-defined]  # not a test, for all its name
RESULT = {
    "test_bits_per_byte": 1.5,
    "train_seconds": 20.0,
    "ms_per_step": 10.0,
    "peak_memory_bytes": 3e8,
    "audit": {"causal": True, "verdict": "causal"},
}


@pytest.fixture
def make(tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> Callable[..., Path]:
    """Makes a run's folder with the records of an arm; `train` replaces settings of that group."""

    def build(folder: str, name: str = "NanoKimi", seed: int = 1, *, done: bool = True, **train: Any) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True)
        model = "nanokimi" if name.startswith("NanoKimi") else "nanogpt"
        save_config(replace(tiny_config(**train), name=name, model=model, seed=seed), path / "config.yaml")
        records = make_records(name, seed, 40, 10, "A", "B")
        (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        if done:
            (path / "result.json").write_text(json.dumps(RESULT | {"train_seconds": 20.0 + seed}))
        return path

    return build


def arms_of(*folders: Path, kind: str = "loss") -> list[tuple[str, list[int]]]:
    return [(arm.name, [run.seed for run in arm.runs]) for arm in shown_of(folders, kind, None).arms]


def test_runs_that_differ_in_the_seed_alone_are_one_arm(make: Callable[..., Path]) -> None:
    one, two = make("a", seed=2), make("b", seed=1)
    other, gpt = make("c", seed=1, batch_size=16), make("d", "NanoGPT")
    arms = arms_of(one, two, other, gpt, one)
    assert arms == [("NanoKimi (a)", [1, 2]), ("NanoKimi (c)", [1]), ("NanoGPT", [1])]
    again = make("e", seed=2)  # the same seed twice is no spread over seeds
    assert arms_of(one, again) == [("NanoKimi (a)", [2]), ("NanoKimi (e)", [2])]


def test_a_comparison_has_its_own_order_and_an_arm_its_seeds(
    make: Callable[..., Path], tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    for name, folder in (("NanoKimi", "nanokimi"), ("NanoGPT", "nanogpt")):
        for seed in (3, 20):
            make(f"all/{folder}/seed-{seed}", name, seed)
    arms = {"NanoKimi": {"from": "nanokimi"}, "NanoGPT": {"from": "nanogpt"}}
    save_config(replace(tiny_config(), arms=arms), tmp_path / "all" / "config.yaml")
    assert arms_of(tmp_path / "all") == [("NanoKimi", [3, 20]), ("NanoGPT", [3, 20])]
    assert arms_of(tmp_path / "all" / "nanogpt") == [("NanoGPT", [3, 20])]


def test_a_run_in_progress_is_drawn_up_to_its_last_whole_record(make: Callable[..., Path]) -> None:
    run = make("run", done=False)
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(whole + '{"kind": "eval", "step": 50, "val_l')
    shown = shown_of([run], "loss", None)
    assert band_of(shown.arms[0], LOSS, "step").xs == [0, 10, 20, 30, 40]
    assert shown.arms[0].label == "NanoKimi (not audited)"
    with pytest.raises(UserError, match="none of these runs has finished"):
        panels_of(shown_of([run], "cost", None))


def test_shipped_weights_are_drawn_by_their_name() -> None:
    shown = shown_of([Path("tales-1m")], "loss", None)
    assert [arm.name for arm in shown.arms] == ["NanoKimi", "NanoGPT with Muon"]
    assert shown.levels[0]["name"].startswith("entropy floor") and not shown.notes


def test_the_labels_of_costs_do_not_run_together() -> None:
    """Between two labels of an axis is at least the width of a wide letter; "0.150 0.175" once read as one number."""
    with drawing(RC):
        figure = drawn._figure(shown_of([Path("tales-1m")], "cost", None))
        figure.canvas.draw()
        for axes in figure.axes:
            inside = [
                one
                for one in axes.get_xticklabels()
                if axes.bbox.contains(one.get_window_extent().x0 + 1, axes.bbox.y0)
            ]
            boxes = [one.get_window_extent() for one in inside]
            gaps = [after.x0 - before.x1 for before, after in zip(boxes, boxes[1:], strict=False)]
            assert len(gaps) >= 2 and min(gaps) > boxes[0].height, axes.get_xlabel()


def test_a_seed_in_progress_does_not_hide_those_that_have_finished(make: Callable[..., Path]) -> None:
    done, late, alone = make("a", seed=1), make("b", seed=2, done=False), make("c", "NanoGPT", done=False)
    shown = shown_of([done, late, alone], "loss", None)
    assert [(arm.name, len(arm.runs)) for arm in shown.arms] == [("NanoKimi", 1), ("NanoGPT", 1)]
    assert list(shown.notes) == ["Not finished, and left out: NanoKimi, seed 2."]


def test_a_band_goes_from_the_lowest_to_the_highest_seed(make: Callable[..., Path]) -> None:
    shown = shown_of([make("a", seed=1), make("b", seed=2), make("c", seed=3)], "loss", "tokens")
    band, arm = band_of(shown.arms[0], LOSS, shown.x_key), shown.arms[0]
    losses = [[r["val_loss"] for r in run.kind("eval")] for run in arm.runs]
    for i, values in enumerate(zip(*losses, strict=True)):
        assert (band.lows[i], band.highs[i]) == (min(values), max(values))
        assert band.means[i] == pytest.approx(sum(values) / 3)
    assert band.xs == [r["tokens"] for r in arm.kind("eval")]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Shown]:
    """What a picture of two arms with two seeds shows."""
    folder = tmp_path_factory.mktemp("plot")
    write_comparison(folder, names=("NanoKimi", "NanoGPT"), steps=40, eval_every=10, searched=False)
    report, arms = read_comparison(folder)
    strip = make_strip(report, arms)
    for arm in arms:
        for record in (one for run in arm.runs for one in run.records):
            record.setdefault("tokens", record["step"] * 10)  # the fixture's router has only steps

    def build(kind: str, x_key: str = "step", **more: Any) -> Shown:
        return Shown(
            **{"kind": kind, "x_key": x_key, "title": f"Of {kind}", "arms": arms, "strip": strip, **more}
        )

    return build


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in OF_A_STUDY])
def test_every_kind_is_a_picture_with_units(kind: str, shown: Callable[..., Shown]) -> None:
    text = as_svg(shown(kind, "tokens" if kind in ("experts", "logits") else "step", notes=["Beware."]))
    assert ElementTree.fromstring(text).tag.endswith("svg")
    labels = {
        "loss": "nats per token",
        "bits": "bits per byte",
        "train": "nats per token",
        "lr": "Learning rate",
        "test": "bits per byte",
        "differences": "First minus second (nats per token)",
        "experts": "Training tokens",
        "logits": "tau = 100",
        "cost": "Peak memory (MB)",
    }
    assert labels[kind] in text and f"Of {kind}" in text and "Beware." in text
    assert "<dc:date>" not in text, "the same records give the same file"
    if kind in CURVES:
        assert "Optimizer steps" in text and "NanoGPT" in text


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("loss", "Line: mean of 2 seeds; band: from the lowest to the highest."),
        ("train", "Line: mean of 2 seeds"),
        ("test", "Mark: mean of 2 seeds; line with ends"),
        ("cost", "Bar: mean of 2 seeds; line with ends"),
        ("logits", "The first seed of each arm."),
        ("lr", ""),
        ("differences", ""),
    ],
)
def test_a_picture_says_how_to_read_its_spread(kind: str, said: str, shown: Callable[..., Shown]) -> None:
    """In the picture itself, which may be shown without the page or the document around it."""
    several = shown(kind)
    assert several.reading.startswith(said) and bool(several.reading) == bool(said)
    words = re.sub(r"\s+", " ", " ".join(ElementTree.fromstring(as_svg(several)).itertext()))
    assert several.reading in words and several.reading in as_page(several)
    single = shown(kind, arms=[replace(arm, runs=arm.runs[:1]) for arm in several.arms])
    assert "2 seeds" not in single.reading and ("no spread" in single.reading) == (kind in SPREAD)


def test_a_family_looks_as_in_every_other_report() -> None:
    """Whatever the order in which a study over sizes names them; other names take what is free."""
    assert list(load_config("tales").arms) == list(study_plots.FAMILIES)
    assert study_plots.slots_of(["NanoGPT", "NanoGPT with Muon", "NanoKimi"]) == [2, 1, 0]
    assert study_plots.slots_of(["mine", "NanoKimi", "yours", "NanoGPT"]) == [1, 0, 3, 2]
    assert study_plots.slots_of(list("abcdefgh")) == list(range(SLOTS))


def test_a_picture_names_the_arms_that_it_draws(make: Callable[..., Path]) -> None:
    kimi, gpt = make("kimi"), make("gpt", "NanoGPT")
    assert shown_of([kimi, gpt], "experts", None).title.endswith(": NanoKimi")
    assert shown_of([kimi, gpt], "loss", None).title.endswith(": NanoKimi, NanoGPT")


def test_the_differences_are_those_of_the_report(
    tmp_path: Path, make: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "both"
    write_comparison(folder, names=("NanoKimi", "NanoGPT"), steps=40, eval_every=10, searched=False)
    out = tmp_path / "differences.svg"
    assert main(["plot", str(folder), "--kind", "differences", "--out", str(out)]) == 0
    text = out.read_text()
    assert "NanoKimi - NanoGPT" in text and "95% interval, which decides" in text
    capsys.readouterr()
    for words in ([str(folder), str(folder)], [str(make("run"))]):
        assert main(["plot", *words, "--kind", "differences"]) == 2
        assert "of one finished comparison" in capsys.readouterr().err
    assert key_of_pairs({"over_seeds": False, "over_text": True}).startswith("one seed; thin: over the text")


def test_a_picture_is_a_png(shown: Callable[..., Shown]) -> None:
    assert as_png(shown("lr")).startswith(b"\x89PNG")


def test_a_page_has_every_axis_and_needs_no_network(shown: Callable[..., Shown]) -> None:
    floor = [{"key": "floor", "name": "entropy floor 1.0000", "nats": 1.0}]
    html = as_page(shown("loss", "flops", levels=floor))
    page = Page(html)
    assert [tag for tag, _ in page.tags if tag in LOADING] == ["script", "script"]
    assert not re.search(r'(src|href|srcset)="(?!#)|@import|url\((?!#)', html)
    radios = [attrs for tag, attrs in page.tags if tag == "input"]
    assert [one["value"] for one in radios] == ["step", "tokens", "flops", "train_seconds"]
    assert [one["value"] for one in radios if "checked" in one] == ["flops"]
    assert html.count("entropy floor 1.0000") == 4
    numbers = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)[0])
    arm = shown("loss").arms[0]
    band, drawn = band_of(arm, LOSS, "train_seconds"), numbers["train_seconds"]["arms"][0]
    assert drawn["x"] == pytest.approx(band.xs, rel=1e-5) and drawn["y"] == pytest.approx(
        band.means, rel=1e-5
    )
    assert drawn["low"] == pytest.approx(band.lows, rel=1e-5) and drawn["name"] == "NanoKimi"
    left, top, width, height = numbers["step"]["frame"]
    assert 0 < left and left + width < 1 and 0 < top and top + height < 1


def test_names_are_text_and_not_markup(shown: Callable[..., Shown], monkeypatch: pytest.MonkeyPatch) -> None:
    frame = Frame(0.1, 0.1, 0.8, 0.8, (0.0, 1.0), (0.0, 1.0))
    # matplotlib escapes its own text
    monkeypatch.setattr(switched, "framed_svg", lambda *_: ("<svg></svg>", frame))
    name = "</script><b>&'\""
    named = shown("lr", arms=[replace(arm, name=name) for arm in shown("lr").arms], title=name)
    html = as_page(named)
    assert "</script><b>" not in html and Page(html)
    notebook = Picture(named)._repr_html_()
    (tag, attrs), *rest = Page(notebook).tags
    assert tag == "iframe" and not rest and attrs["srcdoc"] == html and attrs["title"] == name


def test_arms_differ_without_colours() -> None:
    for styles in (DASHES, MARKERS, HATCHES):
        assert len(set(styles)) == len(styles) == SLOTS
    lightness = [sum(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in plots.PAPER.arms]
    assert max(lightness) < 0.6 * 3 * 255, "dark enough on paper, also in grey"


def test_no_two_arms_of_a_picture_look_alike() -> None:
    """A ninth arm was drawn as the first, and a picture may have 64."""
    styles = [style_of(slot) for slot in range(MOST_ARMS)]
    assert len({(one.dash, one.mark) for one in styles}) == MOST_ARMS, "also without colours"
    for number, one in enumerate(styles[:32]):
        assert all(sum(a != b for a, b in zip(one, other, strict=True)) >= 2 for other in styles[:number])
    assert style_of(MOST_ARMS) == styles[0], "beyond, they begin again"


@pytest.mark.parametrize("kind", ["loss", "train"])
def test_twenty_four_arms_differ_without_colours(kind: str, shown: Callable[..., Shown]) -> None:
    """In the picture, in its legend and in the legend of the page; and it says what to look at."""
    (first, *_) = shown(kind).arms
    many = shown(kind, arms=[replace(first, name=f"Arm {slot}", slot=slot) for slot in range(24)])
    with drawing(RC):
        figure = drawn._figure(many)
        for lines in (figure.axes[0].get_lines(), figure.legends[0].get_lines()):
            looks = {(str(line._unscaled_dash_pattern), line.get_marker()) for line in lines}
            assert len(looks) == len(lines) == 24
        assert figure.legends[0].get_title().get_text() == TOLD_APART
    page = as_page(many)
    swatches = re.findall(r'<svg class="swatch".*?</svg>', page, re.DOTALL)
    assert len({re.sub(r"--arm-\d", "", one) for one in swatches}) == len(swatches) == 24
    assert page.count(TOLD_APART) == 1 and TOLD_APART not in as_page(shown(kind))
    assert len(set(re.findall(r"var\(--arm-(\d+)\)", page))) == SLOTS


def test_the_floor_is_drawn_if_all_runs_share_it(make: Callable[..., Path]) -> None:
    (run,) = _opened(make("a"))
    text = {"sha256": "x", "val_tokens": 100, "val_text_bytes": 400, "tokenizer": "bpe", "vocab_size": 300}
    text |= {"val_floor_nats": 150.0}
    one, same = replace(run, text=text), replace(run, text=dict(text))
    levels, notes = _levels([one, same], "loss")
    assert [(level["name"], level["nats"]) for level in levels] == [
        ("entropy floor 1.5000", 1.5)
    ] and not notes
    (level,), _ = _levels([one], "bits")
    assert level["nats"] == pytest.approx(150 / 400 / 0.693147, rel=1e-4)
    assert _levels([one], "train") == ([], [])

    other = replace(run, text={**text, "tokenizer": "char", "val_tokens": 300})
    levels, (note,) = _levels([one, other], "loss")
    assert not levels and "different texts, or with different tokenizers" in note
    assert _levels([one, other], "bits")[1] == [], "bits per byte do not depend on the tokenizer"
    elsewhere = replace(run, text={**text, "sha256": "y"})
    assert "different texts;" in _levels([one, elsewhere], "test")[1][0]
    ours, theirs = (replace(run, text={**text, "test_text_bytes": size}) for size in (400, 1200))
    assert "different texts;" in _levels([ours, theirs], "test")[1][0], "two shares of one text"
    assert _levels([ours, theirs], "bits")[1] == [], "which have the same validation text"


def test_texts_of_a_mixture_are_shown_one_by_one(shown: Callable[..., Shown]) -> None:
    arms = shown("test").arms
    for number, run in enumerate(arms[0].runs):
        run.metadata["test_sources"] = {"German": {"bits_per_byte": 2.0 + number}}
    try:
        found = test_scores(arms)
    finally:
        for run in arms[0].runs:
            del run.metadata["test_sources"]
    assert list(found) == ["all texts", "German"] and found["German"] == {
        "NanoKimi": [2.0, 3.0],
        "NanoGPT": [],
    }


def study(folder: Path, **more: Any) -> Path:
    """A study's folder with one comparison."""
    effect = {"name": "+ MoE", "family": "additive", "mean": -0.1, "ci95": [-0.2, 0.0], "words": "lower"}
    effect |= {"bootstrap95": [-0.15, -0.05]}
    report = {"title": "Of a ladder", "data": {"path": "p", "floor": None}, "effects": [effect], "arms": []}
    folder.mkdir()
    (folder / "study.json").write_text(json.dumps(report | more))
    return folder


def test_a_study_is_drawn_by_its_own_kinds(tmp_path: Path, make: Callable[..., Path]) -> None:
    folder = study(tmp_path / "study")
    picture = plot(folder, out=tmp_path / "effects.svg")
    assert picture.shown.kind == "effects" and "+ MoE" in (tmp_path / "effects.svg").read_text()
    assert shown_of([study(tmp_path / "sizes", curves=[1])], None, None).x_key == "flops"
    for folders, options, message in (
        ([folder, make("run")], {}, "drawn alone"),
        ([folder], {"kind": "loss"}, "effects, scaling, tuning"),
        ([folder], {"kind": "effects", "x": "steps"}, "--x steps has no effect"),
        ([folder], {"kind": "scaling", "x": "steps"}, "expected one of flops, seconds"),
        ([folder], {"kind": "tuning"}, "the study has no such numbers"),
        ([make("run2")], {"kind": "effects"}, "is of a study"),
    ):
        with pytest.raises(UserError, match=message):
            plot(*folders, **options).svg()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected the folder of a run"),
        (["{run}", "--kind", "los"], "--kind is los: expected one of loss, bits"),
        (["{run}", "--x", "step"], "--x is step: expected one of steps, tokens, flops, seconds"),
        (["{run}", "--kind", "cost", "--x", "tokens"], "--x tokens has no effect with --kind cost"),
        (["{run}", "--out", "loss.pdf"], "expected a name that ends in .png, .svg, .html"),
        (["{run}", "--out", "{run}/no/loss.svg"], "cannot be written"),
        (["{run}", "--colour", "red"], "there is no option --colour"),
        (["{run}/nowhere"], "is not a folder"),
        (["{fresh}"], "the run has not begun to train"),
        (["{odd}"], "the records hold what cannot be drawn"),
        (["{gpt}", "--kind", "experts"], "no run has records of a router"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str],
    message: str,
    make: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {"run": make("run"), "fresh": make("fresh"), "odd": make("odd"), "gpt": make("gpt", "NanoGPT")}
    (folders["fresh"] / "metrics.jsonl").unlink()
    (folders["odd"] / "metrics.jsonl").write_text(
        '{"kind": "eval", "step": 1, "tokens": 1, "flops": 1, "train_seconds": 1, "val_loss": "low"}\n'
    )
    assert main(["plot", *(word.format(**folders) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("nanokimi: ") and error.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.suffix in FORMATS]


def test_the_command_writes_and_names_the_file(
    make: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "rate.svg"
    assert main(["plot", str(make("run")), "--kind", "lr", "--x", "seconds", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert "Training time (s)" in out.read_text()


def test_axes_and_labels() -> None:
    assert axis_of(None, "loss") == "step" and axis_of("seconds", "train") == "train_seconds"
    assert [units.minor_tick(x) for x in (2e6, 3e6, 5e12)] == ["2 M", "", "5 T"]
