"""The page of `nanokimi play` in a Chromium, driven by Playwright: every tab, on a phone and a desktop, light and dark.

`make test-browser` runs this. Without Chromium, Gradio or Playwright the tests are skipped.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from browser import find_chromium
from conftest import PATIENCE
from report_fixture import write_comparison
from space import ROOT, files_of, running, visit

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed (apt-get install chromium)"),
    pytest.mark.skipif(
        find_spec("gradio") is None or find_spec("playwright") is None,
        reason="Gradio or Playwright is missing: pip install -c constraints.txt -e '.[browser]'",
    ),
]
MILLISECONDS = PATIENCE * 200  # 120 s for each thing that is waited for
MOST_TOKENS = 50_000
"""A text that is not over before it is stopped."""
SCREENS = [(1280, "light"), (1280, "dark"), (1024, "light"), (390, "light"), (390, "dark")]
TRAIN = {
    "kind": "train",
    "tokens": 1,
    "flops": 1.0,
    "train_seconds": 1.0,
    "step_ms": 9.0,
    "memory_bytes": 5_000_000,
}
TOO_WIDE = """(() => {
  const width = document.documentElement.clientWidth, found = [];
  for (const one of document.querySelectorAll("body *")) {
    if (one.closest("svg, iframe, .visually-hidden, [aria-hidden=true]") || !one.clientWidth) continue;
    const hides = getComputedStyle(one).overflowX == "visible" && one.scrollWidth > one.clientWidth + 1;
    if (one.getBoundingClientRect().right > width + 1 || (hides && one.closest(".nk-plain, .nk-chip")))
      found.push(`${one.tagName}.${one.className}`);
  }
  return found;
})()"""
FRAME_SIZES = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
IDLE = (
    "document.querySelector('#nk-panes .nk-numbers') && !document.querySelector('#nk-panes [aria-busy=true]')"
)


class Site:
    """The server, as a user starts it, and the folder whose runs it offers."""

    def __init__(self, runs: Path, words: list[str], program: tuple[str, str] = ("-m", "nanokimi")) -> None:
        options = ["--port", "0", "--runs", str(runs), "--max_tokens", str(MOST_TOKENS)]
        command = [sys.executable, *program, "play", *words, *options]
        self.runs, self.words = runs, words
        self.said = runs.parent / f"said-{len(list(runs.parent.iterdir()))}.txt"
        with self.said.open("w") as said_here:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said_here, text=True)
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert found, said
        self.url = found[0]


@pytest.fixture(scope="module")
def started() -> Iterator[dict[str, Any]]:
    """The server and the browser, started by the first test that needs them."""
    kept: dict[str, Any] = {}
    yield kept
    if "playwright" in kept:
        kept["browser"].close()
        kept["playwright"].stop()
    if "site" in kept:
        kept["site"].process.terminate()
        assert kept["site"].process.wait(PATIENCE) in (0, -15), "the server was still up"


@pytest.fixture
def site(started: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    """The page of two models, beside a finished comparison and a run in progress."""
    if "site" not in started:
        from playwright.sync_api import sync_playwright

        make_run: Callable[..., Path] = request.getfixturevalue("make_run")
        train = request.getfixturevalue("tiny_config")(context_length=512).train
        words = [str(make_run(model, model, train=train)) for model in ("nanokimi", "nanogpt")]
        write_comparison(tmp_path / "runs" / "compared", searched=False)
        (tmp_path / "runs" / "compared" / "config.yaml").touch()
        training = tmp_path / "runs" / "training"
        shutil.copytree(words[0], training)
        (training / "metrics.jsonl").write_text(
            "".join(json.dumps({**TRAIN, "step": step, "loss": 4 - step}) + "\n" for step in (1, 2))
        )
        started["site"] = Site(tmp_path / "runs", words)
        started["playwright"] = sync_playwright().start()
        started["browser"] = started["playwright"].chromium.launch(
            executable_path=find_chromium(), args=["--no-sandbox"]
        )
    found: Site = started["site"]
    return found


@contextmanager
def visited(started: dict[str, Any], site: Site, width: int = 1280, scheme: str = "light") -> Iterator[Any]:
    """The page in a window. At the end: nothing was asked of another address, and nothing went wrong in the console."""
    size = {"width": width, "height": {390: 844, 1024: 768}.get(width, 900)}
    context = started["browser"].new_context(viewport=size, color_scheme=scheme)
    context.set_default_timeout(MILLISECONDS)
    page, wrong = context.new_page(), []
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    ours = (site.url, "data:", "blob:", "about:")
    page.on("request", lambda sent: None if sent.url.startswith(ours) else wrong.append(sent.url))
    page.goto(site.url)
    page.wait_for_selector("#nk-write")
    yield page
    assert wrong == []
    context.close()


def fits(page: Any) -> None:
    """Nothing is wider than the window, also in the frames."""
    width = page.viewport_size["width"]
    assert page.evaluate(FRAME_SIZES) == [width, width]
    assert page.evaluate(TOO_WIDE) == []
    for frame in page.frames[1:]:
        scroll, client = frame.evaluate(FRAME_SIZES)
        assert scroll == client, frame.url


def go_to(page: Any, tab: str) -> None:
    page.get_by_role("tab", name=tab, exact=True).click()


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_every_tab_works_and_fits(started: dict[str, Any], site: Site, width: int, scheme: str) -> None:
    with visited(started, site, width, scheme) as page:
        fits(page)
        page.fill("#nk-prompt textarea", "the dog <b>ran</b>")
        page.click("#nk-write")
        page.wait_for_function(IDLE)
        stories = page.locator("#nk-panes .nk-story").all_inner_texts()
        assert len(stories) == 2 and all(story.startswith("the dog <b>ran</b>") for story in stories)
        assert stories[0] != stories[1]
        assert page.locator("#nk-panes dd").all_inner_texts()[::3] == ["20", "20"], "all tokens were written"
        fits(page)
        go_to(page, "Look inside")
        page.click("#nk-look")
        frame = page.frame_locator("#nk-inside iframe")
        frame.locator("text=The ten likeliest in its place").first.wait_for()
        fits(page)
        page.click("#nk-look-layer input")
        page.get_by_role("option", name="layer 0", exact=True).click()
        page.click("#nk-look")
        frame.get_by_role("img", name="Map of attention, token by token").first.wait_for()
        fits(page)
        go_to(page, "Compare")
        page.click("#nk-compare")
        page.frame_locator("#nk-report iframe").locator("text=nats per token").first.wait_for()
        fits(page)
        go_to(page, "Watch")
        page.wait_for_selector("#nk-watch .nk-chart:visible")
        page.wait_for_selector("#nk-watch >> text=of 12")
        fits(page)
        go_to(page, "Write")
        page.fill("#nk-prompt textarea", "x" * 4001)
        page.click("#nk-write")
        page.wait_for_selector("#nk-write-problem >> text=4,001 characters")
        fits(page)


def test_a_run_in_progress_moves(started: dict[str, Any], site: Site) -> None:
    with visited(started, site) as page:
        go_to(page, "Watch")
        page.wait_for_selector("#nk-watch >> text=step 2 of 12")
        with (site.runs / "training" / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({**TRAIN, "step": 7, "loss": 1.25}) + "\n")
        page.wait_for_selector("#nk-watch >> text=step 7 of 12")


def test_the_keyboard_is_enough(started: dict[str, Any], site: Site) -> None:
    """From the top of the page, Tab comes to every tab's control that matters, and they work."""
    with visited(started, site) as page:
        reached = []
        for _ in range(40):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate("document.activeElement.id || document.activeElement.innerText || ''")
            )
            if reached[-1] == "nk-write":
                break
        assert reached[-1] == "nk-write" and "Large text" in reached and "Write" in reached
        ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring == "solid", "what has the focus is seen to have it"
        page.keyboard.press("Enter")
        page.wait_for_function(IDLE)
        page.get_by_role("tab", name="Write", exact=True).focus()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert (
            page.evaluate("document.querySelector('[role=tab][aria-selected=true]').innerText")
            == "Look inside"
        )


