"""Every page fits its window, on a phone, a tablet and a desktop, light and dark, in a real Chromium.

`make test-browser` runs this. Without a Chromium the tests are skipped; $CHROMIUM names one that is not on the path.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import SCHEMES, WIDTHS, Browser, find_chromium
from report_fixture import write_comparison

from nanokimi.report import page as report_page
from nanokimi.report import records, study_page
from nanokimi.report.drawn import as_page
from nanokimi.report.kinds import Shown
from nanokimi.report.search_page import write_search_page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed (apt-get install chromium)"),
]
ROOT = Path(__file__).resolve().parents[1]
UNFOLD = 'document.querySelectorAll("details").forEach(one => one.open = true)'
TOO_WIDE = """(() => {
  const width = document.documentElement.clientWidth, found = [];
  for (const one of document.querySelectorAll("body *")) {
    if (one.closest("svg") || !one.clientWidth) continue;
    const hidden = getComputedStyle(one).overflowX != "visible" && one.scrollWidth > one.clientWidth + 1;
    if (hidden || one.getBoundingClientRect().right > width + 1)
      found.push(`${one.tagName}.${one.className} in ${one.closest("section[id]")?.id}`);
  }
  return found;
})()"""
TOUCHING = """(() => {
  const found = [];
  for (const cell of document.querySelectorAll("td, th")) {
    const next = cell.nextElementSibling;
    if (!next || !cell.textContent.trim() || !next.textContent.trim()) continue;
    const [a, b] = [cell, next].map(one => {
      const range = document.createRange(); range.selectNodeContents(one); return range.getBoundingClientRect();
    });
    if (a.top < b.bottom && b.top < a.bottom && a.right + 4 > b.left && getComputedStyle(cell).display == "table-cell")
      found.push(`${cell.textContent.trim()}|${next.textContent.trim()}`);
  }
  return found;
})()"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_chromium()
    assert program is not None
    with Browser(program) as browser:
        yield browser


def comparison_page(folder: Path, **options: Any) -> Path:
    write_comparison(folder, **options)
    context = report_page.make_context(*records.read_comparison(folder))
    (folder / "report.html").write_text(report_page.render(context), encoding="utf-8")
    return folder / "report.html"


def with_long_settings(folder: Path) -> None:
    """What a real comparison has in its table: schedules of many words."""
    report = json.loads((folder / "report.json").read_text())
    for arm in report["arms"]:
        arm["schedule"] = (
            "wsd: 100 steps of warm-up, constant, then 1 - sqrt over the last 70% to 0.02 of the peak"
        )
    (folder / "report.json").write_text(json.dumps(report))


def study_record() -> dict[str, Any]:
    """The record of a real ladder, with laws of loss against compute as a scale study has them."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from study_tables import study_report

    report = study_report(ROOT / "docs" / "results" / "ladder-tales.jsonl")
    law = {
        "e0": 0.0598,
        "log_a": 2.0,
        "alpha": 0.1,
        "describes": True,
        "misses_by": 0.0598,
        "e0_is": "taken as 0",
    }
    points = [
        {
            "flops": 1e12 * 2**i,
            "train_seconds": 10.0 * 2**i,
            "losses": [2.0, 2.1],
            "test_loss": 2.05 - 0.1 * i,
        }
        for i in range(3)
    ]
    families = ("NanoKimi", "NanoGPT with Muon")
    laws = {"flops": law, "train_seconds": law}
    report["curves"] = [{"family": family, "laws": laws, "points": points} for family in families]
    return report


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every kind of page that the program writes, by name."""
    root = tmp_path_factory.mktemp("pages")
    three, few = root / "three", {"kinds": ("train", "eval", "sample"), "searched": False}
    comparison_page(three, incidents=True)
    with_long_settings(three)
    context = report_page.make_context(*records.read_comparison(three))
    (three / "report.html").write_text(report_page.render(context), encoding="utf-8")
    study = root / "study.html"
    study.write_text(
        report_page.render(study_page.make_context(study_record()), "study.html"), encoding="utf-8"
    )
    search = root / "searched"
    search.mkdir()
    shutil.copyfile(ROOT / "nanokimi" / "presets" / "searches" / "tales.json", search / "search.json")
    write_search_page(search)
    arms = records.read_comparison(three)[1]
    plot = root / "loss.html"
    plot.write_text(as_page(Shown(kind="loss", x_key="tokens", title="Validation loss", arms=arms)))
    return {
        "plot": plot,
        "search": search / "search.html",
        "three arms": three / "report.html",
        "two arms": comparison_page(root / "two", names=("NanoKimi", "NanoGPT"), **few),
        "one run": comparison_page(root / "one", names=("NanoKimi",), seeds=(1,), **few),
        "study": study,
        "shipped": ROOT / "nanokimi" / "pretrained" / "tales-1m" / "report.html",
    }


NAMES = ("three arms", "two arms", "one run", "study", "search", "plot", "shipped")


