"""`nanokimi play` without Gradio: what visitors may ask for, the desk that writes for them, and the HTML."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import PATIENCE, TINY_VARIANT
from report_fixture import write_comparison

from nanokimi import cli
from nanokimi.errors import UserError
from nanokimi.inside import subject_of
from nanokimi.model.build import build_model
from nanokimi.play import gathered, markup, places, progress
from nanokimi.play.asked import Asked, Limits, chosen_players, command_of, require_room, understand
from nanokimi.play.complaints import FAULT, REFUSAL, Complaints
from nanokimi.play.curves import Line, charts, round_numbers
from nanokimi.play.desk import DONE, FAILED, STOPPED, Desk, Text
from nanokimi.play.look import Inspector, wanted_maps
from nanokimi.play.models import Player, open_players, presets
from nanokimi.play.panes import panes
from nanokimi.play.places import Places, offered
from nanokimi.play.watch import Watcher, in_words

LIMITS = Limits(prompt_characters=100, tokens=50)
ASKED: dict[str, Any] = {
    "prompt": "the dog",
    "temperature": 0.8,
    "top_k": 0,
    "top_p": 0.9,
    "seed": 3,
    "tokens": 24,
}
Opened = dict[str, Player]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("play")


@pytest.fixture(scope="module")
def opened() -> Opened:
    """What `both` has opened, once for all tests."""
    return {}


@pytest.fixture
def both(request: pytest.FixtureRequest, folder: Path, opened: Opened) -> Opened:
    """A NanoKimi and a NanoGPT, opened as the page does."""
    if not opened:
        make_run: Callable[..., Path] = request.getfixturevalue("make_run")
        for model in ("nanogpt", "nanokimi"):
            shutil.copytree(make_run(model, model), folder / model)
        opened |= open_players([str(folder / "nanokimi"), str(folder / "nanogpt")])
    return opened


@pytest.fixture
def desk(both: Opened) -> Iterator[Desk]:
    desk = Desk(both, LIMITS)
    yield desk
    desk.close()


def finished(works: list[Any]) -> list[Any]:
    """Wait until all have ended."""
    deadline = time.monotonic() + PATIENCE
    while not all(work.ended for work in works):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return works


def asked(**changes: Any) -> Asked:
    return understand(LIMITS, **{**ASKED, **changes})


def test_the_same_seed_writes_what_sample_writes(
    desk: Desk, both: Opened, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the letter, with every setting of the page, by the very command that the page shows."""
    everyone = list(both.values())
    other: dict[str, Any] = {"top_k": 5, "top_p": 1.0, "seed": 2**53, "temperature": 0.5123456789}
    for players, order in ((everyone, asked()), (everyone[:1], asked(**other))):
        texts = finished(desk.write("a", players, order))
        for player, text in zip(players, texts, strict=True):
            words = shlex.split(command_of(player, order))
            assert words[:2] == ["nanokimi", "sample"] and cli.main(words[1:]) == 0
            assert f"--temperature={order.temperature!r}" in words
            said = capsys.readouterr().out
            assert said == f"--- {player.name}\nthe dog{text.text}\n" and text.state == DONE
            assert text.tokens <= 24 and text.cache_bytes > 0 and text.tokens_per_second


def test_visitors_write_in_turns_and_stop(desk: Desk, both: Opened) -> None:
    """Everybody goes on at the same pace, a second wish of a visitor ends the first, and a place is given back."""
    players = list(both.values())
    first = desk.write("a", players, asked(tokens=50))
    second = desk.write("b", players, asked(tokens=50))
    again = desk.write("a", players[:1], asked(tokens=5))
    assert all(text.cancelled for text in first)
    finished([*first, *second, *again])
    assert [text.state for text in second] == [DONE, DONE] and again[0].state == DONE
    assert {text.state for text in first} <= {STOPPED, DONE}
    last = desk.write("c", players, asked(tokens=50))
    desk.stop("c")
    finished(last)
    deadline = time.monotonic() + PATIENCE
    while desk.worker.present:
        assert time.monotonic() < deadline
    assert desk.worker.given == 7 and desk.worker.waiting == []
    task = desk.compute("d", lambda: 1 / 0)
    assert finished([task])[0].error == "unexpected ZeroDivisionError"
    assert finished([desk.compute("d", lambda: "ok")])[0].result == "ok"


