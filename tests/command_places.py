"""Places in which the documents' commands find what they name: texts, runs, models of others, our repository."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from commands import ROOT, Command
from conftest import make_text

from nanokimi import cli

TEXTS = ("text.txt", "path/to/text.txt", "tinyshakespeare.txt", "tinystories-sample.txt")
RUNS = tuple("RUN RUN1 RUN2 runs/x runs/a runs/b runs/theirs theirs more FOLDER ARM/seed-N".split())
COMPARISONS = ("runs/compare-1", "runs/compare-tales-1", "runs/tales")
EXPORTED = ("path/to/folder",)
CHECKPOINTS = ("out/ckpt.pt", "out-shakespeare-char/ckpt.pt")
NANOGPT_FILES = ("data/shakespeare_char/input.txt", "data/shakespeare_char/meta.pkl")
WRITTEN_AFTER = ("--out", "--html", "--to")
"""Options whose value the command makes."""
STANDS_FOR = {"N": "32", "COMMAND": "train", "FILE.py:NAME": "my_file.py:MyModel", "OPENAI_API_KEY=...": ""}
"""Words that the reader replaces."""
ALIASES = {"--train.max_steps": "--steps"}
"""Short names of options that rules append."""
TINY = (
    "--config smoke --steps 4 --eval_every 2 --save_every 2 --sample_every 2 --threads 1 --device cpu --dtype fp32 "
    "--train.eval_batch_size 8 --nanokimi.model.hidden_size 32"
).split()
BOTH_TINY = [*TINY, "--nanogpt.model.hidden_size", "32"]
MODEL = """

class MyModel(nn.Module):
    def __init__(self, vocab_size: int = 61) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids)
"""


class Given:
    """What commands read, each made once, when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def text(self) -> Path:
        path = self.folder / "text.txt"
        path.write_text(make_text(20_000))
        return path

    @cached_property
    def run(self) -> Path:
        """A trained NanoKimi with its checkpoints after 2 and 4 steps."""
        out = self.folder / "run"
        assert cli.main(["train", "--data", str(self.text), *TINY, "--out", str(out)]) == 0
        return out

    @cached_property
    def comparison(self) -> Path:
        out = self.folder / "comparison"
        assert cli.main(["compare", "--data", str(self.text), *BOTH_TINY, "--out", str(out)]) == 0
        return out

    @cached_property
    def study(self) -> Path:
        out = self.folder / "study"
        small = "--config smoke --train.max_steps 4 --train.eval_batch_size 16 --train.device cpu --train.dtype fp32"
        brief = "--no-tune --design 2x2 --seeds 2 --budgets tokens --workers 1"
        words = ["ladder", "--data", str(self.text), *small.split(), *brief.split(), "--out", str(out)]
        assert cli.main(words) == 0
        return out

    @cached_property
    def exported(self) -> Path:
        out = self.folder / "exported"
        assert cli.main(["export", str(self.run), "--out", str(out)]) == 0
        return out

    @cached_property
    def exported_of_stories(self) -> Path:
        """A model with an id for the ends of documents, which the built-in stories need."""
        out = self.folder / "exported-of-stories"
        assert cli.main(["export", "tales-1m", "--arm", "nanokimi", "--out", str(out)]) == 0
        return out

    @cached_property
    def nanogpt(self) -> Path:
        """A folder with nanoGPT's ckpt.pt, meta.pkl and input.txt."""
        from test_interop import meta_file, nanogpt_checkpoint

        out = self.folder / "nanogpt"
        out.mkdir()
        nanogpt_checkpoint(out / "ckpt.pt")
        shutil.copy(self.text, out / "input.txt")
        used = sorted(set(self.text.read_text()))
        others = [c for c in map(chr, range(33, 127)) if c not in used]
        meta_file(out / "meta.pkl", "".join(sorted(used + others[: 61 - len(used)])))
        return out

    def interrupted(self, place: Path) -> None:
        """A run that stopped after two of its four steps."""
        shutil.copytree(self.run, place)
        for name in ("result.json", "model.safetensors"):
            (place / name).unlink()
        newest = max((place / "checkpoints").glob("step-*"), key=lambda path: int(path.name.split("-")[1]))
        shutil.rmtree(newest)


