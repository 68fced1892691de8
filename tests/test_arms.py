"""Arms: a name, a model, an optimizer; in files, on the command line, and as classes of the user's."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import TINY_ARMS, make_text

from nanokimi import cli
from nanokimi.compare import match
from nanokimi.compare import run as comparison
from nanokimi.config import ModuleConfig, RunConfig, arms, files, rules
from nanokimi.config.arms import DEFAULT_ARMS, arm_configs, only_arms, slug, with_arm
from nanokimi.config.files import load_config, save_config
from nanokimi.errors import UserError
from nanokimi.measure.cost import model_cost
from nanokimi.model.build import build_model
from nanokimi.runtime.files import read_json
from nanokimi.runtime.plugins import forget_plugins, name_plugin
from nanokimi.train import run_folder

SETTINGS = f"""\
train:
  {{context_length: 16, batch_size: 4, eval_batch_size: 8, max_steps: 6, eval_every: 6, device: cpu, threads: 1}}
sample: {{prompts: [the small boy], max_new_tokens: 5}}
{TINY_ARMS}"""
MODELS = """\
import threading

import torch
from torch import nn


class Bigram(nn.Module):
    def __init__(self, vocab_size, width=8):
        super().__init__()
        self.embedding, self.head = nn.Embedding(vocab_size, width), nn.Linear(width, vocab_size)

    def forward(self, ids):
        return self.head(self.embedding(ids))


class Peeking(Bigram):
    def forward(self, ids):
        return self.head(self.embedding(torch.cat((ids[:, 1:], ids[:, :1]), dim=1)))


class LikeNanoGPT(Bigram):  # its forward computes the last position alone, unless it gets targets
    def forward(self, ids, targets=None):
        logits = super().forward(ids)
        return (logits, torch.zeros(())) if targets is not None else (logits[:, -1:], None)


class Frozen(Bigram):
    def __init__(self, vocab_size):
        super().__init__(vocab_size)
        self.requires_grad_(False)


class Lazy(Bigram):
    def __init__(self, vocab_size):
        super().__init__(vocab_size)
        self.head = nn.LazyLinear(vocab_size)


class CutOff(Bigram):
    def forward(self, ids):
        return super().forward(ids).detach()


class Headless(Bigram):
    def forward(self, ids):
        return self.embedding(ids).mean(dim=1)


class Locked(Bigram):
    def __init__(self, vocab_size):
        super().__init__(vocab_size)
        self.lock = threading.Lock()
"""


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(SETTINGS)
    (tmp_path / "text.txt").write_text(make_text())
    (tmp_path / "mine.py").write_text(MODELS)
    return tmp_path / "tiny.yaml"


@pytest.fixture(autouse=True)
def nothing_named() -> Iterator[None]:
    yield
    forget_plugins()


def with_arms(settings: Path, text: str) -> Path:
    settings.write_text(SETTINGS + text)
    return settings


def refusal(settings: Path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(str(with_arms(settings, text)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_arms_there_are_two(settings: Path) -> None:
    config = load_config(str(settings))
    assert config.arms == {} and list(arm_configs(config)) == list(DEFAULT_ARMS)


def test_an_arm_is_its_family_with_differences(settings: Path) -> None:
    text = "arms:\n  Base: {from: nanogpt}\n  Muon: {from: Base, optim: {name: muon, lr: 0.02}}\n"
    config = load_config(str(with_arms(settings, text)))
    base, muon = arm_configs(config).values()
    assert (base.name, base.title, base.model, base.nanogpt) == ("Base", "Base", "nanogpt", config.nanogpt)
    assert (muon.nanogpt.optim.name, muon.nanogpt.optim.lr) == ("muon", 0.02)
    assert muon.nanogpt.model == config.nanogpt.model and muon.arms == {}
    save_config(config, settings)
    assert load_config(str(settings)) == config, "the order and the content are kept"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("arms: {A: {from: nanogpx}}", "arms.A.from is nanogpx.*nanogpt"),
        ("arms: {A: {optim: {lr: 1}}}", "arms.A: expected"),
        ("arms: {A: {from: nanogpt, model: {heads: 3}}}", "arms.A: .*nanogpt.model.heads"),
        ("arms: {A: {from: nanogpt, optim: {lr: fast}}}", "arms.A: .*nanogpt.optim.lr is fast"),
        ("arms: {A: {from: nanogpt, optim: {lr: -1}}}", "arms.A: .*lr is -1"),
        ("arms: {A: {from: B}, B: {from: A}}", "made from itself"),
        ("arms: {a b: {from: nanogpt}, A-B: {from: nanogpt}}", "share a folder"),
        ("arms: {'!': {from: nanogpt}}", "is not a name"),
        ("arms: {A: {from: mine.py:Bigram, optim: {name: muonclip}}}", "muonclip"),
    ],
)
def test_what_is_no_arm_is_refused_in_one_line(settings: Path, text: str, words: str) -> None:
    import re

    assert re.search(words, refusal(settings, text)), refusal(settings, text)


def test_an_arm_may_leave_its_parts_empty(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`model:` with nothing behind it once ended in a traceback."""
    with_arms(settings, "arms: {A: {from: nanogpt, model: , optim: }, B: {from: nanogpt}}")
    assert run(settings, "compare", "--arm", "A: optim.lr=0.25", "--print-config") == 0
    assert "lr: 0.25" in capsys.readouterr().out