def test_a_full_queue_refuses_and_keeps_no_half_of_a_wish(both: Opened) -> None:
    desk = Desk(both, Limits(at_once=1, queue=0))
    with pytest.raises(UserError, match="try again in a moment"):
        desk.write("a", list(both.values()), asked())
    deadline = time.monotonic() + PATIENCE
    while desk.worker.present:
        assert time.monotonic() < deadline
    desk.close()


class Busy:
    """Work that never ends by itself."""

    cancelled = False

    def advance(self) -> bool:
        time.sleep(0.001)
        return True

    def tell(self, refused: object) -> None:
        pass


def occupied(players: Opened) -> tuple[Desk, Busy]:
    """A desk that is busy, with room for two more."""
    desk, busy = Desk(players, Limits(at_once=1, queue=2)), Busy()
    desk.worker.submit([busy])
    deadline = time.monotonic() + PATIENCE
    while desk.worker.waiting:
        assert time.monotonic() < deadline
    return desk, busy


def test_who_no_longer_waits_keeps_no_place_in_the_queue(both: Opened) -> None:
    """And a wish for more than there is room for leaves the visitor's earlier one where it was."""
    desk, busy = occupied(both)
    mine, other = desk.compute("a", lambda: "mine"), desk.compute("b", lambda: "other")
    with pytest.raises(UserError, match="3 texts .* try again in a moment"):
        desk.write("a", list(both.values()), asked())
    assert not mine.cancelled and (desk.ahead(mine), desk.ahead(other)) == (0, 1)
    desk.stop("a")
    finished([mine])
    deadline = time.monotonic() + PATIENCE
    while desk.worker.present > 2:
        assert time.monotonic() < deadline
    third = desk.compute("c", lambda: "third")
    assert mine.result is None and (desk.ahead(other), desk.ahead(third)) == (0, 1)
    busy.cancelled = True
    assert [task.result for task in finished([other, third])] == ["other", "third"]
    desk.close()