def sent_by(page: Any) -> list[list[Any]]:
    """The inputs of every request that the page makes from now on."""
    sent: list[list[Any]] = []
    page.on(
        "request",
        lambda one: sent.append(json.loads(one.post_data)["data"]) if "queue/join" in one.url else None,
    )
    return sent


def test_one_press_starts_one_text(started: dict[str, Any], site: Site) -> None:
    """Also where a field that was changed is left by the press, and by Enter in any field."""
    with visited(started, site) as page:
        sent, seed = sent_by(page), page.locator(".nk-settings input").nth(3)
        wanted = []

        def wait_for(prompt: str, number: int) -> None:
            wanted.append([prompt, number])
            page.wait_for_function(IDLE)
            page.wait_for_timeout(300)
            assert [[one[0], one[5]] for one in sent] == wanted

        page.fill("#nk-prompt textarea", "the dog")
        seed.fill("7")
        page.click("#nk-write")
        wait_for("the dog", 7)
        seed.fill("8")
        seed.press("Enter")
        wait_for("the dog", 8)
        page.fill("#nk-prompt textarea", "the cat")
        page.press("#nk-prompt textarea", "Enter")
        wait_for("the cat", 8)


def test_the_texts_come_into_view(started: dict[str, Any], site: Site) -> None:
    """On a projector the settings fill the window; the button stays in it, for the next press."""
    with visited(started, site, 1024) as page:
        tops = "['nk-write', 'nk-panes'].map(id => document.getElementById(id).getBoundingClientRect().top)"
        assert page.evaluate(tops)[1] > 384
        page.click("#nk-write")
        page.wait_for_function(IDLE)
        button, panes = page.evaluate(tops)
        assert 0 <= button < panes < 384