def words_of(command: Command) -> str:
    """Its text with what its reader replaces replaced."""
    text = command.text
    for word, value in STANDS_FOR.items():
        text = re.sub(rf"(?<!\S){re.escape(word)}(?!\S)", value, text)
    return text


def made_small(text: str, appended: str) -> str:
    """A command with the words that its rule appends; an option that it has already has the rule's value."""
    for option in re.findall(r"(?<!\S)--\S+", appended):
        for name in (option, ALIASES.get(option, option)):
            text = re.sub(rf"(?<!\S){re.escape(name)}\s+('[^']*'|\S+)", "", text)
    return f"{text} {appended}"


def lay_out(place: Path, command: Command, appended: str, given: Given) -> str:
    """Put what a command names where it looks for it; returns the command as it is run."""
    text = made_small(words_of(command), appended).strip()
    words = shlex.split(text)
    read = [word for before, word in zip(["", *words], words, strict=False) if before not in WRITTEN_AFTER]
    for word in dict.fromkeys(read):
        _provide(place, word, given)
    if "--resume" in words and "--data" not in words:
        given.interrupted(place / "DIR")
    if re.search(r"(^| )(make|pytest|python3?) ", text) and "nanokimi.tales" not in text:
        _repository(place, "benchmarks/record.py" in text)
    return text


def _provide(place: Path, word: str, given: Given) -> None:
    target = place / word
    sources: list[tuple[tuple[str, ...], Callable[[], Path]]] = [
        (TEXTS, lambda: given.text),
        (RUNS, lambda: given.run),
        (COMPARISONS, lambda: given.comparison),
        (EXPORTED, lambda: given.exported),
        (("PATH",), lambda: given.exported_of_stories),
        (("runs/ladder-1",), lambda: given.study),
        ((*CHECKPOINTS, *NANOGPT_FILES), lambda: given.nanogpt / Path(word).name),
    ]
    for names, source in sources:
        if word in names and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            found = source()
            (shutil.copytree if found.is_dir() else shutil.copy)(found, target)
    if "my_file.py" in word:
        document = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
        (code,) = re.findall(r"^```python\n((?:(?!^```).)*class MyAttention.*?)^```$", document, re.M | re.S)
        (place / "my_file.py").write_text(code + MODEL)


def _repository(place: Path, own_docs: bool) -> None:
    """The repository's files, and an environment of `make` that is set up."""
    for path in ROOT.iterdir():
        if path.name not in (".git", ".venv", "runs", "build", *(["docs"] if own_docs else [])):
            (place / path.name).symlink_to(path)
    if own_docs:
        (place / "docs" / "results").mkdir(parents=True)
    venv = place / ".venv"
    venv.mkdir()
    for path in Path(sys.prefix).iterdir():
        (venv / path.name).symlink_to(path)
    for name in (".installed", ".extras-installed"):
        (venv / name).unlink(missing_ok=True)
        (venv / name).touch()


def environment(place: Path) -> dict[str, str]:
    """Of a shell in which this package is installed."""
    own = place / "bin"
    own.mkdir(exist_ok=True)
    (own / "nanokimi").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m nanokimi "$@"\n')
    (own / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    shutil.copy(own / "python3", own / "python")
    for path in own.iterdir():
        path.chmod(0o755)
    path = os.pathsep.join((str(own), str(Path(sys.executable).parent), os.environ["PATH"]))
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(place: Path, line: str) -> subprocess.Popen[str]:
    """A line of shell in a process group of its own."""
    return subprocess.Popen(
        ["bash", "-c", line],
        cwd=place,
        env=environment(place),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