def test_a_second_wish_takes_the_room_of_the_first_at_the_end_of_the_queue(both: Opened) -> None:
    """With room for no more than one wish, the second was refused until the first had been written."""
    desk, players = Desk(both, Limits(at_once=1, queue=1)), list(both.values())
    first = desk.write("a", players, asked(tokens=50))
    second = desk.write("a", players, asked(tokens=3))
    assert all(text.cancelled for text in first)
    assert [text.state for text in finished(second)] == [DONE, DONE]
    finished(first)
    desk.close()

    desk, busy = occupied(both)
    mine, other = desk.compute("a", lambda: "mine"), desk.compute("b", lambda: "other")
    for _ in range(99):
        again = desk.compute("a", lambda: "again")
    assert desk.worker.present == 3 and finished([mine])[0].result is None
    assert (desk.ahead(other), desk.ahead(again)) == (0, 1)
    with pytest.raises(UserError, match="try again in a moment"):
        desk.compute("c", lambda: "a third visitor")
    busy.cancelled = True
    assert [task.result for task in finished([other, again])] == ["other", "again"]
    desk.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": None}, "prompt is empty"),
        ({"prompt": "x" * 101}, "101 characters, and this page takes 100"),
        ({"prompt": "x" * 1_000_000}, "1,000,000 characters"),
        ({"prompt": "\ud800"}, "half a character"),
        ({"tokens": 51}, "must be 1 to 50"),
        ({"tokens": 0}, "must be 1 to 50"),
        ({"tokens": 2.5}, "whole number"),
        ({"tokens": None}, "length is missing"),
        ({"seed": -1}, "at least 0"),
        ({"seed": 2**63}, "below 2"),
        ({"seed": 10**400}, "too large"),
        ({"seed": [1]}, "give a number"),
        ({"temperature": "hot"}, "temperature is hot"),
        ({"temperature": float("nan")}, "give a number"),
        ({"temperature": True}, "give a number"),
        ({"top_k": {}}, "top-k is {}"),
        ({"top_p": float("inf")}, "top-p is inf"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        asked(**changes)


def test_models_refuse_what_they_cannot_write(desk: Desk, both: Opened) -> None:
    players = list(both.values())
    for changes, message in (
        ({"temperature": -1.0}, "temperature is -1"),
        ({"top_p": 2.0}, "top_p is 2"),
        ({"top_k": -3}, "top_k is -3"),
    ):
        with pytest.raises(UserError, match=message):
            desk.write("a", players, asked(**changes))
    (unknown,) = finished(desk.write("a", players[:1], asked(prompt="\u2603 \x00", tokens=4)))
    assert unknown.state == DONE, "characters that the model never saw are only hard to go on from"
    for names in ([], None, ["nobody"], "<b>"):
        with pytest.raises(UserError):
            chosen_players(both, names)
    assert chosen_players(both, ["NanoGPT", "NanoKimi"]) == players


HOSTILE = "<script>alert(1)</script> ${7*7} {{7*7}} `x` \x00\x1b[31m\x7f\u202egnp.exe & \"'"


def test_hostile_text_is_shown_as_text(desk: Desk, both: Opened) -> None:
    player = both["NanoGPT"]
    text = Text(
        player.served, desk._text(player, asked()).asked, lambda _: None, pieces=[HOSTILE], reason="stop"
    )
    page = panes(desk, [player], [text], asked(prompt=HOSTILE))
    assert "<script" not in page and "\x00" not in page and "\x1b" not in page and "\u202e" not in page
    assert "&lt;script&gt;" in page and "\u2400" in page and "\u241b[31m\u2421[U+202E]" in page
    assert "<script" not in markup.message(HOSTILE) and "<script" not in markup.frame(HOSTILE, HOSTILE)


def test_the_panes_say_what_happens(desk: Desk, both: Opened) -> None:
    players = list(both.values())
    texts = finished(desk.write("a", players, asked(prompt="the dog " * 9)))
    page = panes(desk, players, texts, asked(prompt="the dog " * 9))
    assert page.count('aria-busy="false"') == 2 and page.count("nanokimi sample") == 2
    assert "72 tokens; this model reads the last 16" in page
    waiting = Text(players[0].served, texts[0].asked, lambda _: None, number=9)
    desk.worker.ahead = {9: 3}.__getitem__  # type: ignore[method-assign]
    assert "waiting, 3 before you" in panes(desk, players[:1], [waiting], asked())
    failed = Text(players[0].served, texts[0].asked, lambda _: None, ended=True, error="no <b>")
    assert failed.state == FAILED and "no &lt;b&gt;" in panes(desk, players[:1], [failed], asked())


def test_two_models_of_one_name_are_told_apart(both: Opened, folder: Path) -> None:
    shutil.copytree(folder / "nanogpt", folder / "again", dirs_exist_ok=True)
    found = open_players([str(folder / "nanogpt"), str(folder / "again")])
    assert list(found) == [f"NanoGPT ({folder.name}/nanogpt)", f"NanoGPT ({folder.name}/again)"]
    with pytest.raises(UserError, match="named twice"):
        open_players([str(folder / "nanogpt")] * 2)
    begins = presets(both["NanoGPT"].run.data)
    assert 1 <= len(begins) <= 4 and all(0 < len(one) <= 60 for one in begins)


def test_the_inside_view_is_of_what_was_written(both: Opened) -> None:
    inspector = Inspector(both)
    page = inspector.page(list(both.values()), asked(tokens=6), wanted_maps("0", "1"))
    assert "NanoKimi" in page and "NanoGPT" in page and page.startswith("<!DOCTYPE html>")
    assert set(inspector.liked) == {"NanoKimi", "NanoGPT"}
    with pytest.raises(UserError, match="no layer 9"):
        inspector.page([both["NanoGPT"]], asked(tokens=2), wanted_maps("9", None))
    assert wanted_maps("none", "3") is None
    assert "choose a layer" in inspector.page([both["NanoGPT"]], asked(tokens=2), None)
    with pytest.raises(UserError, match="numbers, counted from 0"):
        wanted_maps("<b>", "all")


def test_a_map_that_one_model_lacks_leaves_the_view_of_all(
    both: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list offers the layers of the model that has most."""
    last, beyond = wanted_maps("1", "all"), wanted_maps("2", "all")
    assert last is not None and beyond is not None
    inspector = Inspector(both)
    assert inspector.most_maps == (2, 2)
    assert inspector.has_map("NanoKimi", last) and not inspector.has_map("NanoKimi", beyond)
    with monkeypatch.context() as patched:
        patched.setattr(inspector, "has_map", lambda name, wanted: name == "NanoGPT")
        page = inspector.page(list(both.values()), asked(tokens=4), last)
    assert page.count("no such map: its layers are 0 to 1, its heads 0 to 1.") == 1
    assert page.count('"maps":[{') == 1
    own = inspector.subjects["NanoKimi"]
    sizes = {"vocab_size": own.tokenizer.vocab_size, "max_position_embeddings": own.context_length}
    latent = build_model(replace(TINY_VARIANT, attention="latent", **sizes), seed=1)
    inspector.subjects["NanoKimi"] = replace(own, model=latent)
    page = inspector.page(list(both.values()), asked(tokens=4), last)
    assert page.count("The attention of layer 1 does not show weights over tokens.") == 1
    assert page.count('"maps":[{') == 1
    page = inspector.page([both["NanoKimi"]], asked(tokens=4), last)
    assert "does not show weights over tokens" in page, "the rest of the view is there without the map"


def test_runs_of_one_name_are_all_offered(tmp_path: Path) -> None:
    """With as many of the folders before it in its label as tell a run from those before it."""
    runs = [tmp_path / arm / "nanogpt" / "seed-1" for arm in ("a", "b", "c")]
    for run in runs:
        run.mkdir(parents=True)
    assert list(Places(tuple(runs)).all().items()) == list(
        zip(("seed-1", "nanogpt/seed-1", "c/nanogpt/seed-1"), runs, strict=True)
    )


def test_finished_runs_are_compared(folder: Path) -> None:
    """One folder as its own report, and several as one whose verdict holds all their arms."""
    names = ("NanoKimi", "NanoGPT")
    for name in ("one", "two"):
        write_comparison(folder / "runs" / name, names=names, kinds=("train", "eval"), searched=False)
        (folder / "runs" / name / "config.yaml").touch()
    places = Places((), folder / "runs")
    assert sorted(places.comparable()) == ["one", "two"]
    report, arms = gathered.gathered([folder / "runs" / "one", folder / "runs" / "two"])
    assert [arm.name for arm in arms] == [*names, "NanoKimi (two)", "NanoGPT (two)"]
    assert len(report["comparisons"]) == 6 and all(len(arm.runs) == 2 and arm.runs[0].records for arm in arms)
    assert "not distinguishable" in report["verdict"]["sentence"]
    other = json.loads((folder / "runs" / "two" / "report.json").read_text())
    for change, message in (
        ({"data": {**other["data"], "sha256": "0"}}, "another text"),
        ({"schema_version": 1}, "another version"),
    ):
        (folder / "runs" / "two" / "report.json").write_text(json.dumps({**other, **change}))
        with pytest.raises(UserError, match=message):
            gathered.report_page([folder / "runs" / "one", folder / "runs" / "two"])
    uneven = {**other, "arms": [{**arm, "seeds": [9, 10]} for arm in other["arms"]]}
    (folder / "runs" / "two" / "report.json").write_text(json.dumps(uneven))
    report, _ = gathered.gathered([folder / "runs" / "one", folder / "runs" / "two"])
    assert "different seeds" in report["verdict"]["sentence"] and report["comparisons"] == []


def test_a_run_in_progress_is_followed(both: Opened, folder: Path) -> None:
    """Each record is read once, half a line is left for later, and a run that begins again is read again."""
    run = folder / "watched"
    shutil.copytree(folder / "nanokimi", run)
    place = {"tokens": 1, "flops": 1.0, "train_seconds": 1.0}
    train = {"kind": "train", **place, "loss": 2.0, "step_ms": 10.0, "memory_bytes": 5_000_000}
    lines = [json.dumps({**train, "step": step}) for step in (1, 2, 3)]
    lines.append(json.dumps({"kind": "eval", "step": 3, "val_loss": 1.5}))
    lines.append(json.dumps({"kind": "sample", "step": 3, "prompt": "<i>", "text": "<b>a story"}))
    metrics, watcher = run / "metrics.jsonl", Watcher()
    metrics.write_text("\n".join(lines) + '\nnot json\n{"kind": "tr')
    (seen,) = watcher.look(run)
    assert (seen.step, seen.total_steps, len(seen.losses), seen.state) == (3, 12, 3, "in progress")
    assert seen.tokens_per_second == 8 * 16 / 10 * 1e3 and seen.seconds_left == pytest.approx(0.09)
    page = progress.progress_page([seen])
    assert (
        "&lt;b&gt;a story" in page
        and "<b>a story" not in page
        and "step 3 of 12" in page
        and "1.5000" in page
    )
    with metrics.open("a") as file:
        file.write('ain", "step": 4, "loss": NaN, "step_ms": 1, "memory_bytes": 1}\n')
        file.write(json.dumps({**train, "step": 5}) + "\n")
    assert watcher.look(run)[0].step == 5
    metrics.write_text(lines[0] + "\n")
    (run / "result.json").write_text("{}")
    (seen,) = watcher.look(run)
    assert (seen.step, seen.state, seen.seconds_left) == (1, "finished", None)
    assert list(Places((), folder).watchable()) == ["watched"]


def test_a_run_that_was_started_anew_is_read_again(both: Opened, folder: Path) -> None:
    """Also if it is longer by then than what was read, and whatever stands in its records."""
    run, watcher = folder / "anew", Watcher()
    shutil.copytree(folder / "nanokimi", run)
    metrics = run / "metrics.jsonl"
    train = {"kind": "train", "flops": 1.0, "train_seconds": 1.0, "step_ms": 10.0, "memory_bytes": 1}

    def lines(steps: int, loss: float) -> str:
        return "".join(
            json.dumps({**train, "step": step, "loss": loss}) + "\n" for step in range(1, steps + 1)
        )

    metrics.write_text(lines(20, 2.0))
    assert len(watcher.look(run)[0].losses) == 20
    (run / "other").write_text(lines(30, 1.0))
    (run / "other").replace(metrics)
    assert watcher.look(run)[0].losses == [(step, 1.0) for step in range(1, 31)]
    os.truncate(metrics, len(lines(25, 1.0)))  # resumed from an earlier step, and on beyond the old one
    with metrics.open("a") as file:
        file.write(lines(40, 3.0)[len(lines(25, 3.0)) :])
    (seen,) = watcher.look(run)
    assert [loss for _, loss in seen.losses] == [1.0] * 25 + [3.0] * 15
    with metrics.open("a") as file:
        for wrong in (
            '{"kind": "train", "step": Infinity}',
            "[" * 100_000,
            "5",
            '{"kind": "eval"}',
            "1" * 5000,
        ):
            file.write(wrong + "\n")
        file.write(f'{{"kind": "eval", "step": 41, "val_loss": 1{"0" * 400}}}\n')
    assert watcher.look(run)[0].step == 40
    shutil.rmtree(run)
    assert watcher.look(run) == [] and "Nothing yet" in progress.progress_page([])


def test_a_run_may_vanish_at_any_moment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its choice stays in the list of the visitor who has it, or Gradio would refuse the very call that says so."""
    assert offered(["b"], "a") == ["b", "a"] and offered(["b"], "b") == offered(["b"], None) == ["b"]
    gone = folder / "gone" / "metrics.jsonl"

    def vanished(path: Path, pattern: str = "") -> Any:
        raise FileNotFoundError(pattern)

    with monkeypatch.context() as patched:
        patched.setattr(places, "metrics_of", lambda path: [gone])
        assert list(Places((folder / "any",), folder).watchable())[:1] == ["any"]
    with monkeypatch.context() as patched:
        patched.setattr(Path, "glob", vanished)
        patched.setattr(Path, "iterdir", vanished)
        assert Places((gone.parent,), folder).watchable() == {} == Places((), folder).comparable()


def test_of_many_runs_those_in_progress_are_shown(both: Opened, folder: Path) -> None:
    many = folder / "more" / "many"
    shutil.copytree(folder / "nanokimi", many)
    (many / "metrics.jsonl").touch()
    (seen,) = Watcher().look(many)
    runs = [replace(seen, name=f"arm {i // 3}", seed=i, finished=i < 10) for i in range(12)]
    page = progress.progress_page(runs)
    shown = re.findall(r"seed (\d+)<", page)
    assert shown == ["0", "1", "2", "3", "4", "5", "10", "11"]
    assert "8 of 12 runs are shown" in page and "--nk-arm-3" in page and "arm 2" not in page
    assert "runs are shown" not in progress.progress_page(runs[:8])


def test_the_name_of_a_folder_can_be_sent_and_hides_nothing(both: Opened, folder: Path) -> None:
    """A name that is not UTF-8 would keep the whole page from being made."""
    name = os.fsdecode(b"odd\xff\n<b>\xe2\x80\xae")
    odd = folder / "odd" / name
    shutil.copytree(folder / "nanogpt", odd)
    (label,) = Places((), folder / "odd").all()
    assert label == "odd\\udcff\n<b>[U+202E]" and label.encode()
    hiding = folder / "odd" / "a\x1b<b>\u202e"  # weights are only opened under names that are UTF-8
    shutil.copytree(folder / "nanogpt", hiding)
    names = list(open_players([str(folder / "nanogpt"), str(hiding)]))
    assert names[1] == "NanoGPT (odd/a\u241b<b>[U+202E])"
    run = both["NanoGPT"].run
    titled = replace(run, config=replace(run.config, name="a\ud800\x1b<b>"))
    assert subject_of(titled).name == "a<U+D800>\u241b<b>"
    for page in (markup.shown("\ud800<"), markup.frame("\ud800", "\ud800"), markup.message("\ud800")):
        assert page.encode() and "\\ud800" in page


def test_there_must_be_room_for_all_models_of_a_page() -> None:
    require_room(Limits(at_once=1, queue=1), 2)
    require_room(Limits(at_once=8, queue=0), 30)
    with pytest.raises(UserError, match="--at_once 1 and --queue 0 leave room for 1 texts, and 2 models"):
        require_room(Limits(at_once=1, queue=0), 2)


def test_curves_have_round_numbers_and_the_floor() -> None:
    assert round_numbers(0, 1000, 6) == [0, 200, 400, 600, 800, 1000]
    assert round_numbers(0.23, 1.4, 5) == [0.5, 1.0] and round_numbers(1, 1, 5) == [1]
    points = [(step, 5 / (1 + step)) for step in range(500)]
    drawn = charts([Line("a", 0, points), Line("b", 1, [(0, 1.0)])], "Loss <&>", floor=0.25)
    assert (
        drawn.count("<polyline") == 2
        and drawn.count("entropy floor 0.250") == 2
        and "Loss &lt;&amp;&gt;" in drawn
    )
    assert charts([Line("a", 0, [(1, 2.0)])], "Loss") == ""
    long = charts([Line("a", 0, [(step, 1.0 - step / 11000) for step in range(0, 10001, 100)])], "Loss")
    assert long.count('text-anchor="end">10,000<') == 2, "the last number is not cut off by the edge"
    assert 'text-anchor="middle">5,000<' in long


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nothing", "3"], "no option --nothing"),
        (["--port", "70000"], "must be 0 to 65535"),
        (["--at_once", "0"], "must be 1 to 1024"),
        (["--runs", "missing"], "missing is not a folder"),
        (["missing"], "missing is not a folder"),
        (["--port", "PORT"], "choose another"),
    ],
)
def test_the_command_refuses_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a port that is in use, before any model is loaded."""
    from nanokimi.cli import play
    from nanokimi.runtime.sockets import listen

    monkeypatch.setattr(play, "find_spec", lambda name: object())
    taken = listen("127.0.0.1", 0)
    port = str(taken.getsockname()[1])
    given = [port if word == "PORT" else word for word in words]
    given += [] if "--port" in words else ["--port", "0"]
    given += [] if words[0] == "missing" else ["other"]
    assert cli.main(["play", *given]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    taken.close()


@pytest.mark.parametrize(("words", "address"), [([], "127.0.0.1"), (["--host", "0.0.0.0"], "0.0.0.0")])
def test_only_this_machine_reaches_the_page_unless_asked_and_warned(
    words: list[str], address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nanokimi.cli import play

    served: list[tuple[str, list[str]]] = []

    def serve(players: dict[str, Player], limits: Limits, places: Places, listener: socket.socket) -> None:
        served.append((listener.getsockname()[0], list(players)))
        listener.close()

    server = ModuleType("nanokimi.play.server")  # the true one needs Gradio
    server.serve_players = serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nanokimi.play.server", server)
    monkeypatch.setattr(play, "find_spec", lambda name: object())
    assert cli.main(["play", "--port", "0", *words]) == 0
    assert served == [(address, ["NanoKimi", "NanoGPT with Muon"])], "without a run, the models that ship"
    said = capsys.readouterr()
    assert said.out.startswith(f"Open: http://{address}:")
    assert ("warning: 0.0.0.0 can be reached from other machines, by anyone" in said.err) == bool(words)


def test_without_weights_or_gradio_it_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from nanokimi import pretrained
    from nanokimi.cli import play

    assert pretrained.word_for(pretrained.SHIPPED / "tales-1m" / "nanokimi") == "tales-1m/nanokimi"
    assert pretrained.word_for(Path("runs/x")) == "runs/x"
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path)
    assert cli.main(["play"]) == 2
    assert "play needs a RUN" in capsys.readouterr().err
    monkeypatch.setattr(play, "find_spec", lambda name: None)
    assert cli.main(["play", "x"]) == 2
    assert "pip install -c constraints.txt -e '.[play]'" in capsys.readouterr().err
    assert "gradio" not in sys.modules, "the page's logic needs no Gradio"


def test_what_is_told_of_calls_that_fail_is_a_line_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many come and whatever they hold: a client must not be able to fill the terminal."""
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    complaints = Complaints()
    for _ in range(5000):
        complaints.say(ValueError(f"{HOSTILE}\nx" * 9999))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and len(said) < 400 and said.isascii() and "\x1b" not in said
    assert said.startswith("nanokimi: a call was refused: ValueError: <script>")
    now += 61
    complaints.say(KeyError(7))
    complaints.say(KeyError(8))
    assert capsys.readouterr().err == "nanokimi: a call was refused (4,999 more before it): KeyError: 7\n"