def test_a_wish_that_is_refused_leaves_the_text_in_work(started: dict[str, Any], site: Site) -> None:
    with visited(started, site) as page:
        page.locator(".nk-settings input").nth(4).fill(str(MOST_TOKENS))
        page.click("#nk-write")
        page.wait_for_selector("#nk-panes .nk-caret")
        page.fill("#nk-prompt textarea", "")
        page.click("#nk-write")
        page.wait_for_selector("#nk-write-problem >> text=The prompt is empty")
        count = "document.querySelector('#nk-panes dd').innerText"
        before = page.evaluate(count)
        page.wait_for_function(f"{count} != '{before}'")
        assert page.locator("#nk-write-problem >> text=The prompt is empty").is_visible()
        page.click("#nk-stop")
        page.wait_for_selector("#nk-panes >> text=stopped")


def test_large_text_is_large_everywhere(started: dict[str, Any], site: Site) -> None:
    with visited(started, site, 1024) as page:
        go_to(page, "Compare")
        page.click("#nk-compare")
        page.frame_locator("#nk-report iframe").locator("text=nats per token").first.wait_for()
        go_to(page, "Write")
        sizes = (
            "['.nk-settings input', '#nk-models label span', '#nk-prompt textarea'].map("
            "name => parseFloat(getComputedStyle(document.querySelector(name)).fontSize))"
        )
        before = page.evaluate(sizes)
        page.click("text=Large text")
        assert page.evaluate(sizes) == [1.25 * size for size in before]
        root = "parseFloat(getComputedStyle(document.documentElement).fontSize)"
        assert page.frames[1].evaluate(root) == 20
        for tab in ("Write", "Look inside", "Compare", "Watch"):
            go_to(page, tab)
            fits(page)


BROKEN = """
from nanokimi.cli import main
from nanokimi.play import tab_compare

def broken(*_):
    raise KeyError("broken on purpose \u001b[31m")

tab_compare.stamp = broken
main()
"""