def test_a_setting_that_is_given_twice_is_refused(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(settings, "compare", "--arm", "A: from=nanogpt optim.lr=1 optim.lr=2") == 2
    assert "optim.lr is given twice" in capsys.readouterr().err


def test_a_vocabulary_that_is_too_small_is_refused_before_training(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ended in an IndexError after the other arms had been trained."""
    words = ("compare", "--arm", "A: from=nanogpt model.vocab_size=3")
    assert run(settings, *words, "--out", str(settings.parent / "out")) == 2
    error = capsys.readouterr().err.splitlines()
    assert "arms.A: model.vocab_size 3 is below the tokenizer's" in error[-1], error
    assert not list((settings.parent / "out").glob("*/seed-*"))


def test_no_configuration_of_a_comparison_is_checked_twice_or_saved_twice(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base and the arm that differs from it, each as it was asked for and as the text and machine complete it."""
    checked: list[RunConfig] = []
    saved: list[Path] = []
    validate = rules.validate

    def watch_checks(config: RunConfig) -> RunConfig:
        checked.append(config)
        return validate(config)

    def watch_files(config: RunConfig, path: Path) -> None:
        saved.append(path)
        save_config(config, path)

    for room in (files, arms, match, rules):
        monkeypatch.setattr(room, "validate", watch_checks)
    for room in (run_folder, comparison):
        monkeypatch.setattr(room, "save_config", watch_files)
    text = f"dataset: {{path: {tmp_path / 'text.txt'}}}\ncompare: {{seeds: 2}}\n"
    text += "arms: {A: {from: nanogpt}, B: {from: nanogpt, optim: {lr: 0.1}}}\n"
    config = load_config(str(with_arms(settings, text)))
    (tmp_path / "out").mkdir()
    config, data = run_folder.set_up(config, tmp_path / "out")
    made = comparison.make_runs(config, data, tmp_path / "out")
    assert len(checked) == 4 and all(one != other for i, one in enumerate(checked) for other in checked[:i])
    assert [arm.nanogpt.optim.lr for arm in made.values()] == [3e-3, 0.1]
    runs = [tmp_path / "out" / arm / f"seed-{seed}" / "config.yaml" for arm in "ab" for seed in (1337, 1338)]
    assert saved == [tmp_path / "out" / "config.yaml"] * 2 + runs  # the first before the text is prepared


def test_the_command_line_adds_and_chooses_arms(settings: Path) -> None:
    config = with_arm(load_config(str(settings)), "With Muon: from=nanogpt optim.name=muon model.dropout=0.5")
    assert list(config.arms) == ["NanoKimi", "NanoGPT", "With Muon"]
    arm = arm_configs(config)["With Muon"].nanogpt
    assert (arm.optim.name, arm.model.dropout) == ("muon", 0.5)
    assert list(only_arms(config, ["With Muon", "NanoKimi"]).arms) == ["With Muon", "NanoKimi"]
    for wrong in ("X from=nanogpt", "X: optim.lr=1", "X: from=nanogpt lr=1", "X: from=nanogpt optim.lx=1"):
        with pytest.raises(UserError):
            with_arm(config, wrong)
    with pytest.raises(UserError, match="NanoKimi"):
        only_arms(config, ["NanoKim"])


def test_pairs_of_earlier_versions_are_read_as_arms(settings: Path) -> None:
    config = load_config(str(with_arms(settings, "compare: {arms: [variant, nanogpt]}")))
    assert config.arms == {"Variant": {"from": "variant"}, "NanoGPT": {"from": "nanogpt"}}


def test_names_become_folders() -> None:
    assert [slug(name) for name in ("NanoGPT with Muon", "A/../B", "lr = 1e-3")] == [
        "nanogpt-with-muon",
        "a-b",
        "lr-1e-3",
    ]


# ---- classes of the user's


def run(settings: Path, *words: str) -> int:
    folder = settings.parent
    return cli.main([*words, "--config", str(settings), "--data", str(folder / "text.txt")])


def test_classes_of_the_users_are_arms_like_any_other(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = settings.parent
    plugins = {"Mine": f"{folder}/mine.py:Bigram", "Theirs": f"{folder}/mine.py:LikeNanoGPT"}
    words = ["compare", "--arms", "Mine,Theirs", "--out", str(folder / "out")]
    for title, plugin in plugins.items():
        words += ["--arm", f"{title}: from={plugin} model.width=4 optim.lr=0.01"]
    assert run(settings, *words) == 0
    report = read_json(folder / "out" / "report.json")
    vocabulary = report["data"]["vocab_size"]
    assert [arm["name"] for arm in report["arms"]] == list(plugins)
    for arm in report["arms"]:
        assert arm["leaking"] is None and arm["test_loss"] > 0
        assert arm["params_total"] == 2 * 4 * vocabulary + vocabulary
        assert arm["params_active"] == 4 * vocabulary, "the embedding is a look-up"
    for title, plugin in plugins.items():
        capsys.readouterr()
        forget_plugins()
        run_folder = str(folder / "out" / title.lower() / "seed-1337")
        assert cli.main(["sample", run_folder]) == 2, "the file is not named"
        assert "mine.py" in capsys.readouterr().err
        assert cli.main(["sample", run_folder, "--plugin", plugin]) == 0
        assert capsys.readouterr().out.startswith(f"--- {title}\nthe small boy")


def test_what_to_continue_with_names_the_classes_that_an_arm_named(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line that an interrupted comparison prints is the whole command: two models, a folder with a space."""
    folder = settings.parent
    out, plugins = folder / "my runs", [f"{folder}/mine.py:{name}" for name in ("Bigram", "LikeNanoGPT")]
    words = ["--arms", "A0,A1", "--out", str(out)]
    for number, plugin in enumerate(plugins):
        words += ["--arm", f"A{number}: from={plugin} model.width=4"]
    assert run(settings, "compare", *words) == 0
    line = shlex.split(run_folder.how_to_continue("compare", out))
    assert line[:2] == ["continue", "with:"] and line[-4::2] == ["--plugin"] * 2 and line[-3::2] == plugins
    forget_plugins()
    capsys.readouterr()
    assert cli.main(line[3:]) == 0, capsys.readouterr().err
    forget_plugins()
    again = ["compare", "--config", str(out / "config.yaml"), *line[-4:], "--print-config"]
    assert cli.main(again) == 0, capsys.readouterr().err
    assert "source: ''" in capsys.readouterr().out, "each arm has its own class, and no other model has one"


def test_two_classes_for_one_place_are_refused_where_a_run_begins(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One is the model that `--model module` trains, as the message about a class without an effect says."""
    one, other = (f"--plugin={settings.parent}/mine.py:{name}" for name in ("Bigram", "LikeNanoGPT"))
    words = ["train", "--model", "module", "--module.model.arguments", "{width: 4}", "--print-config"]
    assert run(settings, *words, one) == 0 and "source: mine.py:Bigram" in capsys.readouterr().out
    assert run(settings, *words, one, other) == 2
    assert "another one is model.source already: give one of them" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("compare", "--arms", "Mine"), ("train",)], ids=["compare", "train"])
@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ("from={}/mine.py:Peeking", "LEAKING before its first step"),
        ("from={}/mine.py:Headless", "expected logits"),
        ("from={}/mine.py:Frozen", "nothing to train"),
        ("from={}/mine.py:Lazy", "parameters without a shape"),
        ("from={}/mine.py:CutOff", "cannot be trained: RuntimeError"),
        ("from={}/mine.py:Locked", "cannot be audited: ValueError: the module cannot be copied"),
        ("from={}/mine.py:Bigram model.depth=2", "takes no argument 'depth'"),
        ("from={}/mine.py:Bigram model.width=wide", "cannot be built"),
        ("from={}/mine.py:Nothing", "defines no class"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_a_folder_is_made(
    settings: Path, arm: str, words: str, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Not at its end: `train` used to say only then that a class reads tokens that it must not see."""
    folder = settings.parent
    text = "Mine: " + arm.format(folder)
    assert run(settings, *command, "--arm", text, "--out", str(folder / "out")) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1, error
    assert not (folder / "out").exists()


def test_the_cost_of_a_module_is_counted_from_outside(settings: Path) -> None:
    name_plugin(f"{settings.parent}/mine.py:Bigram")
    config = ModuleConfig(
        source="mine.py:Bigram", vocab_size=50, max_position_embeddings=16, arguments={"width": 4}
    )
    cost = model_cost(config, 16)
    assert (cost.params_total, cost.params_active) == (450, 200)
    assert cost.forward_flops_per_token == 2 * 4 * 50
    assert cost.train_flops_per_token == 3 * 2 * 4 * 50
    ids_BT = torch.randint(50, (2, 16))
    assert build_model(config, 0)(ids_BT).logits_BTW.shape == (2, 16, 50)


def test_train_takes_one_arm(settings: Path) -> None:
    folder = settings.parent
    words = ("--arm", "With Muon: from=nanogpt optim.name=muon", "--out", str(folder / "run"))
    assert run(settings, "train", *words) == 0
    result = read_json(folder / "run" / "result.json")
    assert (result["name"], result["optimizer"]) == ("With Muon", "muon")


EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "models_of_others.py"


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
def test_a_stock_class_of_transformers_is_an_arm(settings: Path) -> None:
    sizes = "model.hidden_size=32 model.num_hidden_layers=1 model.num_attention_heads=2 model.intermediate_size=48"
    arm = f"Llama: from={EXAMPLE}:Llama {sizes} optim.lr=3e-3"
    out = settings.parent / "out"
    assert run(settings, "compare", "--arm", arm, "--arms", "Llama,NanoGPT", "--out", str(out)) == 0
    llama = read_json(out / "report.json")["arms"][0]
    assert llama["leaking"] is None and llama["decode_ms_per_token"] > 0


def test_nanogpts_own_model_is_an_arm_and_equals_ours(settings: Path) -> None:
    """Its parameters and FLOPs are those of our NanoGPT with the same sizes."""
    checkout = os.environ.get("NANOGPT", "")
    if not (Path(checkout) / "model.py").is_file() or not checkout:
        pytest.skip("no nanoGPT here: git clone https://github.com/karpathy/nanoGPT, and name it in NANOGPT")
    arm = f"nanoGPT: from={EXAMPLE}:NanoGPT model.folder={checkout} model.n_layer=2 model.n_head=2 model.n_embd=32"
    out = settings.parent / "out"
    words = ("--arm", f"{arm} optim.lr=3e-3", "--arms", "nanoGPT,NanoGPT", "--nanogpt.model.dropout", "0")
    assert run(settings, "compare", *words[:1], words[1], *words[2:], "--out", str(out)) == 2, (
        "one folder for two"
    )
    words = (
        "--arm",
        f"Theirs{arm.removeprefix('nanoGPT')} optim.lr=3e-3",
        "--arms",
        "Theirs,NanoGPT",
        *words[4:],
    )
    assert run(settings, "compare", *words, "--out", str(out)) == 0
    theirs, ours = read_json(out / "report.json")["arms"]
    assert theirs["leaking"] is None and theirs["params_total"] == ours["params_total"]
    assert theirs["params_active"] == pytest.approx(ours["params_active"], rel=0.1)
