"""The command line: what commands print and return, and that bad input costs one line and leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import PATIENCE, TINY_ARMS, make_text

from nanokimi import cli
from nanokimi.cli.options import USAGE
from nanokimi.runtime import device
from nanokimi.runtime.files import read_json, read_json_lines

SETTINGS = f"""\
seed: 7
train: {{context_length: 16, batch_size: 8, eval_batch_size: 8, max_steps: 12, eval_every: 6, save_every: 6,
  device: cpu, threads: 1}}
sample: {{prompts: [the small boy], max_new_tokens: 20}}
{TINY_ARMS}"""
MODULES = """\
import torch
from torch import nn

NUMBER = 3


class Honest(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))

    def forward(self, ids):
        return self.table[ids]


class Leaky(Honest):
    def forward(self, ids):
        logits = self.table[ids].clone()
        logits[:, :-1] += self.table[ids[:, 1:]]
        return logits


class Flat(Honest):
    def forward(self, ids):
        return self.table[ids].sum(-1)


class Falling(Honest):
    def forward(self, ids):
        raise RuntimeError("forward fell\\nover two lines")


def needs_arguments(size):
    return Honest()


def not_a_module():
    return 3


def raises():
    raise OSError("weights are gone")


def leaves():
    raise SystemExit(0)
"""

PARTS = """\
import torch
from torch import nn


class Ahead(nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, ids):
        return self.table(ids.roll(-1, 1))


class Broken(Ahead):
    def forward(self, ids):
        return self.table(ids) @ torch.zeros(3, 3)


class Mean(nn.Module):
    plugs_into = "attention"

    def __init__(self, config):
        super().__init__()
        self.v_proj = nn.Linear(3, 3)

    def forward(self, x):
        return self.v_proj(x).cumsum(1)