def test_a_fault_of_ours_leaves_its_traceback(started: dict[str, Any], site: Site) -> None:
    """On the terminal, as any command's, and without what a terminal would obey; the visitor gets a sentence."""
    from nanokimi.play.complaints import FAULT

    faulty = Site(site.runs, site.words, ("-c", BROKEN))
    try:
        with visited(started, faulty) as page:
            go_to(page, "Compare")
            page.click("#nk-compare")
            page.wait_for_selector(f"text={FAULT}")
            go_to(page, "Write")
            page.click("#nk-write")
            page.wait_for_function(IDLE)
    finally:
        faulty.process.terminate()
        faulty.process.wait(PATIENCE)
    said = faulty.said.read_text()
    assert said.startswith("nanokimi: a fault of this program:\nTraceback (most recent call last):\n")
    assert "tab_compare.py" in said and "KeyError: 'broken on purpose \\\\x1b[31m'" in said
    assert said.isascii() and "\x1b" not in said


HOSTILE = "<img src=x onerror=window.hacked=1> ${window.hacked=2} {{window.hacked=3}} `\u202e\u2603"


def test_hostile_text_is_only_text(started: dict[str, Any], site: Site) -> None:
    with visited(started, site) as page:
        page.fill("#nk-prompt textarea", HOSTILE)
        page.click("#nk-write")
        page.wait_for_function(IDLE)
        story = page.locator("#nk-panes .nk-story").first.inner_text()
        assert story.startswith(
            "<img src=x onerror=window.hacked=1> ${window.hacked=2} {{window.hacked=3}} `[U+202E]"
        )
        go_to(page, "Look inside")
        page.click("#nk-look")
        page.frame_locator("#nk-inside iframe").locator(
            "text=The ten likeliest in its place"
        ).first.wait_for()
        assert all(frame.evaluate("window.hacked") is None for frame in page.frames)
        go_to(page, "Write")
        page.fill("#nk-prompt textarea", "x" * 1_000_000)
        page.click("#nk-write")
        page.wait_for_selector("#nk-write-problem >> text=1,000,000 characters")
        page.fill("#nk-prompt textarea", "the dog")
        page.locator(".nk-settings input").nth(0).fill("-1")
        page.click("#nk-write")
        page.wait_for_selector("#nk-write-problem >> text=temperature is -1")


def test_a_text_stops_when_asked(started: dict[str, Any], site: Site) -> None:
    with visited(started, site) as page:
        page.locator(".nk-settings input").nth(4).fill(str(MOST_TOKENS))
        page.click("#nk-write")
        page.wait_for_selector("#nk-panes .nk-caret")
        page.click("#nk-stop")
        page.wait_for_selector("#nk-panes >> text=stopped")
        page.wait_for_function(IDLE)


def test_addresses_that_take_files_are_closed(started: dict[str, Any], site: Site) -> None:
    from httpx import Client

    with Client(base_url=site.url, timeout=PATIENCE) as client:
        for path in ("upload", "proxy=http://example.com/", "file=/etc/passwd", "deep_link"):
            assert client.get(f"/gradio_api/{path}").status_code == 404, path
        assert client.post("/gradio_api/upload", files={"files": b"x"}).status_code == 404
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
        assert client.post("/gradio_api/queue/join", content=b"x" * (5 << 20)).status_code == 413
        found = client.get("/")
        assert found.status_code == 200 and "connect-src 'self'" in found.headers["content-security-policy"]
        assert str(site.runs) not in found.text, "no path of this machine is told"


ZERO_GPU = """
import gradio, torch

gradio.Blocks  # as in the original: Gradio's own import of this package fails
torch.cuda.is_available = lambda: True
functions, launch = [], gradio.Blocks.launch


def GPU(duration):
    return functions.append


def reported(*words, **options):
    print("functions for the GPU:", len(functions), flush=True)
    return launch(*words, **options)


gradio.Blocks.launch = reported
"""
"""What ZeroGPU's package `spaces` does to a page: CUDA is only pretended, and a launch says if there is a function."""


