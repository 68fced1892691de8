"""The notebooks: kept without outputs, with the diagrams of docs/, and running from top to bottom, also as scripts."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
MOST_SECONDS = 40 * 60
"""For a notebook that takes six minutes on two free cores."""
CLICK = """
box = prompt_box()
(prompt, button), result = box.children[0].children, box.children[1]
button.click()
print(result.value)
prompt.value = "\\u2603 <b>"
print(result.value)
"""


def cells_of(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_both_notebooks_are_there() -> None:
    assert NAMES == ["nanokimi", "your_idea"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    for cell in cells_of(path):
        assert not cell.get("outputs") and cell.get("execution_count") is None, cell["id"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_shows_the_diagrams_of_the_documents(path: Path) -> None:
    """They are attached, because a notebook on Colab has no docs/ beside it."""
    for cell in cells_of(path):
        for name, content in cell.get("attachments", {}).items():
            drawn = (ROOT / "docs" / "images" / name).read_bytes()
            assert base64.b64decode(content["image/svg+xml"]) == drawn, f"{name} is not what docs/images has"
            assert f"(attachment:{name})" in "".join(cell["source"])


def test_both_notebooks_begin_with_the_same_installation() -> None:
    first = [next(cell for cell in cells_of(path) if cell["cell_type"] == "code") for path in NOTEBOOKS]
    assert first[0]["source"] == first[1]["source"]


def installing_cell() -> str:
    return "".join(next(cell for cell in cells_of(NOTEBOOKS[0]) if cell["cell_type"] == "code")["source"])


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A notebook in an empty folder, where only torch is installed; what it runs is kept and ends with status 1."""
    ran: list[list[str]] = []

    def version(name: str) -> str:
        if name != "torch":
            raise PackageNotFoundError(name)
        return "2.99.0+cu130"

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        ran.append([*command, Path(command[command.index("--constraint") + 1]).read_text()])
        return subprocess.CompletedProcess(command, 1, "ERROR: no such repository\n")

    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    return ran


def test_without_an_address_the_installation_says_in_a_line_what_to_do(
    alone: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script ends with the line; a notebook shows a UsageError as one line, too, and runs no further cell."""
    with pytest.raises(SystemExit, match="write the address of its repository between the quotes") as ended:
        exec(installing_cell(), {})
    assert str(ended.value).count("\n") == 0 and not alone
    core = pytest.importorskip("IPython.core.error")
    monkeypatch.setattr("IPython.get_ipython", lambda: "a kernel")
    with pytest.raises(core.UsageError, match="REPOSITORY"):
        exec(installing_cell(), {})


def test_the_installation_keeps_the_torch_that_is_there(
    alone: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Colab's torch fits its GPU driver. What pip said is shown if it fails."""
    cell = installing_cell().replace('REPOSITORY = ""', 'REPOSITORY = "https://example.com/nanokimi"')
    with pytest.raises(SystemExit, match="pip could not install nanokimi"):
        exec(cell, {})
    assert capsys.readouterr().out == "ERROR: no such repository\n\n"
    (command,) = alone
    assert command[-2:] == ["git+https://example.com/nanokimi", "torch==2.99.0+cu130\n"]


def executed(path: Path, folder: Path, more: str = "") -> list[dict[str, Any]]:
    """The cells of a notebook that was run in a folder, with one more cell."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    if more:
        notebook.cells.append(nbformat.v4.new_code_cell(more))
    client = nbclient.NotebookClient(
        notebook, timeout=MOST_SECONDS, resources={"metadata": {"path": str(folder)}}
    )
    return client.execute().cells


def printed(cells: list[dict[str, Any]]) -> str:
    """What the cells printed."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join(output["text"] for output in outputs if output.output_type == "stream")


def shown(cells: list[dict[str, Any]], kind: str) -> int:
    """How many outputs of a media type the cells show."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return sum(kind in output.get("data", {}) for output in outputs)


@pytest.mark.slow  # trains for minutes
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    cells = executed(ROOT / "notebooks" / "nanokimi.ipynb", tmp_path, CLICK)
    text = printed(cells)
    assert shown(cells, "image/png") == 5 and shown(cells, "application/vnd.jupyter.widget-view+json") >= 1
    assert "with mask       causal" in text and "mask forgotten  LEAKING" in text
    answers = printed(cells[-1:])
    assert "<h4>NanoKimi</h4>" in answers and "<h4>NanoGPT with Muon</h4>" in answers
    assert "<b>\u2603 &lt;b&gt;</b>" in answers, "what was typed is shown as text"


@pytest.mark.slow  # trains for minutes
def test_the_notebook_of_an_idea_runs_from_top_to_bottom(tmp_path: Path) -> None:
    cells = executed(ROOT / "notebooks" / "your_idea.ipynb", tmp_path)
    text = printed(cells)
    assert "my_attention.py         causal" in text and "unmasked_attention.py   LEAKING" in text
    assert "95% interval" in text and shown(cells, "image/png") == 1


@pytest.mark.slow  # trains for a minute
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_runs_as_a_script(path: Path, tmp_path: Path) -> None:
    """With fewer steps; the prompt box stands aside. `nanokimi.py` does not hide the package of that name."""
    nbconvert = pytest.importorskip("nbconvert")
    script, _ = nbconvert.PythonExporter().from_filename(str(path))
    assert "STEPS = 200" in script or "STEPS, SEEDS = 200, 3" in script
    script = script.replace("STEPS = 200", "STEPS = 60").replace(
        "STEPS, SEEDS = 200, 3", "STEPS, SEEDS = 60, 2"
    )
    (tmp_path / f"{path.stem}.py").write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, f"{path.stem}.py"],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert path.stem != "nanokimi" or "The prompt box needs a notebook" in done.stdout
