"""Colab on this machine: each notebook alone in an empty folder, with the packages that Colab has, and its PyTorch.

`make colab-rehearsal` runs this file. Colab itself has not been reached from here; what it has is published at
https://github.com/googlecolab/backend-info (the versions below: commit a724079, 2026-08-19, Python 3.13, torch 2.11.0).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = """
docstring_parser==0.18.0 filelock==3.32.3 ipykernel==6.17.1 ipython==7.34.0 ipywidgets==7.7.1 Jinja2==3.1.6
jupyter_client==7.4.9 jupyter_core==5.9.1 matplotlib==3.10.0 nbclient==0.10.4 nbconvert==7.17.1 numpy==2.1.3
pandas==2.2.3 psutil==5.9.5 PyYAML==6.0.3 pyzmq==26.2.1 rich==13.9.4 safetensors==0.8.0 scipy==1.16.3
sentencepiece==0.2.2 setuptools==75.2.0 tornado==6.5.7 traitlets==5.7.1 typing_extensions==4.16.0
""".split()
OURS = ("nanokimi", "jsonargparse", "typeshed_client")
"""What an installation adds to these. Nothing that is there may be replaced: Colab would have to be started anew."""
ADDRESS, NO_ADDRESS = f'REPOSITORY = "file://{ROOT}"', 'REPOSITORY = ""'


def main(work: Path, python: str, torch: str, steps: str) -> None:
    """Run both notebooks from top to bottom in `work`, as notebooks and as scripts, training for so many steps."""
    shutil.rmtree(work, ignore_errors=True)
    made = work / "python" / "bin" / "python"
    subprocess.run([python, "-m", "venv", str(work / "python")], check=True)
    subprocess.run([made, "-m", "pip", "install", "--quiet", "pip==24.1.2"], check=True)
    subprocess.run([made, "-m", "pip", "install", "--quiet", f"torch=={torch}", *PACKAGES], check=True)
    before = installed(made)
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        alone = work / "content" / notebook.stem
        alone.mkdir(parents=True)
        source = shortened(notebook.read_text(encoding="utf-8"), steps)
        for name, text in (
            ("unchanged", source),
            (notebook.stem, source.replace(json.dumps(NO_ADDRESS)[1:-1], json.dumps(ADDRESS)[1:-1])),
        ):
            (alone / f"{name}.ipynb").write_text(text, encoding="utf-8")
            convert(made, alone, name, "script")
        said = subprocess.run([made, "unchanged.py"], cwd=alone, capture_output=True, text=True)
        assert said.returncode == 1 and said.stderr.count("\n") == 1 and "REPOSITORY" in said.stderr, (
            said.stderr
        )
        convert(made, alone, notebook.stem, "notebook", "--execute", "--ExecutePreprocessor.timeout=-1")
        added = dict(installed(made) - before)
        assert set(added) <= set(OURS) and before <= installed(made), added
        subprocess.run([made, f"{notebook.stem}.py"], cwd=alone, check=True)
        print(f"{notebook.name}: ran, and as a script; installed beside what was there: {', '.join(added)}")
        subprocess.run([made, "-m", "pip", "uninstall", "--quiet", "--yes", *added], check=True)


def shortened(text: str, steps: str) -> str:
    """A notebook's JSON with fewer steps and two seeds."""
    for before, after in (("STEPS = 200", f"STEPS = {steps}"), ("SEEDS = 200, 3", f"SEEDS = {steps}, 2")):
        text = text.replace(before, after)
    return text


def convert(made: Path, folder: Path, name: str, kind: str, *words: str) -> None:
    """Convert or execute a notebook; its result has the name `done` if it is a notebook."""
    output = ["--output", "done"] if kind == "notebook" else []
    command = [made, "-m", "nbconvert", f"{name}.ipynb", "--to", kind, *output, *words]
    subprocess.run([str(word) for word in command], cwd=folder, check=True)


def installed(made: Path) -> set[tuple[str, str]]:
    """Name and version of every package."""
    done = subprocess.run(
        [made, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True
    )
    return {(one["name"].replace("-", "_"), one["version"]) for one in json.loads(done.stdout)}


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), *sys.argv[2:])