@pytest.mark.parametrize("zero_gpu", [False, True], ids=["cpu", "zero_gpu"])
def test_a_space_shows_the_same_page(
    started: dict[str, Any], site: Site, tmp_path: Path, zero_gpu: bool
) -> None:
    """With a Space's variables and nothing else; what it said then would be in the Space's log.

    Gradio puts a header of its own on a Space's page, with fonts and answers from other addresses: not on ours.
    """
    subprocess.run(["make", "--silent", "space", f"SPACE={tmp_path / 'app'}"], cwd=ROOT, check=True)
    before, more = files_of(tmp_path / "app"), {}
    if zero_gpu:
        (tmp_path / "spaces.py").write_text(ZERO_GPU)
        more = {"SPACES_ZERO_GPU": "true", "PYTHONPATH": f"{tmp_path / 'app'}:{tmp_path}"}
    with running(sys.executable, tmp_path / "app", tmp_path / "home", PATIENCE, more) as (url, said):
        assert visit(started["browser"], url, MILLISECONDS) == []
    assert files_of(tmp_path / "app") == before, "nothing is written beside app.py"
    assert ("functions for the GPU: 1" in said.read_text()) == zero_gpu


WRONG_VALUES: list[Any] = [
    *([], {}, "x", None, [1], [None] * 9, ["x"] * 100_000, [[[]]] * 7, [{"a": 1}] * 9, [True] * 7),
    ["x", ["<b>"], "hot", [], {}, None, "\u001b[31m"],
    [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}] * 9,
]
"""What no input of the page sends: too few and too many, of other types, files of the server, colours of a terminal."""


def test_a_call_that_the_page_never_makes_is_answered_in_a_sentence(
    started: dict[str, Any], site: Site
) -> None:
    """Gradio printed a traceback for each: 50 KB in the terminal after a minute. Now it is a line a minute at most."""
    from httpx import Client

    from nanokimi.play.complaints import REFUSAL

    answers, before = [], site.said.read_text()
    with Client(base_url=f"{site.url}/gradio_api", timeout=PATIENCE) as client:
        for values in WRONG_VALUES:
            for name in ("write", "look", "compare", "nothing"):
                answers.append(client.post(f"/call/{name}", json={"data": values}))
                if answers[-1].status_code == 200:
                    event = answers[-1].json()["event_id"]
                    with client.stream("GET", f"/call/{name}/{event}") as stream:
                        said = "".join(stream.iter_text())
                    ours = "nk-message error" in said  # a value that the page refuses by itself
                    assert ours or ("event: error" in said and REFUSAL in said), (name, values, said)
            for number in (0, 1, 3, 9, 99_999, -1, "x", None, []):
                wanted = {"fn_index": number, "data": values, "session_hash": "s"}
                answers += [client.post(path, json=wanted) for path in ("/queue/join", "/run/predict")]
        for content in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b"5"):
            for path in ("/call/write", "/queue/join", "/run/predict", "/cancel", "/reset"):
                answers.append(
                    client.post(path, content=content, headers={"content-type": "application/json"})
                )
    assert {answer.status_code for answer in answers} <= {200, 400, 404, 422}
    assert not any("Traceback" in answer.text for answer in answers)
    refused = {answer.text for answer in answers if answer.status_code == 400}
    assert f"{REFUSAL}\n" in refused
    assert all(text.startswith('{"detail":"') and len(text) < 99 for text in refused - {f"{REFUSAL}\n"})
    with visited(started, site) as page:  # the page still works
        page.click("#nk-write")
        page.wait_for_function(IDLE)
    lines = site.said.read_text().removeprefix(before).splitlines()
    assert all(line.startswith("nanokimi: a call was refused") and len(line) < 400 for line in lines), lines
    assert len(lines) <= 10, "a line a minute, and a slow machine has few minutes"