"""


@dataclass
class Trained:
    """A finished tiny run, its text and its settings."""

    out: Path
    text: Path
    settings: Path
    printed: str


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    settings, text, out = folder / "tiny.yaml", folder / "text.txt", folder / "run"
    settings.write_text(SETTINGS)
    text.write_text(make_text())
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setenv("NANOKIMI_CACHE", str(folder / "cache"))
        command = ["train", "--config", str(settings), "--data", str(text), "--out", str(out)]
        assert cli.main(command) == 0
    return Trained(out, text, settings, printed.getvalue())


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- help and imports


@pytest.mark.parametrize(
    "action",
    [
        "import nanokimi; nanokimi.__version__",
        "from nanokimi import cli; assert cli.main(['--help']) == 0",
        "from nanokimi import cli; assert cli.main(['--version']) == 0",
        "from nanokimi import cli; assert cli.main(['train', '--help']) == 0",
        "from nanokimi import cli; assert cli.main(['sample', '-h']) == 0",
        "from nanokimi import cli; assert cli.main(['trian']) == 2",
        "from nanokimi import cli; assert cli.main(['train', '--trian', '1']) == 2",
    ],
)
def test_help_and_first_mistakes_do_not_wait_for_torch(action: str) -> None:
    code = f"{action}\nimport sys; sys.stderr.write(' '.join({{'torch', 'matplotlib'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().split("\n")[-1] not in ("torch", "matplotlib", "torch matplotlib"), done.stderr


def test_public_names_come_from_the_package_itself() -> None:
    printed = python(
        "from nanokimi import Muon, MuonClip, NanoGPT, NanoKimi, audit, generate\n"
        "import nanokimi\n"
        "print([getattr(nanokimi, name).__name__ == name for name in nanokimi.__all__])\n"
        "print(callable(audit), callable(generate))\n"
        "try:\n    nanokimi.nothing\nexcept AttributeError as error:\n    print(error)\n"
    ).splitlines()
    assert printed[0] == str([True] * printed[0].count(",") + [True])
    assert printed[1:] == ["True True", "module 'nanokimi' has no attribute 'nothing'"]


@pytest.mark.parametrize("verb", USAGE)
def test_each_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"usage: nanokimi {verb}") and printed.err == ""
    assert "{" not in printed.out, "a placeholder was not filled in"
    lines = printed.out.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100, "one screen"
    assert cli.main(["--help"]) == 0
    assert f"\n  {verb} " in capsys.readouterr().out


def test_the_whole_help_has_the_values_of_the_chosen_preset(capsys: pytest.CaptureFixture[str]) -> None:
    for name, steps in (("smoke", 300), ("tales", 200)):
        assert cli.main(["compare", "--config", name, "--help-all"]) == 0
        whole = capsys.readouterr().out
        assert f"--train.max_steps {steps}\n" in whole and "--train.compile false\n" in whole
        assert "--allow-changes" in whole and "--n_embd" in whole
        assert "int" not in whole.replace("into", "").split() and "Optional[" not in whole
    assert cli.main(["train", "--config", "smoek", "--help-all"]) == 2


def test_no_arguments_print_the_help_and_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: nanokimi COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("verb", [["--help"], ["train", "--help"]])
def test_a_reader_that_goes_away_is_no_traceback(verb: list[str], unbuffered: str) -> None:
    """`nanokimi train --help | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "nanokimi", *verb],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        timeout=PATIENCE,
    )
    os.close(writer)
    assert done.stderr == "" and done.returncode == 141


# ---- bad input


def run_without(trained: Trained, folder: Path, change: Callable[[Path], object]) -> Path:
    """A damaged copy of the finished run."""
    shutil.copytree(trained.out, folder / "damaged")
    change(folder / "damaged")
    return folder / "damaged"


def cut(name: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:40])


def foreign(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")


# name: (arguments, part of the line, what to prepare in the test's folder)
# {T} train with the tiny settings, {D} and the text, {R} the finished run, {X} a damaged copy of it
PREPARE: dict[str, Callable[[Path], object]] = {
    "empty.txt": lambda path: path.write_bytes(b""),
    "short.txt": lambda path: path.write_text("too short"),
    "other.txt": lambda path: path.write_text("some other text " * 100),
    "fake.parquet": lambda path: path.write_bytes(b"PAR1 this is no parquet file PAR1"),
    "lines.jsonl": lambda path: path.write_text('{"story": "no column of that name"}\n'),
    "broken.gz": lambda path: path.write_bytes(b"\x1f\x8b\x08 cut short"),
    "latin.txt": lambda path: path.write_bytes(b"caf\xe9 " * 500),
    "utf16.txt": lambda path: path.write_bytes("text ".encode("utf-16") * 500),
    "folder": lambda path: path.mkdir(),
    "taken": foreign,
    "file": lambda path: path.write_text("not a folder"),
    "modules.py": lambda path: path.write_text(MODULES),
    "syntax.py": lambda path: path.write_text("def ("),
    "importing.py": lambda path: path.write_text("import no_such_module_anywhere\n"),
    "parts.py": lambda path: path.write_text(PARTS),
    "list.yaml": lambda path: path.write_text("- 1\n"),
}
CASES: list[tuple[str, str, str]] = [
    # the command and its options
    ("trian", "there is no command 'trian'; the nearest is train", ""),
    ("train --config smoke", "--data", ""),
    ("compare --config smoke", "--data", ""),
    ("train {D} --config smoek", "nearest is smoke", ""),
    ("train {D} --config folder", "folder", "folder"),
    ("train {D} --config list.yaml", "list", "list.yaml"),
    ("train {D} --config missing.yaml", "missing.yaml", ""),
    ("{T} {D} --nanokimi.optim.learning_rat 1", "there is no option --nanokimi.optim.learning_rat", ""),
    ("{T} {D} --train.max_step 1", "nearest is --train.max_steps", ""),
    ("{T} {D} stray", "'stray'", ""),
    ("{T} {D} -x", "'-x'", ""),
    ("{T} {D} --seed", "--seed needs a value", ""),
    ("{T} {D} --out", "--out needs a value", ""),
    ("train --data", "needs a value", ""),
    ("{T} {D} {D}", "--data is given twice", ""),
    ("{T} {D} --dataset.path {D}", "--dataset.path needs a value", ""),
    ("{T} {D} --dataset.path=x", "--data and --dataset.path are one option, which is given twice", ""),
    ("{T} {D} --out a --out b", "--out is given twice", ""),
    ("{T} {D} --out=", "--out is empty", ""),
    # values
    ("{T} {D} --seed -1", "seed is -1", ""),
    ("{T} {D} --seed one", "seed is one", ""),
    ("{T} {D} --train.batch_size 0", "train.batch_size is 0", ""),
    ("{T} {D} --train.batch_size -8", "train.batch_size is -8", ""),
    ("{T} {D} --train.batch_size 2.5", "whole number", ""),
    ("{T} {D} --train.max_steps 1.5", "train.max_steps is 1.5: expected a whole number or null", ""),
    ("{T} {D} --nanogpt.optim.betas [0.9,x]", "betas is x: expected a list like [a number, a number]", ""),
    (
        "{T} {D} --nanokimi.model.rope_scaling 3",
        "rope_scaling is 3: expected settings, as in {factor: ...}",
        "",
    ),
    ("{T} {D} --train.micro_batch_size 3", "not a multiple", ""),
    ("{T} {D} --nanogpt.model.num_attention_heads 3", "does not divide", ""),
    ("{T} {D} --nanokimi.model.qk_rope_head_dim 7", "even", ""),
    ("{T} {D} --nanokimi.model.num_experts_per_tok 5", "n_routed_experts 4", ""),
    ("{T} {D} --nanokimi.model.vocab_size 5", "below the tokenizer's", ""),
    ("{T} {D} --nanokimi.optim.name sgd", "adamw, muon, muonclip", ""),
    ("{T} {D} --train.max_tokens 9 --train.max_steps 9", "exactly one", ""),
    ("{T} {D} --train.device tpu", "train.device", ""),
    ("{T} {D} --train.device cuda:99", "cuda:99", ""),
    ("{T} {D} --train.dtype bf16", "only emulates it", "no bf16"),
    ("{T} {D} --train.dtype fp8", "auto, fp32, bf16, fp16", ""),
    ("{T} {D} --model nanoqwen", "nanokimi, nanogpt", ""),
    ("{T} {D} --train.context_length 100000", "too short", ""),
    ("{T} {D} --train.context_length 1", "it must be at least 2, because the audit", ""),
    ("{T} {D} --sample.temperature 1e-320", "0 takes the likeliest token", ""),
    # the text
    ("{T} --data missing.txt", "missing.txt does not exist", ""),
    ("{T} --data empty.txt", "empty.txt is empty", "empty.txt"),
    ("{T} --data short.txt", "at least 1,000 in all", "short.txt"),
    ("{T} --data latin.txt", "not UTF-8", "latin.txt"),
    ("{T} --data utf16.txt", "utf-16", "utf16.txt"),
    ("{T} --data folder", "folder holds no text", "folder"),
    ("compare --config {S} --data empty.txt", "empty.txt is empty", "empty.txt"),
    ("compare --config {S} --data missing.txt --out a/b/c", "missing.txt", ""),
    # the folder for the results
    ("{T} {D} --out taken", "taken already holds files", "taken"),
    ("{T} {D} --out file", "cannot write the run folder file", "file"),
    ("{T} {D} --out file/below", "cannot write the run folder file/below", "file"),
    ("compare --config {S} {D} --out taken", "taken already holds files", "taken"),
    # resuming
    ("train --resume", "--resume needs --out", ""),
    ("train --resume --out missing", "no run to resume", ""),
    ("train --resume --out taken", "no run to resume", "taken"),
    ("train --resume --out {R} --seed 3", "has seed 7, not 3: leave it out", ""),
    ("train --resume --out {R} --config smoke", "leave it out, or resume with --allow-changes", ""),
    ("train --resume --out {R} --train.threads 2", "train.threads 1, not 2", ""),
    ("train --resume --out {R} --data other.txt", "dataset.path", "other.txt"),
    ("train --resume --out {R} --nanokimi.optim.lr nan", "nanokimi.optim.lr is nan", ""),
    ("train --resume --out {X} --model nanogpt --allow-changes", "does not fit", "copy"),
    ("train --resume --out {X}", "is a link", "link"),
    ("{T} {D} --allow-changes", "--allow-changes is only for --resume", ""),
    ("{T} {D} --on-nonfinite explode", "one of stop, skip, rollback", ""),
    ("{T} {D} --train.memory_limit_gb 0.001", "takes", ""),
    ("compare --resume --out missing", "no run to resume", ""),
    ("compare --resume --out {R}", "is a single run", ""),
    ("train --resume --out {X}", "data.json", "cut data/data.json"),
    ("{T} {D} --dry-run --resume --out new", "leave out --resume", ""),
    ("{T} {D} --dry-run --out taken", "taken already", "taken"),
    ("compare --config {S} {D} --model nanogpt", "leave out --model", ""),
    # arms
    ("compare --config {S} {D} --arm Nobody", 'expected "NAME: from=FAMILY', ""),
    ("compare --config {S} {D} --arm Mine:from=nobody", "name a family, an arm or FILE.py:CLASS", ""),
    ("compare --config {S} {D} --arm Mine:from=missing.py:Model", "there is no file", ""),
    ("compare --config {S} {D} --arms Nobody", "there is no arm 'Nobody'", ""),
    ("compare --config {S} {D} --arms NanoKmi", "the nearest is NanoKimi", ""),
    ("compare --config {S} {D} --seeds 0", "compare.seeds is 0", ""),
    ("compare --config {S} {D} --compare.search nowhere", "there is no such file", ""),
    ("{T} {D} --arm Nobody", "there is no arm 'Nobody'", ""),
    ("sweep --config {S} {D} --search --trials 3", "it must be a power of two", ""),
    ("sweep --config {S} {D} --trials 4", "--trials is only for --search", ""),
    ("ladder --config {S} {D} --also x", "--also is now --arm", ""),
    ("ladder --config {S} {D} --components Rope", "there is no 'Rope'", ""),
    (
        "scale --config {S} {D} --sizes 8,16,24,30 --nanogpt.model.dropout 0",
        "not a multiple of the width",
        "",
    ),
    ("sweep --config {S} {D} --train.context_length 100000", "too short", ""),
    ("sweep --config {S} {D} --train.context_length 100000 --out a/b", "too short", ""),
    ("{T} {D} --arm M:from=parts.py:Broken", "parts.py:Broken cannot run: RuntimeError", "parts.py"),
    ("{T} {D} --arm M:from=parts.py:Ahead", "M is LEAKING before its first step", "parts.py"),
    ("{T} {D} --plugin parts.py:Mean --model variant", "parts.py:Mean cannot run", "parts.py"),
    # preparing
    ("prepare {D} --dataset.split halves", "dataset.split is halves: expected", ""),
    ("prepare {D} --dataset.test_fraction 1", "dataset.test_fraction", ""),
    ("prepare --data missing.txt", "missing.txt does not exist", ""),
    ("prepare --data latin.txt", "not UTF-8", "latin.txt"),
    ("prepare --data folder", "holds no text", "folder"),
    ("prepare --data fake.parquet", "fake.parquet", "fake.parquet"),
    ("prepare --data lines.jsonl", "text", "lines.jsonl"),
    ("prepare --data broken.gz", "broken.gz", "broken.gz"),
    ("prepare {D} --dataset.tokenizer word", "dataset.tokenizer is word", ""),
    ("prepare {D} --dataset.tokenizer missing.json", "missing.json is not a file", ""),
    ("prepare {D} --dataset.val_fraction 1", "dataset.val_fraction is 1", ""),
    ("prepare {D} --dataset.tokenizer bpe --dataset.vocab_size 100", "300 to 100000", ""),
    ("prepare {D} --out taken", "taken", "taken"),
    ("prepare --data hf:nobody/nothing", "tales", ""),
    ("prepare --data hf:", "hf:", ""),
    ("prepare --data tales:many", "tales", ""),
    # sampling
    ("sample", "expected one run folder, got 0", ""),
    ("sample {R} {R}", "expected one run folder, got 2", ""),
    *(
        (f"{command} {more}", "is empty: name one (the current folder is .)", "")
        for command, more in (
            *(("sample", ""), ("evaluate", ""), ("report", ""), ("audit", ""), ("serve", " --port 0")),
            *(("prune", " --keep 1"), ("export", " --out x"), ("import", " --out x"), ("pull", " --out x")),
            *(("push", " me/model"), ("judge", " --url http://localhost:1/v1 --model x")),
            *(("inspect", ""), ("plot", ""), ("play", " --port 0")),
        )
    ),
    ("train --init-from= --data {D}", "option --init-from is empty", ""),
    ("play {R} --runs= --port 0", "option --runs is empty", ""),
    ("sample missing", "missing is not a folder", ""),
    ("sample taken", "no config.yaml", "taken"),
    ("sample {R} --promt hello", "there is no option --promt", ""),
    ("sample {R} --prompt=", "empty prompt", ""),
    ("sample {R} --prompt \udce9", "is not UTF-8", ""),
    ("sample {R} --top_p 0", "sample.top_p is 0", ""),
    ("sample {R} --top_p 1.5", "sample.top_p is 1.5", ""),
    ("sample {R} --top_k 0", "sample.top_k is 0", ""),
    ("sample {R} --temperature -1", "sample.temperature is -1", ""),
    ("sample {R} --temperature warm", "--temperature is warm: expected a number", ""),
    ("sample {R} --max_new_tokens -5", "max_new_tokens is -5", ""),
    ("sample {R} --max_new_tokens 1.5", "expected a whole number", ""),
    ("sample {R} --seed -1", "seed is -1", ""),
    ("sample {R} --seed", "--seed needs a value", ""),
    ("sample {R} --device tpu", "device", ""),
    ("sample {R} --checkpoint 7", "keeps no checkpoint '7'", ""),
    ("evaluate {R} --checkpoint newest", "there are final, best, last", ""),
    ("sample {X} --checkpoint last", "damaged", "cut checkpoints/step-00000012/model.safetensors"),
    ("sample {X}", "model.safetensors", "cut model.safetensors"),
    ("sample {X}", "config.yaml", "cut config.yaml"),
    ("sample {X}", "tokenizer.json", "cut data/tokenizer.json"),
    ("sample {X}", "train.bin", "cut data/train.bin"),
    # evaluating
    ("evaluate", "expected one run folder, got 0", ""),
    ("evaluate missing", "missing is not a folder", ""),
    ("evaluate taken", "no config.yaml", "taken"),
    ("evaluate {R} --data missing.txt", "missing.txt does not exist", ""),
    ("evaluate {R} --data empty.txt", "empty.txt is empty", "empty.txt"),
    ("evaluate {R} --data latin.txt", "not UTF-8", "latin.txt"),
    ("evaluate {R} --seed 3", "there is no option --seed", ""),
    ("evaluate {R} --part future", "--part is future", ""),
    ("evaluate {X}", "data.json", "cut data/data.json"),
    # auditing
    ("audit", "expected one run folder", ""),
    ("audit missing", "missing is not a folder", ""),
    ("audit {R} --context 17", "at most the model's own", ""),
    ("audit {R} --vocab_size 1", "at least 2", ""),
    ("audit missing.py:Honest --vocab_size 16 --context 8", "there is no file missing.py", ""),
    ("audit modules.py:Absent --vocab_size 16 --context 8", "'Absent'", "modules.py"),
    ("audit modules.py:NUMBER --vocab_size 16 --context 8", "'NUMBER'", "modules.py"),
    ("audit modules.py:not_a_module --vocab_size 16 --context 8", "expected a torch.nn.Module", "modules.py"),
    ("audit modules.py:Honest --context 8", "--vocab_size", "modules.py"),
    ("audit modules.py:Honest --vocab_size 16", "--context", "modules.py"),
    ("audit modules.py:Honest --vocab_size 16 --context 1", "--context", "modules.py"),
    ("audit modules.py:Honest --vocab_size many --context 8", "whole number", "modules.py"),
    ("audit modules.py:Flat --vocab_size 16 --context 8", "expected (B, T, W)", "modules.py"),
    ("audit modules.py:raises --vocab_size 16 --context 8", "weights are gone", "modules.py"),
    ("audit modules.py:leaves --vocab_size 16 --context 8", "modules.py", "modules.py"),
    ("audit modules.py:needs_arguments --vocab_size 16 --context 8", "needs_arguments", "modules.py"),
    ("audit modules.py:Falling --vocab_size 16 --context 8", "forward fell", "modules.py"),
    ("audit modules.py:Honest --vocab_size 99 --context 8", "modules.py", "modules.py"),
    ("audit syntax.py:Honest --vocab_size 16 --context 8", "syntax.py", "syntax.py"),
    ("audit importing.py:Honest --vocab_size 16 --context 8", "no_such_module_anywhere", "importing.py"),
]


def snapshot(folder: Path) -> dict[str, tuple[int, int] | None]:
    """Every file with its size and time of writing; Python's caches do not count."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts
    }


@pytest.mark.parametrize(("command", "part", "prepare"), CASES, ids=[f"{c[:70]!a}" for c, _, _ in CASES])
def test_bad_input_is_one_line_and_status_2_and_leaves_nothing(
    command: str,
    part: str,
    prepare: str,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if prepare == "no bf16":
        monkeypatch.setattr(device, "cpu_has_fast_bf16", lambda: False)
    elif prepare.startswith("cut "):
        run_without(trained, tmp_path, cut(prepare.removeprefix("cut ")))
    elif prepare == "copy":
        run_without(trained, tmp_path, lambda run: None)
    elif prepare == "link":
        run_without(trained, tmp_path, lambda run: (run / "samples" / "more").symlink_to(tmp_path))
    elif prepare:
        PREPARE[prepare](tmp_path / prepare)
    words = {"{T}": ["train", "--config", str(trained.settings)], "{D}": ["--data", str(trained.text)]}
    words |= {"{R}": [str(trained.out)], "{X}": ["damaged"], "{S}": [str(trained.settings)]}
    arguments = [piece for word in command.split(" ") for piece in words.get(word, [word])]
    before = [snapshot(tmp_path), snapshot(trained.out)]

    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert (
        printed.err.startswith("nanokimi: ") and printed.err.count("\n") == 1 and printed.err.endswith("\n")
    )
    assert part in printed.err, printed.err
    assert printed.out == ""
    if "BAD_INPUT_TABLE" in os.environ:  # see docs/reliability.md
        row = f"| `{command}` | {prepare} | {printed.err.removeprefix('nanokimi: ').strip()} |\n"
        row = row.encode("ascii", "backslashreplace").decode().replace(str(trained.out), "RUN")
        row = row.replace(str(trained.out.parent), "FOLDER").replace(str(tmp_path), "FOLDER")
        with open(os.environ["BAD_INPUT_TABLE"], "a", encoding="utf-8") as table:
            table.write(row)
    assert [snapshot(tmp_path), snapshot(trained.out)] == before, "something was left on disk"


def test_the_table_of_mistakes_has_all_of_them() -> None:
    text = (Path(__file__).parents[1] / "docs" / "bad-input.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| `")]
    commands = [f"`{command}`".encode("ascii", "backslashreplace").decode() for command, *_ in CASES]
    assert rows == commands, "generate it again, as it says"
    assert f"({len(CASES)} tested)" in text and f"to {len(CASES)} mistakes" in text


