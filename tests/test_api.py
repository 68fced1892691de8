"""The Python API: what a notebook does in a few lines, and that importing it costs nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import nanokimi as nk
from nanokimi import cli
from nanokimi.config import RunConfig
from nanokimi.config.files import config_text

ROOT = Path(nk.__file__).parent.parent


def test_every_public_name_is_listed_and_found() -> None:
    assert set(nk.__all__) <= set(dir(nk)) and set(nk.__all__) == set(nk._HOMES)
    for name in nk.__all__:
        found = getattr(nk, name)
        assert callable(found) and getattr(found, "__module__", found.__name__).startswith("nanokimi."), name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        nk.nothing  # noqa: B018


def test_a_run_is_loaded_and_writes(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The same text as the command line writes, from a string or a Path."""
    run = make_run(model="nanogpt")
    assert cli.main(["sample", str(run), "--prompt", "the dog", "--seed", "3", "--max_new_tokens", "12"]) == 0
    said = capsys.readouterr().out.removeprefix("--- NanoGPT\n").rstrip("\n")
    for path in (run, str(run)):
        model, tokenizer = nk.load(path)
        found = nk.complete(model, tokenizer, "the dog", seed=3, max_new_tokens=12)
        assert found[0].prompt + found[0].text == said.rstrip() or found[0].prompt + found[0].text == said
    ids = list(nk.generate(model, tokenizer.encode("the dog"), 12, top_p=0.95, seed=3))
    assert tokenizer.decode(ids) == found[0].text and not model.training
    for wrong in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 2.0}, {"context_length": 10_000}):
        with pytest.raises(nk.UserError, match=next(iter(wrong))):
            list(nk.generate(model, [1], 3, **wrong))  # type: ignore[arg-type]
    with pytest.raises(nk.UserError, match="the prompt is empty"):
        list(nk.generate(model, [], 3))


def python_in(document: str) -> list[str]:
    """The examples of a document."""
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)


