"""Variants, and parts of the user's own, through the command line: train, sample, evaluate, audit, compare."""

from __future__ import annotations

import json
import py_compile
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY_VARIANT
from test_variants import shaken

from nanokimi.cli import main
from nanokimi.generation.engine import generate
from nanokimi.model.build import build_model
from nanokimi.runtime.files import read_json, read_json_lines
from nanokimi.runtime.plugins import forget_plugins, name_plugin
from nanokimi.train.run_folder import open_run

EXAMPLE = Path(__file__).parent.parent / "examples" / "sliding_window.py"
SETTINGS = """\
seed: 7
model: variant
train:
  {context_length: 20, batch_size: 8, eval_batch_size: 8, max_steps: 12, eval_every: 6, save_every: 6, device: cpu,
   threads: 1}
sample: {prompts: [the small boy], max_new_tokens: 20}
compare: {arms: [variant, nanogpt]}
variant:
  model: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2}
  optim: {lr: 3e-3, warmup_steps: 2}
nanogpt:
  model: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2}
  optim: {lr: 3e-3, warmup_steps: 2}
"""
VARIANTS = {
    "latent": "--variant.model.attention latent --variant.model.num_latents 4 --variant.optim.name muon"
    " --variant.model.num_hidden_layers 1",
    "gqa topk": "--variant.model.attention gqa --variant.model.experts topk --variant.model.aux_loss_alpha 0.01 "
    "--variant.optim.name muonclip --variant.model.feed_forward relu2 --variant.model.first_k_dense_replace 1",
    "mla sigmoid": "--variant.model.attention mla --variant.model.positions rope --variant.model.kv_lora_rank 16 "
    "--variant.model.experts sigmoid-bias --variant.model.feed_forward swiglu --variant.optim.name muonclip"
    " --variant.model.num_hidden_layers 1",
    "soft": "--variant.model.experts soft --variant.model.n_routed_experts 4 --variant.model.dropout 0.1"
    " --variant.model.num_hidden_layers 1",
}

Answer = tuple[int, str, str]
Shell = Callable[[str], Answer]


