"""Words on the command line: short names, nanoGPT's and Hugging Face's, and what a command refuses to ignore."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest

from nanokimi import cli
from nanokimi.cli.help import WIDTH, command_help
from nanokimi.cli.options import USAGE
from nanokimi.config.arms import arm_configs
from nanokimi.config.files import load_config
from nanokimi.config.ignored import rate_left_behind
from nanokimi.config.parsing import all_keys, settings, with_options
from nanokimi.config.schema import FAMILIES, RunConfig
from nanokimi.config.words import INSTEAD, WORDS


@pytest.mark.parametrize("word", WORDS)
def test_every_word_stands_for_a_setting_of_each_family_that_is_trained(word: str) -> None:
    for family in FAMILIES:
        key = WORDS[word] if WORDS[word] in all_keys() else f"{family}.{WORDS[word]}"
        if key in all_keys():
            value = {"bool": "true", "str": "lion"}.get(type(settings(RunConfig())[key]).__name__, "3")
            value = "constant" if key.endswith(".schedule") else value
            found = settings(with_options(RunConfig(), [f"--{word}", value], [family]))
            assert found == settings(RunConfig()) | {key: found[key]} or "max_" in key
            assert str(found[key]).lower() in (value, f"{value}.0")


def test_no_word_is_both_known_and_refused() -> None:
    assert not INSTEAD.keys() & WORDS.keys()
    assert not set(INSTEAD) & {key.rpartition(".")[2] for key in all_keys()}


def printed(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> RunConfig:
    assert cli.main([*shlex.split(line), "--print-config"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    return load_config(str(tmp_path / "printed.yaml"))


def test_the_printed_configuration_is_that_of_the_words_and_loads_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = (
        "train --config smoke --model nanogpt --learning_rate 1e-2 --n_embd 32 --max_iters 7 --compile true"
    )
    dotted = ["--model", "nanogpt", "--nanogpt.optim.lr", "1e-2", "--nanogpt.model.hidden_size", "32"]
    dotted += ["--train.max_steps", "7", "--train.compile", "true"]
    assert printed(line, tmp_path, capsys) == load_config("smoke", dotted)
    found = printed('train --config tales --arm "NanoGPT with Muon" --lr 0.5', tmp_path, capsys)
    assert (found.model, found.nanogpt.optim.name, found.nanogpt.optim.lr) == ("nanogpt", "muon", 0.5)
    one = printed('compare --config tales --arms "NanoGPT with Muon" --lr 0.5', tmp_path, capsys)
    assert arm_configs(one)["NanoGPT with Muon"].nanogpt.optim == found.nanogpt.optim
    pair = printed("compare --config smoke --compare.arms variant,nanogpt", tmp_path, capsys)
    assert list(arm_configs(pair)) == ["Variant", "NanoGPT"]
    assert not (tmp_path / "runs").exists()


def test_what_a_refusal_tells_to_type_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It named --nanogpt.optim.lr, which was then refused because the preset's arms set their own rates."""
    monkeypatch.chdir(tmp_path)
    for words in ("--lr 0.5 --weight_decay 0.25", "--nanokimi.optim.lr 0.5"):
        line = f"compare --config shakespeare-char --data t.txt {words}"
        assert cli.main(shlex.split(line)) == 2
        advice = capsys.readouterr().err.partition("--arm ")[2]
        line = f"compare --config shakespeare-char --data t.txt --arm {advice}"
        arms = arm_configs(printed(line, tmp_path, capsys))
        before = arm_configs(load_config("shakespeare-char"))
        assert arms["NanoKimi"].nanokimi.optim.lr == 0.5
        assert arms["NanoKimi"].nanokimi.optim.warmup_steps == before["NanoKimi"].nanokimi.optim.warmup_steps
        assert arms["NanoGPT"].nanogpt == before["NanoGPT"].nanogpt


