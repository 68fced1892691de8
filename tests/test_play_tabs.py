"""The tabs of `nanokimi play` as Gradio calls them, without a browser. Skipped where Gradio is missing."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
from report_fixture import write_comparison

from nanokimi.play.asked import Limits
from nanokimi.play.places import Places

TRAIN = {"kind": "train", "flops": 1.0, "train_seconds": 1.0, "loss": 2.0, "step_ms": 9.0, "memory_bytes": 1}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


class Visitor:
    """Somebody who has the page of one tab open: Gradio keeps for each what their lists offer."""

    def __init__(self, build: Callable[[Places], Any], places: Places) -> None:
        import gradio as gr
        from gradio.state_holder import SessionState

        with gr.Blocks() as self.page:
            build(places)
        self.state = SessionState(self.page)

    def call(self, name: str, *values: Any) -> list[Any]:
        """What a function of the tab answers. Raises gradio.Error for values that their inputs do not offer."""
        function = next(one for one in self.page.fns.values() if one.name == name)
        answer = asyncio.run(self.page.process_api(function, list(values), state=self.state))
        return list(answer["data"])


@pytest.fixture
def runs(tmp_path: Path, make_run: Callable[..., Path]) -> Path:
    """A folder with two runs that have begun."""
    run = make_run("nanogpt", "nanogpt")
    for name in ("a", "b"):
        shutil.copytree(run, tmp_path / "runs" / name)
        (tmp_path / "runs" / name / "metrics.jsonl").write_text(json.dumps({**TRAIN, "step": 3}) + "\n")
    return tmp_path / "runs"


def test_a_watched_run_that_is_deleted_is_said_to_be_gone(runs: Path) -> None:
    """Again and again, until another is chosen; before, every later call was refused by Gradio."""
    pytest.importorskip("gradio")
    from nanokimi.play import tab_watch

    visitor = Visitor(tab_watch.build, Places((), runs))
    assert "step 3" in visitor.call("tick", "a", None)[1]
    shutil.rmtree(runs / "a")
    for _ in range(3):
        assert "There is no run &#x27;a&#x27; here any more" in visitor.call("tick", "a", None)[1]
    update, page, _ = visitor.call("tick", "b", None)
    assert "step 3" in page and [label for label, _ in update["choices"]] == ["b"]
    shutil.copytree(runs / "b", runs / "a")
    assert [label for label, _ in visitor.call("tick", "b", None)[0]["choices"]] in (["a", "b"], ["b", "a"])


def test_a_compared_run_that_is_deleted_is_no_longer_chosen(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    from nanokimi.play import tab_compare

    for name in ("a", "b"):
        write_comparison(tmp_path / name, kinds=("train", "eval"), searched=False)
        (tmp_path / name / "config.yaml").touch()
    visitor = Visitor(tab_compare.build, Places((), tmp_path))
    shutil.rmtree(tmp_path / "a")
    assert "no finished run &#x27;a&#x27; here: press Refresh" in visitor.call("compare", ["a", "b"])[0]
    (update,) = visitor.call("refresh", ["a", "b"])
    assert update["value"] == ["b"] and [label for label, _ in update["choices"]] == ["b"]


@pytest.mark.parametrize("launched", [False, True])
def test_of_many_visitors_only_the_last_ones_pages_are_kept(
    launched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradio keeps the state of 10,000 pages, each with the last view that it showed: memory grew for hours."""
    gr = pytest.importorskip("gradio")
    from nanokimi.play import server

    with gr.Blocks() as page:
        gr.HTML("x" * 1000)
    monkeypatch.setattr(server, "build_page", lambda *_: page)
    monkeypatch.setattr(server, "look", dict)
    monkeypatch.setattr(server, "open_players", lambda *_: {})
    if launched:
        monkeypatch.setattr(gr.Blocks, "launch", partialmethod(gr.Blocks.launch, prevent_thread_lock=True))
        monkeypatch.setenv("GRADIO_SERVER_PORT", str(free_port()))
        server.space()
    else:
        server.build_app({}, Limits(), Places(()), loopback=True)[1].close()
    for number in range(2 * server.MOST_SESSIONS):
        page.state_holder[f"visitor {number}"]
    kept = list(page.state_holder.session_data)
    assert len(kept) <= server.MOST_SESSIONS + 1 and kept[-1] == f"visitor {2 * server.MOST_SESSIONS - 1}"
    page.close()