def test_the_examples_of_the_documents_run(
    make_run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One after another, as in a notebook. Others are run in test_interop.py and test_serve.py."""
    make_run("runs/x", "nanogpt")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for document, count in (("docs/python.md", 2), ("README.md", 2)):
        examples = python_in(document)
        assert len(examples) == count
        for example in examples:
            exec(example, names)
    assert isinstance(names["optimizer"], nk.Muon) and "True" in capsys.readouterr().out


def test_a_comparison_names_its_arms(make_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "both"
    for model in ("nanokimi", "nanogpt"):
        run = make_run(f"both/{model}/seed-7", model)
        (folder / "data").exists() or shutil.copytree(run / "data", folder / "data")
        shutil.rmtree(run / "data")
    with pytest.raises(nk.UserError, match="arm= one of nanogpt/seed-7 and nanokimi/seed-7"):
        nk.load(folder)
    assert isinstance(nk.load(folder, arm="nanogpt").model, nk.NanoGPT)
    assert isinstance(nk.load(folder, arm="NanoKimi").model, nk.NanoKimi)
    assert isinstance(nk.load(str(folder), arm="nanokimi/seed-7").model, nk.NanoKimi)
    with pytest.raises(nk.UserError, match="has no arm 'nanogp': there is nanogpt/seed-7"):
        nk.load(folder, arm="nanogp")
    with pytest.raises(nk.UserError, match="is not a folder"):
        nk.load(tmp_path / "none")
    with pytest.raises(nk.UserError, match="the path of the run is empty"):
        nk.load("")


def test_a_run_is_scored_and_audited(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    import json

    assert cli.main(["evaluate", str(run), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    scores = nk.evaluate(run)
    assert scores == said and scores["name"] == "NanoKimi"
    assert "val_bits_per_byte" in nk.evaluate(run, part="val")
    (tmp_path / "other.txt").write_text("zebras and foxes " * 30)
    assert (
        nk.evaluate(run, data=tmp_path / "other.txt")["val_loss"] != nk.evaluate(run, part="val")["val_loss"]
    )
    with pytest.raises(nk.UserError, match="part is train"):
        nk.evaluate(run, part="train")
    assert nk.audit(str(run), max_cuts=4).causal
    with pytest.raises(nk.UserError, match="at most the model's own"):
        nk.audit(run, context=10_000)
    with pytest.raises(nk.UserError, match="leave out arm="):
        nk.audit(nk.load(run).model, arm="nanokimi", vocab_size=20, context=8)
    assert nk.audit(nk.load(run).model, vocab_size=20, context=8, max_cuts=3).causal


def test_arms_are_compared(tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = tiny_config(max_steps=2, eval_every=2)
    (tmp_path / "tiny.yaml").write_text(config_text(config))
    settings = {"steps": 3, "nanogpt.optim.lr": 2e-3, "memory_limit_gb": None}
    report = nk.compare(
        tmp_path / "text.txt",
        out=tmp_path / "out",
        config=str(tmp_path / "tiny.yaml"),
        arms="NanoGPT",
        settings=settings,
    )
    assert [arm["name"] for arm in report["arms"]] == ["NanoGPT"]
    assert [arm["steps"] for arm in report["arms"]] == [3]
    model, _ = nk.load(tmp_path / "out", arm="nanogpt")
    assert isinstance(model, nk.NanoGPT)
    with pytest.raises(nk.UserError, match="give only out= and resume=True"):
        nk.compare("x.txt", out=tmp_path / "out", resume=True)
    with pytest.raises(nk.UserError, match="give only out= and resume=True"):
        nk.compare(out=tmp_path / "out", config="tales", resume=True)
    with pytest.raises(nk.UserError, match="stepz"):
        nk.compare(tmp_path / "text.txt", settings={"stepz": 3})


def test_a_comparison_refuses_what_it_would_ignore(
    tmp_path: Path, make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the command does, before anything is written."""
    monkeypatch.chdir(tmp_path)
    for part in ("train", "valid"):
        (tmp_path / "two" / part).mkdir(parents=True)
        (tmp_path / "two" / part / "a.txt").write_text(f"{part} " * 400)
    run = make_run()
    (run / "metrics.jsonl").touch()
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("--nanogpt.optim.lr has no effect", {"arms": ["NanoKimi"], "settings": {"nanogpt.optim.lr": 1e-3}}),
        ("--variant.model.norm has no effect", {"settings": {"variant.model.norm": "rmsnorm"}}),
        ("lr is a setting of one arm", {"settings": {"lr": 1e-3}}),
        ("--dataset.val_fraction has no effect", {"data": "two", "settings": {"val_fraction": 0.2}}),
    ]
    before = sorted(tmp_path.iterdir())
    for message, asked in wrong:
        with pytest.raises(nk.UserError, match=message):
            nk.compare(**{"data": "text.txt", "config": "smoke", "out": tmp_path / "out", **asked})
    with pytest.raises(nk.UserError, match="missing.txt"):
        nk.compare("missing.txt", config="smoke")
    with pytest.raises(nk.UserError, match="is a single run: continue it with nanokimi train"):
        nk.compare(out=run, resume=True)
    with pytest.raises(nk.UserError, match="holds no comparison to resume"):
        nk.compare(out=tmp_path / "none", resume=True)
    assert sorted(tmp_path.iterdir()) == before


def test_python_started_beside_the_clone_finds_the_package(tmp_path: Path) -> None:
    """Of an editable install, whose wheel is built here: it has to put the clone's folder on the path.

    In the folder that holds the clone, the clone itself looks like an empty package to Python. Importing must find
    the real one, and without torch.
    """
    clone = tmp_path / "nanokimi"
    clone.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    (clone / "nanokimi").symlink_to(ROOT / "nanokimi")
    build = "from setuptools.build_meta import build_editable; build_editable('built')"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def python(code: str, folder: Path, *options: str) -> str:
        command = [sys.executable, *options, "-c", code]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (clone / "built").mkdir()
    python(build, clone)
    site = tmp_path / "site"
    zipfile.ZipFile(next((clone / "built").glob("*.whl"))).extractall(site)
    asked = (
        "import sys, nanokimi; print(nanokimi.__version__, 'torch' in sys.modules, 'Muon' in dir(nanokimi))"
    )
    beside = f"import site; site.addsitedir({str(site)!r}); {asked}"
    # Without -S, the clone that runs these tests might be found.
    assert python(beside, tmp_path, "-S") == f"{nk.__version__} False True\n"


def test_the_threads_of_a_notebook_are_those_of_the_run(make_run: Callable[..., Path]) -> None:
    nk.load(make_run())
    assert torch.get_num_threads() == 1