def test_a_fault_of_ours_leaves_its_traceback(
    both: Opened, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most once a minute; what visitors wrote does not colour the terminal. A refusal does not hide it."""
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    complaints = Complaints()
    complaints.say(ValueError("from outside"))
    capsys.readouterr()

    def failed(value: Any) -> Exception:
        try:
            in_words(value)
        except TypeError as error:
            return error
        raise AssertionError

    assert [complaints.say(failed("\x1b[31m")) for _ in range(3)] == [FAULT] * 3
    said = capsys.readouterr().err
    assert said.startswith("nanokimi: a fault of this program:\nTraceback (most recent call last):\n")
    assert said.count("Traceback") == 1 and "watch.py" in said and "in in_words" in said
    now += 61
    assert complaints.say(failed(None)) == FAULT
    assert capsys.readouterr().err.startswith("nanokimi: a fault of this program (2 more before it):\n")
    long = KeyError("\x1b[31m\n" * 9999)
    long.__traceback__ = failed("x").__traceback__
    now += 61
    complaints.say(long)
    said = capsys.readouterr().err
    assert said.isascii() and "\x1b" not in said and len(said) < 20_000

    found: list[BaseException] = []
    desk = Desk(both, Limits(), found.append)
    task = desk.compute(None, lambda: {}["missing"])
    while not task.ended:
        time.sleep(0.01)
    desk.close()
    assert task.error is not None and "unexpected KeyError" in task.error
    assert [repr(error) for error in found] == ["KeyError('missing')"]


def test_a_request_that_fails_is_answered_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the application has said 500 by itself, as Gradio does; what has begun to be sent is left as it is."""
    pytest.importorskip("starlette")
    from nanokimi.play.guard import Guard

    def ask(app: Callable[..., Any]) -> tuple[int, bytes]:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"x" * 10, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
        asyncio.run(Guard(app, Complaints())(scope, receive, send))  # type: ignore[arg-type]
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)

    async def says(send: Any, status: int, body: bytes) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def raises(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError(99_999)

    async def raises_and_says(scope: Any, receive: Any, send: Any) -> None:
        await says(send, 500, b"Internal Server Error")
        raise KeyError(99_999)

    async def only_says(scope: Any, receive: Any, send: Any) -> None:
        await says(send, 500, b"a traceback")

    async def answers(scope: Any, receive: Any, send: Any) -> None:
        await says(send, 200, b"fine")

    for app in (raises, raises_and_says, only_says):
        assert ask(app) == (400, f"{REFUSAL}\n".encode())
    assert ask(answers) == (200, b"fine")
    assert capsys.readouterr().err == "nanokimi: a call was refused: KeyError: 99999\n" * 2
