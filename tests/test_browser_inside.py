"""The page of the inside view in a real Chromium: it fits, loads quickly, and mouse and keyboard reach everything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import SCHEMES, WIDTHS, Browser, find_chromium
from conftest import TINY_GPT, TINY_KIMI
from test_browser import TOO_WIDE

from nanokimi.data.store import PreparedData
from nanokimi.data.tokenizers.own import ByteTokenizer
from nanokimi.inside import Subject, favourites, look
from nanokimi.inside.page import fitted, page
from nanokimi.inside.view import View, Wanted
from nanokimi.model.build import build_model

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed (apt-get install chromium)"),
]
TEXT = (
    "Once </script><img src=x onerror=alert(1)> a \u4f60\u597d\u202e fox. "
    "Pneumonoultramicroscopicsilicovolcanoconiosis"
)
WATCH = """window.seen = [];
addEventListener("error", event => seen.push(String(event.message || event.target.src)), true);
addEventListener("securitypolicyviolation", event => seen.push(event.blockedURI));
console.error = console.warn = (...words) => seen.push(words.join(" "));"""
SMALL_GATES = """(() => {
  const experts = [...document.querySelectorAll(".detail .shares span:last-child")];
  for (const one of experts) one.style.setProperty("--share", 0.05);
  return experts.length;
})()"""
CUT_EXPERTS = """[...document.querySelectorAll(".detail .shares span")]
    .filter(one => one.scrollWidth > one.clientWidth).map(one => one.textContent)"""
LONGEST_LOAD_MS = 5000
"""Of 500 tokens: a quiet machine takes a fifth of a second, and a loaded one may be many times slower."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_chromium()
    assert program is not None
    with Browser(program) as browser:
        browser.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        yield browser


def subject(config: Any, name: str) -> Subject:
    sizes = replace(config, vocab_size=256, max_position_embeddings=128, initializer_range=0.3)
    text = np.frombuffer(TEXT.encode() * 40, dtype=np.uint8)
    data = PreparedData(ByteTokenizer(), text[:500], text[500:], {})
    return Subject(name, build_model(sizes, seed=1), ByteTokenizer(), 128, tau=100.0, data=data)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inside")
    found = {}
    kimi, gpt = subject(TINY_KIMI, "NanoKimi with a rather long name"), subject(TINY_GPT, "NanoGPT")
    for name, models in (("one", [kimi]), ("two", [kimi, gpt])):
        pairs = [
            (
                View(
                    look(one, list((TEXT * 10).encode()[:500]), prompt_tokens=30),
                    favourites(one, tokens=2000),
                ),
                one,
            )
            for one in models
        ]
        found[name] = folder / f"{name}.html"
        found[name].write_text(page(fitted(pairs, Wanted())), encoding="utf-8")
    return found


@pytest.mark.parametrize("name", ["one", "two"])
def test_the_inside_page_fits_its_window_and_fetches_nothing(
    name: str, pages: dict[str, Path], browser: Browser
) -> None:
    for width in WIDTHS:
        for scheme in SCHEMES:
            browser.open(pages[name], width, scheme)
            sizes = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
            assert browser.value(sizes) == [width, width], (width, scheme)
            assert browser.value(TOO_WIDE) == [], (width, scheme)
            assert browser.value("window.seen") == []
    assert browser.value("performance.getEntriesByType('resource').length") == 0
    assert browser.value("document.querySelectorAll('img, iframe, link[href^=http]').length") == 0
    assert browser.value("document.querySelector('.text').textContent").startswith("Once </script><img src=x")


@pytest.mark.parametrize("name", ["one", "two"])
def test_an_expert_with_a_small_gate_keeps_its_whole_label(
    name: str, pages: dict[str, Path], browser: Browser
) -> None:
    for width in WIDTHS:
        browser.open(pages[name], width)
        assert browser.value(SMALL_GATES) > 0
        assert browser.value(CUT_EXPERTS) == [], width
        assert browser.value(TOO_WIDE) == [], width