@pytest.fixture
def shell(tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    """The command line with {S} settings, {D} the text, {O} a folder; nothing plugged in from one call to the next."""
    (tmp_path / "tiny.yaml").write_text(SETTINGS)
    words = {"S": tmp_path / "tiny.yaml", "D": text_file, "O": tmp_path / "out", "P": EXAMPLE, "T": tmp_path}

    def run(line: str) -> Answer:
        forget_plugins()
        arguments = [word.format(**words) for word in json.loads(f"[{line}]")] if line[0] == '"' else None
        status = main(arguments or line.format(**words).split())
        return status, *capsys.readouterr()

    yield run
    forget_plugins()


def one_line(answer: Answer) -> str:
    status, _, err = answer
    assert status == 2 and err.startswith("nanokimi: ") and err.count("\n") == 1, answer
    return err


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_trains_samples_and_is_scored_like_any_model_and_goes_on_bit_for_bit(
    name: str, shell: Shell, tmp_path: Path
) -> None:
    status, out, err = shell("train --config {S} --data {D} --out {O} " + VARIANTS[name])
    assert status == 0, err
    assert out.startswith("Variant: test loss")
    result = read_json(tmp_path / "out" / "result.json")
    # Of a uniform 3.2 and a random start's excess.
    assert result["audit"]["causal"] and result["val_loss"] < 3.4
    assert result["params_total"] >= result["params_active"] > 0
    status, out, err = shell("sample {O} --max_new_tokens 9 --temperature 0")
    assert status == 0 and out.startswith("--- Variant\nthe small boy") and len(out) > 25
    status, out, err = shell("evaluate {O} --json")
    assert status == 0 and json.loads(out)["test_loss"] == pytest.approx(result["test_loss"], abs=1e-6)
    if name == "latent":  # it keeps as much however long the text is
        assert result["cache_bytes_per_token"] == 0 and result["cache_bytes_fixed"] == 4 * (32 + 2) * 4
    kinds = {record["kind"] for record in read_json_lines(tmp_path / "out" / "metrics.jsonl")}
    assert ("router" in kinds) == ("experts" in VARIANTS[name]) and "attention" in kinds
    if name == "gqa topk":
        goes_on_bit_for_bit(shell, tmp_path)


def goes_on_bit_for_bit(shell: Shell, folder: Path) -> None:
    """Take the second half of a finished run away, resume it, and find the same weights."""
    shutil.copytree(folder / "out", folder / "part")
    for name in ("model.safetensors", "result.json"):
        (folder / "part" / name).unlink()
    for path in (folder / "part" / "checkpoints").glob("step-00000012*"):
        path.rename(path.with_name("gone"))
    assert shell("train --resume --out {T}/part")[0] == 0
    whole, part = ((folder / name / "model.safetensors").read_bytes() for name in ("out", "part"))
    assert whole == part


def test_expert_choice_is_caught_by_the_audit_and_gets_no_rank(shell: Shell, tmp_path: Path) -> None:
    """It trains, and its loss may be the lower one: it is void all the same."""
    choice = " --variant.model.experts expert_choice --variant.model.n_routed_experts 4"
    choice += " --variant.model.num_hidden_layers 1 --nanogpt.model.num_hidden_layers 1"
    status, out, _ = shell("compare --config {S} --data {D} --out {O}" + choice)
    assert status == 1 and "Variant is LEAKING" in out
    report = read_json(tmp_path / "out" / "report.json")
    assert report["verdict"]["winner"] is None and report["verdict"]["ranked"] is False
    assert [run["name"] for run in report["runs"]] == ["Variant", "NanoGPT"]


def test_a_dry_run_forecasts_a_variant(shell: Shell) -> None:
    status, out, err = shell("train --dry-run --config {S} --data {D} --out {O} " + VARIANTS["gqa topk"])
    assert status == 0 and "Variant" in out, err


def test_bench_measures_the_two_arms_of_the_comparison(shell: Shell) -> None:
    status, out, err = shell("bench --quick --json --config {S} " + VARIANTS["latent"])
    assert status == 0, err
    assert [model["name"] for model in json.loads(out)["models"]] == ["Variant", "NanoGPT"]


# ---- parts of the user's own

ATTENTION, LAYER = " --plugin {P}:SlidingWindowAttention", " --plugin {P}:SwishLayer"


def test_the_worked_example_end_to_end(shell: Shell, tmp_path: Path) -> None:
    """Trained, sampled, scored and audited, but only where the same file is named."""
    both = ATTENTION + LAYER
    status, _, err = shell("train --config {S} --data {D} --out {O} --variant.optim.name muonclip" + both)
    assert status == 0, err
    result, kept = (read_json(tmp_path / "out" / name) for name in ("result.json", "plugins.json"))
    assert result["audit"]["causal"]
    assert set(kept) == {"sliding_window.py:SlidingWindowAttention", "sliding_window.py:SwishLayer"}
    config = (tmp_path / "out" / "config.yaml").read_text()
    assert "attention: sliding_window.py:SlidingWindowAttention" in config
    assert str(EXAMPLE.parent) not in config, "a folder on this machine is nobody's business"
    assert "experts: sliding_window.py:SwishLayer" in config
    # two layers: qkv and output 4 D^2, the layer 2 D * 128, two norms; embedding, positions, last norm
    tokens = result["params_total"] - 2 * (4 * 32**2 + 2 * 32 * 128 + 2 * 32) - 20 * 32 - 32
    assert tokens % 32 == 0 and result["params_active"] == result["params_total"] - 20 * 32 - 5 * 32
    status, out, err = shell("sample {O} --max_new_tokens 30" + both)
    assert status == 0 and out.startswith("--- Variant\nthe small boy"), err
    assert shell("evaluate {O}" + both)[0] == 0
    status, out, _ = shell("audit {O}" + both)
    assert status == 0 and "Variant: causal" in out

    for verb in ("sample", "evaluate", "audit"):
        message = one_line(shell(verb + " {O}" + LAYER))
        assert "--plugin path/to/sliding_window.py:SlidingWindowAttention" in message
    assert "--plugin" in one_line(shell("train --resume --out {O}"))
    other, elsewhere = tmp_path / "sliding_window.py", both.replace("{P}", "{T}/sliding_window.py")
    other.write_text(EXAMPLE.read_text() + "\n# a comment\n")
    for line in ("sample {O}", "train --resume --out {O}"):
        assert "another sliding_window.py" in one_line(shell(line + elsewhere))
    other.write_text(EXAMPLE.read_text())
    assert shell("sample {O}" + elsewhere)[0] == 0


def test_any_two_arms_can_be_compared_and_the_comparison_resumed_with_a_plugin(
    shell: Shell, tmp_path: Path
) -> None:
    """The plugin reaches the processes of the comparison, and of a dry run."""
    status, out, err = shell("compare --config {S} --data {D} --out {O} --arms NanoGPT,Variant" + ATTENTION)
    assert status == 0 and "NanoGPT" in out and "Variant" in out, err
    folders = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert folders == ["data", "nanogpt", "variant"]
    assert [path.parts[-3] for path in (tmp_path / "out").glob("*/seed-*/plugins.json")] == ["variant"]
    assert shell("sample {O} --max_new_tokens 3" + ATTENTION)[1].count("---") == 2
    assert "--plugin" in one_line(shell("sample {O} --max_new_tokens 3"))
    before = read_json(tmp_path / "out" / "report.json")["runs"]
    assert shell("compare --resume --out {O}" + ATTENTION)[0] == 0
    assert read_json(tmp_path / "out" / "report.json")["runs"] == before
    assert "is a comparison" in one_line(shell("train --resume --out {O}" + ATTENTION))
    status, _, err = shell("train --dry-run --config {S} --data {D} --out {T}/dry" + ATTENTION)
    assert status == 0, err


LEAKY = """
import torch
from torch import nn

class Mean(nn.Module):
    plugs_into = "attention"
    def __init__(self, config):
        super().__init__()
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
    def forward(self, x, angles, cache, want_max_logits):
        return self.o_proj(x.mean(dim=1, keepdim=True)).expand_as(x), None

class Past(Mean):
    def forward(self, x, angles, cache, want_max_logits):
        steps = torch.arange(1, x.shape[1] + 1).view(1, -1, 1)
        return self.o_proj(x.cumsum(dim=1) / steps), None

class Nowhere(nn.Module):
    pass

class Wrong(Mean):
    def __init__(self):
        pass

class Careless(Mean):
    def __init__(self, config):
        super().__init__(config)
        self.taps = {}["taps"]

class Choosy(torch.optim.SGD):
    pass

NUMBER = 3
"""


def test_a_leaking_part_of_the_users_is_refused_before_the_first_step(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(LEAKY)
    line = one_line(shell("train --config {S} --data {D} --out {O} --plugin {T}/mine.py:Mean"))
    assert "LEAKING before its first step" in line and not (tmp_path / "out").exists()


def test_an_attention_may_take_x_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        LEAKY
        + "class Plain(Past):\n    def forward(self, x):\n        return Past.forward(self, x, 0, 0, 0)[0]\n"
    )
    ids_BT = torch.arange(12).reshape(2, 6)
    logits = []
    for name in ("Past", "Plain"):
        source = name_plugin(f"{tmp_path / 'mine.py'}:{name}").name
        config = replace(TINY_VARIANT, num_hidden_layers=1, attention=source)
        logits.append(build_model(config, 1)(ids_BT).logits_BTW)
    assert torch.equal(*logits)


def test_an_optimizer_of_the_users_trains_a_part_that_keeps_no_cache_and_writes_all_the_same(
    shell: Shell, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(LEAKY)
    plugins = " --plugin {T}/mine.py:Past --plugin {T}/mine.py:Choosy"
    few = " --variant.optim.weight_decay 0 --variant.model.num_hidden_layers 1"
    status, _, err = shell("train --config {S} --data {D} --out {O}" + few + plugins)
    assert status == 0, err
    assert read_json(tmp_path / "out" / "result.json")["optimizer"] == "mine.py:Choosy"
    assert set(read_json(tmp_path / "out" / "plugins.json")) == {"mine.py:Past", "mine.py:Choosy"}
    assert "--plugin" in one_line(shell("train --resume --out {O} --plugin {T}/mine.py:Past"))
    assert shell("train --resume --out {O}" + plugins)[0] == 0
    status, out, _ = shell("sample {O} --max_new_tokens 30" + plugins)
    assert status == 0 and len(out) > 40
    model = open_run(tmp_path / "out").model
    shaken(model)
    cached, plain = (list(generate(model, [1, 2], 30, seed=1, use_cache=use)) for use in (True, False))
    assert not model.can_cache and cached == plain


@pytest.mark.parametrize(
    ("plugin", "part"),
    [
        ("{T}/mine.py", "expected FILE.py:NAME"),
        ("{T}/none.py:Mean", "there is no file"),
        ("{T}/mine.py:Missing", "defines no class 'Missing'"),
        ("{T}/mine.py:NUMBER", "defines no class 'NUMBER'"),
        # As a model it might be an arm.
        (
            "{T}/mine.py:Nowhere",
            "mine.py:Nowhere has no effect: it is a model unless the class says plugs_into = ",
        ),
        ("{T}/mine.py:Wrong", "cannot be built from a VariantConfig: TypeError"),
        ("{T}/mine.py:Careless", "cannot be built from a VariantConfig: KeyError: 'taps'"),
        ("{T}/broken.py:Mean", "cannot be run: ZeroDivisionError"),
        ("{T}/mine.py:Past --variant.optim.name muonclip", "rescale_heads_"),
        ("{T}/mine.py:Past --model module --module.model.source mine.py:Past", "has no effect"),
    ],
)
def test_whatever_is_wrong_with_a_plugin_is_one_line(
    plugin: str, part: str, shell: Shell, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(LEAKY)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    assert part in one_line(shell("train --config {S} --data {D} --out {O} --plugin " + plugin))
    assert not (tmp_path / "out").exists()


def test_what_lies_in_pycache_is_never_run(tmp_path: Path) -> None:
    """An unchecked .pyc is what `import` would take in the file's place, whatever the file says."""
    source = tmp_path / "mine.py"
    source.write_text("class Mine:\n    what = 'crafted'\n")
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(source), invalidation_mode=mode)
    source.write_text("class Mine:\n    what = 'the file'\n")
    try:
        assert vars(name_plugin(f"{source}:Mine").cls)["what"] == "the file"
    finally:
        forget_plugins()


def test_a_plugin_is_compiled_as_it_stands(tmp_path: Path) -> None:
    """Without the __future__ statements of whoever runs it: annotations stay objects, as torch.jit and others want."""
    (tmp_path / "mine.py").write_text("class Mine:\n    width: int = 3\n")
    try:
        assert name_plugin(f"{tmp_path / 'mine.py'}:Mine").cls.__annotations__ == {"width": int}
    finally:
        forget_plugins()


def test_plugins_belong_to_verbs_that_run_models(shell: Shell) -> None:
    assert "--plugin" in one_line(shell("bench --config {S}" + ATTENTION))
    assert "needs a value" in one_line(shell("train --config {S} --data {D} --plugin"))


def test_a_class_in_the_wrong_slot_is_refused(shell: Shell) -> None:
    line = "train --config {S} --data {D} --out {O} --variant.model.experts sliding_window.py:SlidingWindowAttention"
    assert "plugs into attention, not into feed_forward" in one_line(shell(line + ATTENTION))
    line = "train --config {S} --data {D} --out {O} --variant.model.experts sliding_window.py:SwishLayer"
    assert "only named code is run" in one_line(shell(line + ATTENTION))
