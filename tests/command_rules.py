"""THE TABLE: how each command of the documents is run by the tests, or why it is not.

A command runs word for word. What is appended makes it small; what it reads is laid out under the names that it uses
(`command_places.py`). The first rule whose pattern is found in the command's text is its rule.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from commands import Command

BRIEF = "--train.max_steps 2 --train.eval_every 2 --train.batch_size 2 --train.eval_batch_size 16"
"""Two steps of two windows, scored once."""
PLAIN = "--train.threads 1 --train.device cpu --train.dtype fp32"
SMALL = f"{BRIEF} {PLAIN}"
TALES = "--dataset.vocab_size 400 --dataset.characters 40000"
"""About thirty stories of `tales`, and more of `tales-short`; letters and bytes alone take 312 pieces."""
STUDY = (
    "--train.max_steps 4 --train.batch_size 2 --train.eval_batch_size 16 --train.device cpu --train.dtype fp32 "
    "--workers 1"
)
"""Runs of four steps. A study refuses `--train.eval_every` and `--train.threads`, which it sets itself."""
TUNING = "--seeds 2 --trials 2 --search-rounds 0 --tuning-seeds 1 --points 2 --rounds 0"
"""Two seeds, two points for each searched arm, and two rates for each of the others."""
MODEL = "runs/*/model.safetensors|DIR/model.safetensors|more/model.safetensors"
REPORT = "*/report.html|runs/*/report.html"
STUDIED = "runs/*/study.html|runs/studies/*/study.html"


@dataclass(frozen=True)
class Rule:
    """How the commands that a pattern finds are run.

    Attributes:
        pattern: a regular expression, searched in the command's text with each run of white space as one space.
        appended: the words that are added at its end.
        makes: files and folders that it promises, below the place where it runs; * as in a shell.
        slow: whether it takes longer than the fast tests may.
        says: what it prints, as a regular expression. A server is stopped by Ctrl-C when it has said it.
        serves: whether it runs until Ctrl-C.
        status: its exit status.
        needs: modules without which it is skipped.
    """

    pattern: str
    appended: str = ""
    makes: tuple[str, ...] = ()
    slow: bool = True
    says: str = ""
    serves: bool = False
    status: int = 0
    needs: tuple[str, ...] = ()


RULES = (
    # ---- what reads a run
    Rule(r"^nanokimi sample tales-1m$", "--max_new_tokens 8", slow=False, says="NanoKimi.*\n.*\n--- NanoGPT"),
    Rule(
        r"^nanokimi inspect tales-1m ",
        "--max_new_tokens 4",
        slow=False,
        says=r"NanoKimi: \d+ tokens, 4 written",
    ),
    Rule(r"^nanokimi sample RUN --checkpoint best$", says="--- NanoKimi", slow=False),
    Rule(r"^nanokimi sample ", "--max_new_tokens 8", slow=False, says="--- NanoKimi"),
    Rule(r"^printf .* nanokimi sample ", "--max_new_tokens 8", says=r"A fox(.|\n)*The sea"),
    Rule(r"^nanokimi inspect .*--html (page|inside).html$", makes=("*.html",), slow=False),
    Rule(r"^nanokimi inspect ", slow=False, says="Once upon a time|bits"),
    Rule(r"^nanokimi evaluate tales-1m$", says="NanoKimi"),
    Rule(r"^nanokimi evaluate --json$", "RUN", slow=False, says='"test_loss"'),
    Rule(r"^nanokimi evaluate ", slow=False, says="NanoKimi|NanoGPT"),
    Rule(r"^nanokimi audit FILE.py:NAME ", says="causal"),
    Rule(r"^nanokimi audit FILE.py:NAME$", "--vocab_size 61 --context 32", slow=False, says="causal"),
    Rule(r"^nanokimi audit ", slow=False, says="causal"),
    Rule(r"^nanokimi prune RUN --keep 4$", makes=("runs/*/config.yaml",)),
    Rule(r"^nanokimi prune .*--recover", "--recover 2", makes=("runs/*/config.yaml",), says="after 2 steps"),
    Rule(r"^nanokimi plot --help$", slow=False, says="--kind"),
    Rule(r"^nanokimi plot .*--out (\S+)", makes=("*.html|*.svg|*.png",), slow=True),
    Rule(r"^nanokimi plot ", makes=("loss.html",), slow=True),
    Rule(r"^nanokimi report ", slow=True, says="report.html"),
    # ---- what takes a model out and in
    Rule(r"^nanokimi export .*--format gguf", makes=("*.gguf|FILE|*/*.gguf",), slow=True, says="Read back"),
    Rule(r"^nanokimi export .*--format torchtitan", makes=("my-model|DIR",), needs=("torchtitan",)),
    Rule(r"^nanokimi export ", makes=("my-model|DIR|theirs-hf",), says="Reloaded with transformers"),
    Rule(r"^nanokimi import ", makes=("RUN/config.yaml|runs/theirs|runs/nanogpt|theirs",)),
    Rule(r"^nanokimi push .*--dry-run$", says="owner/name"),
    Rule(r"^nanokimi push ", says="owner/name"),
    Rule(r"^nanokimi pull ", makes=("runs/theirs/config.yaml",)),
    Rule(
        r"nanokimi judge ",
        "--url URL --prompts 2 --max_new_tokens 8",
        makes=("judge.json|runs/*/judge.json",),
    ),
    # ---- servers
    Rule(r"^nanokimi serve ", "--port 0", serves=True, says=r"Serving .* at http://", needs=("fastapi",)),
    Rule(r"^nanokimi play", "--port 0", serves=True, says=r"Open: http://", needs=("gradio",)),
    # ---- what trains
    Rule(r"^nanokimi (train|COMMAND|plot) --help", slow=False, says="usage: nanokimi"),
    Rule(r"^nanokimi train .*--dry-run$", says="parameters"),
    Rule(r"^nanokimi train .*--init-from", SMALL, makes=(MODEL,)),
    Rule(r"^nanokimi train --resume --out DIR( |$)", makes=(MODEL,)),
    Rule(r"^nanokimi train .*--track tensorboard,csv$", SMALL, makes=(MODEL,), needs=("tensorboard",)),
    Rule(r"^nanokimi train .*--data (?!tales)", SMALL, makes=(MODEL,)),
    Rule(r"^nanokimi train --config tales ", f"{SMALL} {TALES}", makes=(MODEL,)),
    Rule(r"^nanokimi compare .*--train.max_tokens 1e6$", f"--train.max_tokens 1024 {PLAIN}"),
    Rule(r"^nanokimi compare --config stories ", f"{SMALL} --dataset.vocab_size 300"),
    Rule(r"^nanokimi compare .*--data ", f"{SMALL} --seeds 1", makes=(REPORT,)),
    Rule(
        r"^nanokimi compare --config tales-1m$",
        f"{SMALL} {TALES} --seeds 1 --dataset.val_fraction 0.1 --dataset.test_fraction 0.1 --train.context_length 64",
        makes=(REPORT,),
    ),
    Rule(r"^nanokimi compare( |$)", f"{SMALL} {TALES} --seeds 1", makes=(REPORT,)),
    Rule(
        r"^nanokimi sweep .*--inherit",
        f"{STUDY} {TALES} --points 3 --rounds 0 --seeds 1",
        makes=("runs/*/search.html",),
    ),
    Rule(
        r"^nanokimi sweep .*--search",
        f"{STUDY} {TALES} --trials 2 --search-rounds 0 --seeds 1",
        makes=("runs/*/search.html",),
    ),
    Rule(
        r"^nanokimi sweep ", f"{STUDY} {TALES} --points 2 --rounds 0 --seeds 1", makes=("runs/*/sweep.json",)
    ),
    Rule(
        r"^nanokimi ladder .*--data tiny",
        f"{STUDY} {TUNING} --design 2x2 --budgets tokens",
        makes=(STUDIED,),
    ),
    Rule(r"^nanokimi ladder ", f"{STUDY} {TALES} {TUNING} --design 2x2 --budgets tokens", makes=(STUDIED,)),
    Rule(r"^nanokimi scale ", f"{STUDY} {TALES} {TUNING} --sizes 16,32,48,64", makes=(STUDIED,)),
    Rule(r"^nanokimi prepare ", slow=False, says="tokens"),
    Rule(
        r"^nanokimi bench( --config \S+)?( --train.threads 1)?$",
        "--quick --config smoke --train.threads 1",
        says="forward and loss",
    ),
    # ---- make, scripts and tests
    Rule(r"^make test$", "PROCESSES=1 ARGS=tests/test_stats.py", says="passed"),
    Rule(r"^make lint$", says="Success: no issues found"),
    Rule(r"^make compare$", f"ARGS='{SMALL} {TALES} --seeds 1'", makes=(REPORT,)),
    Rule(r"^make docs$", says="", needs=("zensical",)),
    Rule(r"^python -m nanokimi.tales --seed 77", slow=False, says="."),
    Rule(r"^python -m nanokimi.tales --stats$", "--stories 50", slow=False, says="bits per word"),
    Rule(r"^python benchmarks/(tables|diagrams|scaling_out).py$", "--check"),
    Rule(
        r"^python benchmarks/studies.py", "--list", slow=False, says="nanokimi (compare|ladder|scale|sweep) "
    ),
    Rule(
        r"^python benchmarks/null.py ",
        "--tries 2 --seeds 2 --record null.jsonl --train.max_steps 2 --train.eval_every 2",
        makes=("null/null.jsonl", "null.jsonl"),
    ),
    Rule(
        r"^python benchmarks/false_winners.py ",
        "--tries 1 --table_tries 1 --record lines.jsonl",
        makes=("lines.jsonl",),
    ),
    Rule(
        r"^python benchmarks/old_statistics.py ",
        "--studies 1 --tries 1 --record lines.jsonl",
        makes=("lines.jsonl",),
        slow=False,
    ),
    Rule(r"^python benchmarks/facts.py ", "--stories 1", slow=False, says=r"name +\d+ +0\.\d\d +100%"),
    Rule(r"^python benchmarks/openings.py ", "--stories 2", slow=False, says=r"saved +-?0\.\d{4} \("),
    Rule(r"^python benchmarks/communication.py ", "--sizes 2", says="over the formula"),
    Rule(
        r"^python benchmarks/expert_parallel.py ", "--sizes 2 --rounds 1 --steps 1", says="over the formula"
    ),
    Rule(r"^python benchmarks/from_record.py ", makes=("runs/again/tuned.json",), slow=False),
    Rule(r"^python benchmarks/record.py ", makes=("docs/results/tales-short.jsonl",)),
    Rule(
        r"^python benchmarks/prepare_throughput.py ",
        "--gb 0.0005 --workers 1 --library_mb 0.1 --vocab_size 300",
        says="bytes_per_second|mb_per_second|seconds",
    ),
    Rule(r"^python benchmarks/forecast_accuracy.py ", "--only smoke"),
    Rule(r"^python tests/pretend_device/run.py ", says=""),
    Rule(r"^make space$", makes=("build/space/app.py", "build/space/nanokimi/cli"), slow=False),
    Rule(r"^tensorboard --logdir runs$", "--port 0", serves=True, says="http://", needs=("tensorboard",)),
)

NOT_RUN = {
    r"^pip install": "installs packages; that the extras exist is a test of test_docs.py",
    r"^make (setup|gpu-wheels|test-torch TORCH=2.11.0)$": "installs or fetches packages",
    r"^make gpu-day|^python3 benchmarks/gpu/": "takes many minutes; test_gpu_day.py tries the scripts' parts",
    r"^make (colab|space)-rehearsal": "installs several GB from package indexes",
    r"^hf upload ": "needs the network and an account",
    r"^make test-browser$": "needs a Chromium, and is a run of tests itself",
    r"^make test-processors$": "is a run of tests itself, of many minutes",
    r"^make pretrained$": "takes hours and writes into the package; test_shipped.py compares what it wrote",
    r"^git clone|^hf auth login$|^lm_eval |^VLLM_MLA_DISABLE=1|^ollama ": "needs the network, or a program of others",
    r"torchrun .*torchtitan": "needs torchtitan and eight GPUs; test_torchtitan.py loads what was exported",
    r"^torchrun ": "starts eight processes; test_parallel.py trains and compares by torchrun with two",
    r"^sbatch ": "needs SLURM; test_job_files.py runs the job with a stand-in for it",
    r"^nanokimi bench .*--train.compile": "compiles each arm for a minute; test_compiled.py trains with it",
    r"^make soak$": "kills 120 runs, for an hour or more; test_resume.py has its short form",
    r"^make fuzz$|^pytest -m slow|^BAD_INPUT_TABLE=": "is a run of tests itself",
    r"^python app.py$": "is the Space's own start, with its name and port; test_play_browser.py starts it",
    r"^python benchmarks/compare_seeds.py": "is of the commit that the record names; the script is gone since",
    r"^python benchmarks/time_to_loss.py": "needs nanoGPT and hours; test_benchmarks.py runs it small",
    r"^apt-get download debian-reference-en ": "fetches the packages that the next command reads",
    r"^python benchmarks/bilingual.py": "reads those packages, for minutes; test_bilingual.py runs it on small ones",
    r"^python benchmarks/play_load.py": "is four minutes of 32 visitors; its figures are in docs/play.md",
    r"^python benchmarks/play_pictures.py": "takes pictures for the documents; test_play_browser.py drives the page",
    r"^python benchmarks/study_pictures.py": "draws into docs/; test_tables.py compares what it draws with the runs",
    r"^python benchmarks/receipts.py": "trains and exports for minutes; test_interop.py and test_gguf.py do the same",
}
"""Commands that no test runs, by pattern, each with the reason."""


def one_spaced(command: Command) -> str:
    """Its text with each run of white space as one space."""
    return " ".join(command.text.split())


def reason_not_to_run(command: Command) -> str | None:
    """Why no test runs it; None: one does."""
    return next(
        (reason for pattern, reason in NOT_RUN.items() if re.search(pattern, one_spaced(command))), None
    )


def rule_for(command: Command) -> Rule | None:
    """Its rule, if there is one."""
    return next((rule for rule in RULES if re.search(rule.pattern, one_spaced(command))), None)