def test_500_tokens_are_there_at_once(pages: dict[str, Path], browser: Browser) -> None:
    assert pages["two"].stat().st_size <= 3_000_000
    browser.open(pages["two"], 1280)
    assert browser.value("document.querySelectorAll('[role=option]').length") == 2 * 501
    milliseconds = browser.value("performance.getEntriesByType('navigation')[0].loadEventEnd")
    print(f"{pages['two'].stat().st_size:,} bytes, {milliseconds:.0f} ms")
    assert 0 < milliseconds < LONGEST_LOAD_MS


def test_mouse_and_keyboard_choose_a_token(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["one"], 1280)
    label, chosen = (
        "document.querySelector('.detail .note').textContent",
        "document.querySelector('.chosen').dataset.place",
    )
    browser.value("document.querySelector('[data-place=\"3\"]').click()")
    assert browser.value(label) == "token 4, id 101, read"
    assert browser.value("document.querySelectorAll('.detail .rows .name').length") == 10
    browser.value("document.querySelector('.text').focus()")
    for key, place in (
        ("ArrowRight", "4"),
        ("Home", "0"),
        ("ArrowLeft", "0"),
        ("End", "500"),
        ("ArrowLeft", "499"),
    ):
        for kind in ("keyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)
        assert browser.value(chosen) == place, key
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="ArrowUp", code="ArrowUp")
    assert 300 < int(browser.value(chosen)) < 495
    active = "document.getElementById(document.querySelector('.text').getAttribute('aria-activedescendant'))"
    assert browser.value(f"{active}.dataset.place") == browser.value(chosen)
    assert browser.value("window.seen") == []


def test_layer_head_and_shade_can_be_chosen(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["one"], 1280)
    pick = """(words, value) => { const label = [...document.querySelectorAll('label')].filter(one =>
        one.firstChild.textContent == words).at(-1), select = label.querySelector('select');
        select.value = value; select.dispatchEvent(new Event('change')); return select.value; }"""
    note = "document.querySelector('.looks .note').textContent"
    shades = "[...document.querySelectorAll('.text span')].map(one => one.style.getPropertyValue('--shade')).join()"
    before, pixels = browser.value(shades), "document.querySelector('.looks canvas').toDataURL()"
    first = browser.value(pixels)
    assert browser.value(f"({pick})('Layer', '1')") == "1" and browser.value(f"({pick})('Head', '1')") == "1"
    assert browser.value(note).startswith("Layer 1, head 1.") and browser.value(pixels) != first
    assert browser.value(f"({pick})('Shade by', 'attention')") == "attention"
    after = browser.value(shades)
    assert after != before
    browser.value("document.querySelector('[data-place=\"2\"]').click()")
    shown = browser.value(shades).split(",")
    assert shown != after.split(",") and set(shown[3:-1]) == {"0.000"}
    weights = [float(share) ** 2 for share in shown[:3]]
    assert sum(weights) == pytest.approx(1, abs=0.02)


LUMINANCE_AND_CONTRAST = """(() => {
  const style = getComputedStyle(document.querySelector('.nanokimi-inside'));
  const value = name => style.getPropertyValue(name).trim();
  const linear = v => v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const hex = name => value(name).slice(1).match(/../g).map(x => parseInt(x, 16));
  const shaded = (name, share) => hex('--raised').map((v, i) =>
    v + (Number(value(name).split(',')[i]) - v) * share * Number(value('--most')));
  const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  return ['--surprise', '--seen'].map(name => [0, 0.25, 0.5, 0.75, 1].map(share => {
    const grey = luminance(shaded(name, share));
    return [grey, contrast(grey, luminance(hex('--ink')))];
  }));
})()"""


def test_the_text_can_be_read_in_every_shade(pages: dict[str, Path], browser: Browser) -> None:
    """WCAG's contrast of at least 4.5 for ink on any shade, light and dark; and in grey a stronger shade differs."""
    for scheme in SCHEMES:
        browser.open(pages["one"], 1280, scheme)
        for hue in browser.value(LUMINANCE_AND_CONTRAST):
            assert min(contrast for _, contrast in hue) >= 4.5, (scheme, hue)
            steps = np.diff([grey for grey, _ in hue])
            assert (steps < -0.01).all() if scheme == "light" else (steps > 0.01).all(), (scheme, hue)