@pytest.mark.parametrize("name", NAMES)
def test_no_page_is_wider_than_its_window(name: str, pages: dict[str, Path], browser: Browser) -> None:
    for width in WIDTHS:
        for scheme in SCHEMES:
            browser.open(pages[name], width, scheme)
            browser.value(UNFOLD)
            sizes = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
            assert browser.value(sizes) == [width, width], (width, scheme)
            assert browser.value(TOO_WIDE) == [], (width, scheme)


@pytest.mark.parametrize("name", NAMES)
def test_no_column_runs_into_the_next(name: str, pages: dict[str, Path], browser: Browser) -> None:
    """The study's page once said "0.0598taken as 0"."""
    browser.open(pages[name], 1280)
    browser.value(UNFOLD)
    assert browser.value(TOUCHING) == []


def test_stories_and_loss_are_near_the_top(pages: dict[str, Path], browser: Browser) -> None:
    """The stories once began at 10,100 of 12,620 pixels."""
    browser.open(pages["three arms"], 1280)
    top = "document.querySelector('{}').getBoundingClientRect().top"
    assert browser.value(top.format(".story")) < 900
    assert browser.value(top.format("figure svg")) < 1100
    assert browser.value("document.documentElement.scrollHeight") < 3000


OFF_THE_LINE = """(() => {
  const middle = one => { const box = one.getBoundingClientRect(); return (box.top + box.bottom) / 2; };
  return [...document.querySelectorAll(".strip")].filter(one => one.querySelector(".dot"))
    .map(one => Math.abs(middle(one.querySelector(".dot")) - middle(one.querySelector(".axis"))));
})()"""


def test_the_mark_of_a_difference_lies_on_its_line(pages: dict[str, Path], browser: Browser) -> None:
    """The style of the loss plot's pointer once moved it up by half its size."""
    browser.open(pages["three arms"], 1280)
    apart = browser.value(OFF_THE_LINE)
    assert len(apart) == 3 and max(apart) <= 1


LINES_OF_TICKS = """[...document.querySelectorAll(".ticks b")].map(one => {
  const range = document.createRange(); range.selectNodeContents(one); return range.getClientRects().length;
})"""


@pytest.mark.parametrize("name", ["three arms", "shipped"])
def test_the_number_of_a_tick_is_in_one_line(name: str, pages: dict[str, Path], browser: Browser) -> None:
    """The last one's room ends at the line's end: the sign of "+0.005" once stood above its digits."""
    for width in WIDTHS:
        browser.open(pages[name], width)
        lines = browser.value(LINES_OF_TICKS)
        assert lines and set(lines) == {1}, width


PANEL = """(() => {
  const shown = [...document.querySelectorAll(".switched:first-of-type .panel")].filter(one => one.checkVisibility());
  return shown.map(one => one.dataset.axis);
})()"""
POINT = """(() => {
  const panel = [...document.querySelectorAll(".panel")].find(one => one.checkVisibility());
  panel.scrollIntoView({block: "center"});
  const area = panel.getBoundingClientRect();
  return [area.left + 0.97 * area.width, area.top + 0.5 * area.height];
})()"""
VALUES = "[...document.querySelectorAll('.pointed .value')].map(one => one.textContent)"


@pytest.mark.parametrize("name", ["plot", "three arms"])
def test_the_axis_is_switched_and_the_pointer_reads_values(
    name: str, pages: dict[str, Path], browser: Browser
) -> None:
    browser.open(pages[name], 1280)
    assert browser.value(PANEL)[:1] == (["tokens"] if name == "plot" else ["step"])
    browser.value("document.querySelector('input[value=flops]').click()")
    assert browser.value(PANEL)[:1] == ["flops"]
    browser.value("document.querySelector('input[value=step]').click()")
    x, y = browser.value(POINT)
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    arm = records.read_comparison(pages["three arms"].parent)[1][0]
    last = [run.kind("eval")[-1]["val_loss"] for run in arm.runs]
    mean, low, high = sum(last) / len(last), min(last), max(last)
    values = browser.value(VALUES)
    assert len(values) == 3 and values[0] == f"{mean:.5g} ({low:.5g} to {high:.5g}) at 120"
    assert browser.value("document.documentElement.scrollWidth") == 1280


def test_the_arrow_keys_read_values_too(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["plot"], 390)
    browser.value("document.querySelector('input[value=step]').click()")
    browser.value("document.querySelector('.panel[data-axis=step]').focus()")
    read = []
    for key in ("Home", "ArrowRight", "End", "ArrowLeft", "Escape"):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        read += browser.value(VALUES)[:1]
    assert [text.rpartition(" at ")[2] for text in read] == ["0", "40", "120", "80"]


def test_what_is_folded_is_printed(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["three arms"], 1280)
    seen = "document.querySelector('#table table').checkVisibility()"
    assert not browser.value(seen)
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert browser.value(seen)
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")


def test_a_link_opens_the_section_that_it_leads_to(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["three arms"], 1280)
    browser.value("location.hash = '#table'")
    assert browser.value("document.querySelector('#table').closest('details').open")