def test_training_refuses_to_resume_a_comparison(trained: Trained, tmp_path: Path) -> None:
    """A comparison's folder has a config.yaml, too, but its runs lie below it."""
    folder = tmp_path / "comparison"
    shutil.copytree(trained.out / "data", folder / "data")
    for place in (folder, folder / "nanokimi", folder / "nanogpt"):
        place.mkdir(exist_ok=True)
        shutil.copy(trained.out / "config.yaml", place)
    before = snapshot(folder)
    assert cli.main(["train", "--resume", "--out", str(folder)]) == 2
    assert snapshot(folder) == before


def test_the_status_reaches_the_shell(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nanokimi", "train", "--config", "smoke", "--data", "missing.txt"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "missing.txt" in done.stderr
    assert not any(tmp_path.iterdir()), "not even an empty runs folder is left"


# ---- from training to audit


def test_training_prints_the_score_and_where_it_lies(trained: Trained) -> None:
    result = read_json(trained.out / "result.json")
    assert f"test loss {result['test_loss']:.4f}" in trained.printed
    assert f"validation loss {result['val_loss']:.4f}" in trained.printed
    assert str(trained.out) in trained.printed and trained.printed.count("\n") == 2
    last = trained.printed.splitlines()[-1]
    assert last == f"Open: {trained.out / 'report.html'}   Try: nanokimi sample {trained.out}"


def test_training_leaves_the_report_of_its_run(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, report = trained.out / "report.html", read_json(trained.out / "report.json")
    result = read_json(trained.out / "result.json")
    assert (report["runs"][0]["folder"], report["seeds"], report["comparisons"]) == (
        ".",
        [result["seed"]],
        [],
    )
    assert "No winner" not in report["verdict"]["sentence"], "one model has nobody to win against"
    first = page.read_text(encoding="utf-8")
    assert f"{result['test_loss']:.4f}" in first
    page.write_text("old")
    (trained.out / "report.json").unlink()
    assert cli.main(["report", str(trained.out)]) == 0
    assert capsys.readouterr().out == f"Open: {page}\n" and page.read_text(encoding="utf-8") == first


def test_a_folder_without_a_finished_run_has_no_report(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(folder: Path) -> str:
        assert cli.main(["report", str(folder)]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1
        assert not folder.is_dir() or not {"report.html", "report.json"} & {p.name for p in folder.iterdir()}
        return printed.err

    assert "is not a folder" in refused(tmp_path / "missing")
    assert "holds no run" in refused(tmp_path)
    shutil.copytree(trained.out / "data", tmp_path / "data")
    shutil.copy(trained.out / "config.yaml", tmp_path)
    assert "nanokimi train --resume" in refused(tmp_path)
    (tmp_path / "sweep.json").write_text("{}")
    assert "a sweep, which has no page" in refused(tmp_path)


def test_evaluate_repeats_the_runs_own_score(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(trained.out), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    result = read_json(trained.out / "result.json")
    names = ("loss", "perplexity", "bits_per_byte", "bits_per_char")
    for name in (*(f"test_{name}" for name in names), "loss_by_position"):
        assert scored[name] == result[name], name
    assert scored["name"] == "NanoKimi" and "split_note" not in scored
    metadata = read_json(trained.out / "data" / "data.json")
    assert scored["test_tokens"] == metadata["test_tokens"] and "val_loss" not in scored
    assert cli.main(["evaluate", str(trained.out), "--json", "--part", "val"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert [scored[f"val_{name}"] for name in names] == [result[f"val_{name}"] for name in names]
    assert scored["val_tokens"] == metadata["val_tokens"] and "test_loss" not in scored


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--part", "train"), "--part is train: expected val or test"),
        (("--part", "val", "--data", "x.txt"), "scored whole: leave out --part"),
    ],
)
def test_evaluate_refuses_parts_that_are_none(
    trained: Trained, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert cli.main(["evaluate", str(trained.out), *options]) == 2
    assert message in capsys.readouterr().err


def test_evaluate_scores_another_text_whole(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The validation part given as a file scores alike but for the token before it, which is the same, too."""
    text = trained.text.read_text()
    (tmp_path / "same.txt").write_text(text[int(len(text) * 0.8) : int(len(text) * 0.9)])
    (tmp_path / "other.txt").write_text("Zebras! 42 quick \u2603 foxes. " * 20)
    assert cli.main(["evaluate", str(trained.out), "--json", "--data", str(tmp_path / "same.txt")]) == 0
    same = json.loads(capsys.readouterr().out)
    assert same["val_loss"] == read_json(trained.out / "result.json")["val_loss"]
    assert cli.main(["evaluate", str(trained.out), "--json", f"--data={tmp_path / 'other.txt'}"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert other["val_bits_per_char"] > same["val_bits_per_char"] + 1
    assert other["val_bits_per_char"] > other["val_bits_per_byte"], (
        "a snowman is one character and three bytes"
    )
    assert other["val_tokens"] > 20 * len("Zebras! 42 quick x foxes. "), (
        "unknown characters take several tokens"
    )


def sampled(trained: Trained, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert cli.main(["sample", str(trained.out), *options]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def test_sampling_is_a_function_of_the_seed(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    first = sampled(trained, capsys, "--seed", "1", "--temperature", "1.5")
    assert sampled(trained, capsys, "--seed=1", "--temperature=1.5") == first
    assert sampled(trained, capsys, "--seed", "2", "--temperature", "1.5") != first
    assert sampled(trained, capsys, "--seed", "1", "--temperature", "0") == sampled(
        trained, capsys, "--seed", "2", "--temperature", "0"
    ), "the likeliest token does not depend on the seed"


def test_the_runs_own_sample_is_told_again(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    last = [r for r in read_json_lines(trained.out / "metrics.jsonl") if r["kind"] == "sample"][-1]
    assert sampled(trained, capsys) == f"--- NanoKimi\n{last['prompt']}{last['text']}\n"


def test_a_prompt_is_continued_by_as_many_tokens_as_asked(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    text = sampled(trained, capsys, "--prompt", "he was", "--max_new_tokens", "7", "--top_k", "1")
    assert text.startswith("--- NanoKimi\nhe was") and text.endswith("\n")
    assert len(text) == len("--- NanoKimi\nhe was") + 7 + 1
    assert sampled(trained, capsys, "--prompt", "he was", "--max-new-tokens", "7", "--top-k", "1") == text


def test_the_trained_model_passes_its_audit(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["audit", str(trained.out)]) == 0
    assert capsys.readouterr().out.startswith("NanoKimi: causal (max leak")
    assert cli.main(["audit", str(trained.out), "--context", "8"]) == 0
    assert "7 cuts, context 8" in capsys.readouterr().out


def test_audit_of_a_file_finds_the_leak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(MODULES)
    sizes = ["--vocab_size", "16", "--context", "8"]
    assert cli.main(["audit", f"{tmp_path}/mine.py:Honest", *sizes]) == 0
    assert "Honest: causal" in capsys.readouterr().out
    assert cli.main(["audit", f"{tmp_path}/mine.py:Leaky", *sizes]) == 1
    printed = capsys.readouterr().out
    assert "Leaky: LEAKING: position" in printed and "sees tokens from position" in printed


def test_verbs_take_both_models_of_a_comparisons_folder(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained.out / "data", tmp_path / "data")
    for name in ("one", "two"):
        shutil.copytree(trained.out, tmp_path / name, ignore=shutil.ignore_patterns("data"))
    assert cli.main(["evaluate", str(tmp_path), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [Path(json.loads(line)["folder"]).name for line in lines] == ["one", "two"]
    assert cli.main(["sample", str(tmp_path), "--max_new_tokens", "2"]) == 0
    assert capsys.readouterr().out.count("--- NanoKimi") == 2


# ---- interruption

LONG = [
    "--model",
    "nanogpt",
    "--train.max_steps",
    "300",
    "--train.eval_every",
    "100",
    "--train.save_every",
    "1000",
]


@pytest.fixture(scope="module")
def uninterrupted(trained: Trained) -> Path:
    out = trained.out.parent / "whole"
    arguments = [
        "train",
        "--config",
        str(trained.settings),
        "--data",
        str(trained.text),
        "--out",
        str(out),
        *LONG,
    ]
    assert cli.main(arguments) == 0
    return out


def interrupt(words: list[str], number: signal.Signals, out: Path) -> None:
    """Start a process that trains in `out`, send it a signal at its first new steps, and check how it ends."""
    metrics = out / "metrics.jsonl"
    before = metrics.read_text().count('"kind": "train"') if metrics.exists() else 0
    command = [sys.executable, "-m", "nanokimi", "train", *words, "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count('"kind": "train"') > before:
            break
        time.sleep(0.002)
    process.send_signal(number)
    printed, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number, errors
    assert (
        errors.splitlines()[-1]
        == f"nanokimi: interrupted; continue with: nanokimi train --resume --out {out}"
    )
    assert "Traceback" not in errors and printed == ""
    assert not (out / "result.json").exists() and before < read_json_lines(metrics)[-1]["step"] < 300


def test_an_interrupted_run_says_how_to_resume_and_ends_the_same(
    trained: Trained, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted by a lost terminal, and once resumed by the warning of a batch system."""
    out = tmp_path / "run"
    interrupt(["--config", str(trained.settings), "--data", str(trained.text), *LONG], signal.SIGHUP, out)
    interrupt(["--resume"], signal.SIGUSR1, out)
    assert cli.main(["sample", str(out)]) == 2
    assert "has not finished" in capsys.readouterr().err

    assert cli.main(["train", "--resume", "--out", str(out)]) == 0
    assert (out / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()
    results = [read_json(folder / "result.json") for folder in (out, uninterrupted)]
    assert results[0]["val_loss"] == results[1]["val_loss"]
    assert results[0]["steps"] == 300


def test_without_a_text_the_tales_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    from nanokimi.cli.options import choose_config
    from nanokimi.config.files import load_config

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for words in ([], ["--seed", "3"]):
        assert choose_config({}, words) == ("tales", load_config("tales", words))
    for words in (["--data", "x.txt"], ["--data=x.txt"]):
        assert choose_config({}, words) == ("shakespeare-char", load_config("shakespeare-char", words))
    assert choose_config({"config": "smoke"}, [])[0] == "smoke"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_config({}, []) == ("tales-gpu", load_config("tales-gpu")), "a bigger one on a GPU"
    assert load_config("tales").dataset.path == "tales-short"
    assert load_config("tales-gpu").dataset.path == "tales"
