"""Weights that come with the package: their name stands wherever a run is taken, and a path of that name wins."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import nanokimi as nk
from nanokimi import cli, pretrained
from nanokimi.config.files import load_config
from nanokimi.train.run_folder import set_up

ROOT = Path(nk.__file__).parent.parent


@pytest.fixture
def shipped(make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with the weights `tiny-1k` of two arms; the working directory is elsewhere."""
    folder = tmp_path / "package" / "tiny-1k"
    for model in ("nanokimi", "nanogpt"):
        run = make_run(f"package/tiny-1k/{model}", model)
        (folder / "data").exists() or shutil.copytree(run / "data", folder / "data")
        shutil.rmtree(run / "data")
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path / "package")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def test_a_name_is_a_run_for_every_command_that_takes_one(
    shipped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nanokimi.cli.judge import opened_runs
    from nanokimi.cli.resuming import begin_with
    from nanokimi.interop.export import run_to_export

    assert cli.main(["sample", "tiny-1k", "--prompt", "the dog", "--max_new_tokens", "4"]) == 0
    said = capsys.readouterr().out
    assert "--- NanoKimi\nthe dog" in said and "--- NanoGPT\nthe dog" in said
    assert cli.main(["evaluate", "tiny-1k/nanogpt", "--json"]) == 0
    assert str(shipped / "nanogpt") in capsys.readouterr().out
    assert cli.main(["audit", "tiny-1k/nanogpt"]) == 0
    assert cli.main(["prune", "tiny-1k", "--keep", "2"]) == 2
    assert "tiny-1k is a comparison" in capsys.readouterr().err
    assert cli.main(["export", "tiny-1k", "--out", "x"]) == 2
    assert "with --arm: nanogpt, nanokimi" in capsys.readouterr().err
    assert cli.main(["push", "tiny-1k", "owner/name"]) == 2
    assert "with --arm: nanogpt, nanokimi" in capsys.readouterr().err
    assert run_to_export(pretrained.run_path("tiny-1k"), "nanokimi") == shipped / "nanokimi"
    assert list(opened_runs(["tiny-1k"], {})) == ["NanoGPT", "NanoKimi"]
    rest: list[str] = []
    begin_with({"init_from": "tiny-1k/nanokimi"}, rest)
    assert rest == [f"--train.init_from={shipped / 'nanokimi'}"]


def test_python_loads_nanokimi_unless_another_arm_is_named(shipped: Path, tmp_path: Path) -> None:
    assert isinstance(nk.load("tiny-1k").model, nk.NanoKimi)
    assert isinstance(nk.load("tiny-1k", arm="nanogpt").model, nk.NanoGPT)
    assert isinstance(nk.load("tiny-1k/nanogpt").model, nk.NanoGPT)
    assert nk.evaluate("tiny-1k")["folder"] == str(shipped / "nanokimi")
    config = load_config(str(shipped / "nanokimi" / "config.yaml"), ["--train.init_from", "tiny-1k/nanokimi"])
    (tmp_path / "new").mkdir()
    assert set_up(config, tmp_path / "new")[0].train.init_from == str(shipped / "nanokimi")
    shutil.copytree(shipped / "nanogpt", "tiny-1k")
    shutil.copytree(shipped / "data", "tiny-1k/data")
    assert isinstance(nk.load("tiny-1k").model, nk.NanoGPT), "a path of that name wins"


def test_only_the_folders_of_shipped_weights_have_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    shipped = tmp_path / "tiny-1k"
    shipped.mkdir()
    assert pretrained.run_path("tiny-1k") == shipped
    for word in (
        "",
        ".",
        "..",
        "tiny-1k/..",
        "../package/tiny-1k",
        "none",
        "tiny-1k/none",
        "~nobody-here/x",
        "a\0b",
    ):
        assert pretrained.run_path(word) == Path(word), word
    assert pretrained.run_path(shipped) == shipped and pretrained.shipped_names() == ["tiny-1k"]
    with pytest.raises(nk.UserError, match="none is not a folder"):
        nk.load("none")


def test_the_wheel_holds_the_weights_whole(tmp_path: Path) -> None:
    """Every kind of file, at every depth, by the patterns of pyproject.toml."""
    clone = tmp_path / "clone"
    place = clone / "nanokimi" / "pretrained"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        clone.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, clone)
    place.mkdir(parents=True)
    (clone / "nanokimi" / "__init__.py").write_text('__version__ = "1"\n')
    shutil.copy(pretrained.__file__, place)
    files = ["tiny-1k/config.yaml", "tiny-1k/data/val.bin", "tiny-1k/nanokimi/model.safetensors"]
    for file in files:
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text("x")
    code = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    done = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = zipfile.ZipFile(next(clone.glob("*.whl"))).namelist()
    assert {f"nanokimi/pretrained/{file}" for file in files} <= set(names)