def test_prepare_prints_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = printed("prepare --config smoke --data none.txt --context 8", tmp_path, capsys)
    assert (found.dataset.path, found.train.context_length) == ("none.txt", 8) and not (
        tmp_path / "runs"
    ).exists()


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("train --config smoke --match flops", "--compare.match has no effect with train"),
        ("train --config smoke --nanogpt.optim.lr 1", "which trains nanokimi: leave it out"),
        ("train --config smoke --dropout 0.1", "there is --nanogpt.model.dropout"),
        (
            'train --config tales --arm "NanoGPT with Muon" --nanogpt.optim.lr 1',
            "sets optim.lr itself; use --optim.lr",
        ),
        ("compare --config smoke --lr 1", '--arm "NanoKimi: optim.lr=1"'),
        ("ladder --config ladder-tales --lr 1", "name --nanokimi.optim.lr or --nanogpt.optim.lr"),
        ("prepare --config smoke --match flops", "--compare.match has no effect with prepare"),
        ("prepare --config smoke --batch_size 3", "--train.batch_size has no effect with prepare"),
        ("prepare --config smoke --lr 3", "--lr has no effect with prepare"),
        ("prepare --config smoke --dataset.cache=", "dataset.cache is empty"),
        ("compare --config smoke --name x", "--name has no effect with compare"),
        ("compare --config smoke --variant.optim.lr 1", "which trains nanokimi and nanogpt"),
        (
            'compare --config tales --arms "NanoGPT with Muon" --nanogpt.optim.lr 1',
            "--nanogpt.optim.lr has no effect: NanoGPT with Muon sets optim.lr itself",
        ),
        ("sweep --config smoke --sample.top_k 3", "--sample.top_k has no effect with sweep"),
        ("ladder --config ladder-tales --match flops", "--compare.match has no effect with ladder"),
        ("ladder --config ladder-tales --train.threads 1", "has one thread"),
        ("scale --config scale-tales --variant.optim.lr 3", "--variant.optim.lr has no effect with scale"),
        ("bench --config smoke --steps 3", "--train.max_steps has no effect with bench"),
        ("train --config smoke --lr 1 --optim.lr 2", "--lr and --optim.lr are one option"),
        (
            "train --config tales --model nanogpt --optim.name lion",
            "nanogpt.optim.adamw_lr has no effect with nanogpt.optim.name lion: leave it out, or reset it to null if",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(
    line: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(shlex.split(line)) == 2
    assert part in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", list(USAGE))
def test_help_fills_its_lines_and_keeps_its_columns(command: str) -> None:
    lines = command_help(command, ["--help"]).splitlines()
    for line, following in itertools.pairwise(lines):
        word = following.split(" ")[0]
        assert not word[:1].islower() or len(line) + 1 + len(word) > WIDTH, f"{line}\n{following}"
    for name in re.findall(r"^  ([A-Z]\S*)  ", USAGE[command], flags=re.MULTILINE):
        assert any(line.startswith(f"  {name}  ") for line in lines), f"{name} has its own line"


def test_help_shows_each_way_to_call_on_a_line() -> None:
    first, second, *_ = command_help("audit", ["--help"]).splitlines()
    assert first.startswith("usage: nanokimi audit RUN") and second.startswith("       nanokimi audit FILE")


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("--lr 1e-3", "nanogpt.optim.adamw_lr, .* stays 0.01531: .* add --nanogpt.optim.adamw_lr null"),
        ("--nanogpt.optim.lr=1e-3", "stays 0.01531"),
        ("--lr 1e-3 --adamw_lr 1e-3", None),
        ("--lr 1e-3 --adamw_lr null", None),
        ("--steps 3", None),
    ],
)
def test_a_second_rate_that_stays_is_told(words: str, kept: str | None) -> None:
    """Whoever gives nanoGPT's one rate means all weights, and the preset has a rate of its own for some."""
    rest = ["--model=nanogpt", *words.split()]
    said = rate_left_behind(load_config("tales", rest, alone=True), rest)
    assert (said is None) == (kept is None) and (kept is None or re.search(kept, str(said)))
