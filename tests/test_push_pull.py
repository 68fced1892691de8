"""`nanokimi push` and `pull`, against a server on this machine that speaks the Hub's API."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from conftest import PATIENCE, make_text
from hub_server import TOKEN, Handler, HubServer, Repository
from test_interop import one_line, tiny_run

from nanokimi import cli
from nanokimi.train.run import train_alone
from nanokimi.train.run_folder import open_run

# the Hub's client sends a file in a way that its own HTTP library no longer likes
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
PUSHED = {
    *("README.md", "config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of NanoGPT."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text(make_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOKIMI_CACHE", str(tmp_path_factory.mktemp("cache")))
        train_alone(replace(tiny_run(folder / "text.txt"), model="nanogpt"), folder / "run")
    return folder / "run"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """The server, a login for it, and a client that neither asks another one nor waits before it asks again."""
    server = HubServer()
    constants = huggingface_hub.constants
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    for name, value in (
        ("HF_HUB_OFFLINE", False),
        ("HF_HUB_DISABLE_XET", True),
        ("HF_HUB_DISABLE_TELEMETRY", True),
        ("HF_TOKEN_PATH", str(tmp_path / "no-login")),
    ):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr("time.sleep", lambda _: None)
    yield server
    server.stop()
    assert not list((tmp_path / "tmp").iterdir()), "the temporary folder is gone, however it ended"


@pytest.fixture(scope="module")
def files(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an export of the run holds."""
    out = tmp_path_factory.mktemp("exported") / "out"
    assert cli.main(["export", str(run), "--out", str(out)]) == 0
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_run_goes_up_private_and_comes_down_the_same(
    run: Path, hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["push", str(run), "me/model"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    repository = hub.repositories["me/model"]
    assert repository.private and repository.files.keys() == PUSHED and repository.commits == 1
    assert "Reloaded with transformers" in printed and "Went to me/model (private): 6 files" in printed
    assert printed.endswith(f"{hub.url}/me/model/commit/{repository.sha}\n")
    assert all(f"{len(content):,}  {name}\n" in printed for name, content in repository.files.items())
    repository.files |= {"pytorch_model.bin": b"no", "modeling.py": b"no", "sub/config.json": b"{}"}
    words = ["pull", "me/model", "--out", str(tmp_path / "back"), "--data", str(run.parent / "text.txt")]
    hub.requests.clear()
    assert cli.main(words) == 0, capsys.readouterr().err
    assert f"Try: nanokimi sample {tmp_path / 'back'}" in capsys.readouterr().out
    fetched = {one.rpartition("/")[2] for one in hub.requests if one.startswith("GET") and "resolve" in one}
    assert fetched == {"config.json", "tokenizer.json", "model.safetensors"}
    ours, theirs = open_run(run), open_run(tmp_path / "back")
    ids = torch.from_numpy(ours.data.val_ids[:40].astype(int))[None]
    assert torch.equal(ours.model(ids).logits_BTW, theirs.model(ids).logits_BTW)
    assert ours.data.val_ids.tolist() == theirs.data.val_ids.tolist()
    origin = json.loads((tmp_path / "back" / "import.json").read_text())["source"]
    assert origin == f"me/model@{repository.sha}"


def test_a_dry_run_needs_no_login_and_sends_nothing(
    run: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert cli.main(["push", str(run), "me/model", "--dry-run", "--public"]) == 0
    printed = capsys.readouterr().out
    assert hub.requests == [] and "Would go to me/model (public): 6 files" in printed
    assert all(f"  {name}\n" in printed for name in PUSHED) and "Nothing was sent." in printed
    assert "there is no login for the Hub: run `hf auth login`" in one_line(
        ["push", str(run), "me/model"], capsys
    )
    assert hub.requests == []


def quick_export(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
    """Let `push` find the export done: what it does is tested above."""
    from nanokimi.interop.verify import Receipt

    def export(_: Path, out: Path, __: str) -> Receipt:
        out.mkdir()
        for name, content in files.items():
            (out / name).write_bytes(content)
        return Receipt("a test", 1, 0.0, 1, 0, 1, 0)

    monkeypatch.setattr("nanokimi.interop.hub.export_hf", export)


def test_who_may_see_it_is_never_changed_by_a_push(
    run: Path,
    hub: HubServer,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quick_export(monkeypatch, files)
    words = ["push", str(run), "me/model"]
    assert cli.main([*words, "--public"]) == 0
    assert not hub.repositories["me/model"].private
    assert "exists and is public: add --public" in one_line(words, capsys)
    assert hub.repositories["me/model"].commits == 1
    assert cli.main([*words, "--public"]) == 0
    assert hub.repositories["me/model"].commits == 2
    hub.repositories["me/model"].private = True
    assert "exists and is private: leave out --public" in one_line([*words, "--public"], capsys)


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/api/models", 401, "does not accept the login (401)"),
        ("/api/repos/create", 401, "does not accept the login (401)"),
        ("/api/repos/create", 403, "may not do that (403)"),
        ("/preupload", 500, "answers with status 500"),
        ("/batch", 500, "answers with status 500"),
        ("/objects", 500, "answers with status 500"),
        ("/commit", 500, "answers with status 500"),
        ("/commit", 401, "login"),
        ("/validate-yaml", 0, "cannot be reached, or not understood"),
        ("/preupload", 0, "cannot be reached, or not understood"),
    ],
)
def test_a_hub_that_refuses_or_breaks_off_gets_nothing_half(
    path: str,
    status: int,
    said: str,
    run: Path,
    hub: HubServer,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quick_export(monkeypatch, files)
    hub.fault = (path, status)
    printed = one_line(["push", str(run), "me/model"], capsys)
    assert said in printed and TOKEN not in printed
    made = hub.repositories.get("me/model")
    assert made is None or (made.files == {} and "repository is empty, push again" in printed)
    hub.fault = None
    assert cli.main(["push", str(run), "me/model"]) == 0, "the next one goes through"


def test_what_went_through_is_not_said_to_be_missing(
    run: Path,
    hub: HubServer,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The commit is made, and the Hub fails when it is asked what it holds."""
    quick_export(monkeypatch, files)
    hub.fault = ("/revision/", 500)
    assert "the files were sent, but what the Hub holds was not seen" in one_line(
        ["push", str(run), "me/model"], capsys
    )
    assert hub.repositories["me/model"].files.keys() == PUSHED


def test_a_commit_whose_answer_is_lost_is_looked_for(
    run: Path,
    hub: HubServer,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The commit is made, and the connection breaks off within the answer, which is no word about the commit."""
    quick_export(monkeypatch, files)
    words = ["push", str(run), "me/model"]
    hub.fault = ("/commit", 0)
    assert cli.main(words) == 0, capsys.readouterr().err
    assert f"{hub.url}/me/model/commit/{hub.repositories['me/model'].sha}" in capsys.readouterr().out
    files["README.md"] += b"more"
    right = Handler.commit

    def then_down(self: Handler, *given: Any) -> None:
        right(self, *given)
        hub.fault = ("/api/models", 503)

    with monkeypatch.context() as patch:
        patch.setattr(Handler, "commit", then_down)
        printed = one_line(words, capsys)
    assert "whether the files arrived is not known: push again" in printed and "as it was" not in printed
    hub.fault = ("/commit", 500)
    files["README.md"] += b"and more"
    assert "the repository is as it was, push again" in one_line(words, capsys)


def test_a_file_that_arrives_changed_is_not_done(
    run: Path,
    hub: HubServer,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quick_export(monkeypatch, files)
    right = dict.__setitem__

    class Losing(dict[str, bytes]):
        def __setitem__(self, name: str, content: bytes) -> None:
            right(self, name, content[:-1] + b"?")

    hub.objects = Losing()
    assert cli.main(["push", str(run), "me/model"]) == 1
    assert "holds another model.safetensors than was sent" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model", "/model", "me/", "me/a/b", "me/mo del", "me/a--b", "../model"])
def test_a_name_without_owner_is_one_line(
    name: str, run: Path, hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "expected owner/name" in one_line(["push", str(run), name], capsys)
    assert "expected owner/name" in one_line(["pull", name, "--out", str(tmp_path / "run")], capsys)
    assert hub.requests == [] and not (tmp_path / "run").exists()


CONFIG = b'{"model_type": "gpt2", "n_layer": 1000000000, "n_head": 2, "n_embd": 32, "vocab_size": 61, "n_positions": 9}'


@pytest.mark.parametrize(
    ("fault", "change", "said"),
    [
        (("/api/models", 401), {}, "does not accept the login (401)"),
        (("/resolve", 403), {}, "may not do that (403)"),
        (("/api/models", 500), {}, "answers with status 500"),
        (("/resolve", 500), {}, "answers with status 500"),
        (("/resolve", 0), {}, "cannot be reached, or not understood"),
        (None, {"config.json": None}, "me/model has no config.json"),
        (None, {"config.json": b"{"}, "me/model/config.json is not valid JSON"),
        (None, {"config.json": b'{"model_type": "llama"}'}, "me/model/config.json has model_type llama"),
        (None, {"config.json": CONFIG}, "must be at most 1000"),
        (None, {"model.safetensors": None, "pytorch_model.bin": b"x"}, "only safetensors are read"),
        (None, {"model.safetensors": b"half"}, "is damaged, or not whole"),
        (None, {"tokenizer.json": None}, "has no tokenizer.json"),
        (
            None,
            {
                "model.safetensors": None,
                "model.safetensors.index.json": b'{"weight_map": {"a": "../../x.safetensors"}}',
            },
            "expected safetensors files beside it",
        ),
        (
            None,
            {
                "model.safetensors": None,
                "model.safetensors.index.json": b'{"weight_map": {"a": "a.safetensors"}}',
            },
            "lacks a.safetensors, which its index names",
        ),
    ],
)
def test_what_cannot_be_pulled_is_one_line_and_leaves_nothing(
    fault: tuple[str, int] | None,
    change: dict[str, bytes | None],
    said: str,
    hub: HubServer,
    files: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed = {name: content for name, content in {**files, **change}.items() if content is not None}
    hub.repositories["me/model"] = Repository(private=False, files=changed, commits=1)
    hub.fault = fault
    printed = one_line(["pull", "me/model", "--out", str(tmp_path / "new" / "run")], capsys)
    assert said in printed and "nanokimi-pull-" not in printed
    assert not (tmp_path / "new").exists()
    if "config.json" in change or "tokenizer.json" in change:
        asked = [one for one in hub.requests if "model.safetensors" in one]
        assert asked == [], "no weights before everything else is known to fit"


def test_a_process_of_its_own_asks_the_server_that_hf_endpoint_names(hub: HubServer, tmp_path: Path) -> None:
    """Here nothing has imported the Hub's client before."""
    words = [sys.executable, "-m", "nanokimi", "pull", "me/model", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert "the Hub has none of that name" in done.stderr
    assert hub.requests == ["GET /api/models/me/model"]


def test_names_that_are_not_there_and_servers_that_are_not(
    run: Path,
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["pull", "me/model", "--out", str(tmp_path / "out")]
    assert "the Hub has none of that name, or it is private" in one_line(words, capsys)
    hub.repositories["me/model"] = Repository(private=True)
    assert "there is no such revision" in one_line([*words, "--revision", "v9"], capsys)
    monkeypatch.delenv("HF_TOKEN")
    assert "none of that name, or it is private" in one_line(words, capsys), "without a login"
    (tmp_path / "taken").mkdir()
    shutil.copy(run / "config.yaml", tmp_path / "taken")
    assert "never overwrites" in one_line([*words[:3], str(tmp_path / "taken")], capsys)
    assert "needs --out" in one_line(words[:2], capsys)
    assert "needs a run folder and owner/name" in one_line(["push", str(run)], capsys)
    assert "there is no option --pubic" in one_line(["push", str(run), "me/model", "--pubic"], capsys)
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE is set: unset it" in one_line(words, capsys)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached, or not understood" in one_line(words, capsys)
    assert not (tmp_path / "out").exists()
