"""The presets are what their names say: sizes, K2's proportions, and a NanoGPT with as many active parameters."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import stdev

import pytest
import torch

import nanokimi.presets as preset_package
from nanokimi.compare.searched import search_file, search_records
from nanokimi.config import RunConfig
from nanokimi.config.arms import arm_configs
from nanokimi.config.files import load_config, preset_names
from nanokimi.config.rules import resolve
from nanokimi.measure.cost import model_cost
from nanokimi.model.build import build_model
from nanokimi.report.search_note import search_note

VOCABULARY = {"char": 66, "byte": 256}
K2_SIZES = {"0.25m": 0.25e6, "1m": 1e6, "5m": 5e6, "27m": 27e6, "100m": 1e8, "350m": 3.5e8, "1b": 1e9}


def preset(name: str) -> RunConfig:
    config = load_config(name)
    size = VOCABULARY.get(config.dataset.tokenizer, config.dataset.vocab_size)
    return resolve(config, vocab_size=size, device="cpu", dtype="fp32", threads=1)


def test_every_size_of_the_ladder_is_there() -> None:
    assert {name.removeprefix("k2-") for name in preset_names() if name.startswith("k2-")} == set(K2_SIZES)


@pytest.mark.parametrize("size", K2_SIZES)
def test_a_k2_preset_has_its_size_and_proportions(size: str) -> None:
    model = preset(f"k2-{size}").nanokimi.model
    total = model_cost(model, 64).params_total
    assert abs(total / K2_SIZES[size] - 1) < 0.15, f"{total:,} parameters"
    with torch.device("meta"):
        assert sum(p.numel() for p in build_model(model, seed=0).parameters()) == total
    chosen = model.num_experts_per_tok + model.n_shared_experts
    assert model.intermediate_size == chosen * model.moe_intermediate_size, (
        "a dense layer costs what a sparse one does"
    )
    assert (model.n_shared_experts, model.first_k_dense_replace) == (1, 1)
    assert model.qk_nope_head_dim == model.v_head_dim == 2 * model.qk_rope_head_dim
    assert 2.2 < model.intermediate_size / model.hidden_size < 2.9
    assert 0.9 < model.num_attention_heads * model.qk_nope_head_dim / model.hidden_size < 1.25


NO_MULTIPLES_OF_32 = {
    "k2-0.25m": {("nanokimi", 144), ("nanokimi", 48), ("nanogpt", 48)},
    "shakespeare-fast": {("nanokimi", 144), ("nanokimi", 400), ("nanokimi", 56)},
    "seed-002-k2": {("nanokimi", 48)},
}
"""The heads of these files say why."""


@pytest.mark.parametrize("name", preset_names())
def test_every_width_of_a_preset_is_a_multiple_of_32_as_quantised_formats_need(name: str) -> None:
    found = {
        (arm.model, width) for arm in arm_configs(load_config(name)).values() for width in widths_of(arm)
    }
    assert {one for one in found if one[1] % 32} == NO_MULTIPLES_OF_32.get(name, set())
    assert name not in NO_MULTIPLES_OF_32 or "multiple" in preset_text(name)


def widths_of(arm: RunConfig) -> set[int]:
    """The widths that matrices of an arm's model are multiplied along."""
    model, names = arm.family.model, ["hidden_size", "intermediate_size"]
    latent = arm.model == "nanokimi" or getattr(model, "attention", None) == "mla"
    experts = arm.model == "nanokimi" or getattr(model, "experts", "none") != "none"
    names += ["kv_lora_rank", "q_lora_rank"] * latent + ["moe_intermediate_size"] * experts
    widths = {getattr(model, name) for name in names} - {None}
    return widths | ({model.num_attention_heads * model.v_head_dim} if latent else set())


def preset_text(name: str) -> str:
    """The file of a preset."""
    return (Path(preset_package.__file__).parent / f"{name}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["shakespeare-char", "stories", *(f"k2-{size}" for size in K2_SIZES)])
def test_nanokimi_has_no_more_active_parameters_than_its_baseline(name: str) -> None:
    config = preset(name)
    context = config.train.context_length
    kimi, gpt = (model_cost(arm.model, context).params_active for arm in (config.nanokimi, config.nanogpt))
    assert 1.0 <= gpt / kimi < 1.07


SEARCHED = {name: load_config(name).compare.search for name in preset_names()}
CHANGED_FOR_ALL = {
    "shakespeare-char": ["train.max_steps"],
    "k2-0.25m": ["train.max_steps"],
    "k2-1m": ["train.max_steps"],
    "k2-5m": ["dataset.characters", "train.max_steps"],
    "k2-27m": ["train.batch_size", "dataset.characters", "train.max_steps"],
    "tales-gpu": [
        "train.context_length",
        "train.batch_size",
        "dataset.characters",
        "train.max_steps",
        "dataset.val_fraction",
        "dataset.test_fraction",
    ],
    "stories": ["dataset.vocab_size", "dataset.characters"],
}
"""The conditions in which a preset differs from its search, as the heads of these files say."""
NOT_RECORDED = {(name, "NanoGPT with Muon") for name in ("k2-0.25m", "k2-1m")}
"""Arms of earlier searches of which it cannot be told what was kept fixed."""
NAMED = [name for name, search in SEARCHED.items() if search]


def test_there_are_presets_that_ship_a_search() -> None:
    shipped = {Path(path).stem for path in Path(search_file(str(SEARCHED["tales"]))).parent.glob("*.json")}
    assert shipped == {SEARCHED[name] for name in NAMED}


@pytest.mark.parametrize("name", NAMED)
def test_a_preset_trains_all_its_arms_as_its_search_found_them(name: str) -> None:
    """No arm differs from its search; what differs for all of them, the head of its file says."""
    text = json.loads(search_file(str(SEARCHED[name])).read_text())["data"]["path"]
    config = load_config(name, ["--dataset.path", text])
    records = search_records(config, arm_configs(config))
    assert set(records) == set(arm_configs(config))
    assert {arm: record["changed"] for arm, record in records.items()} == {
        arm: CHANGED_FOR_ALL.get(name, []) for arm in records
    }
    without = {arm for arm, record in records.items() if "settings" not in record}
    assert {(name, arm) for arm in without} == {one for one in NOT_RECORDED if one[0] == name}
    alike = {(record["design"], record["trials"], str(record["seeds"])) for record in records.values()}
    assert len(alike) == 1
    note = search_note([{"name": arm, "search": record} for arm, record in records.items()])
    inherited = any("inherited_file" in record for record in records.values())
    assert note.startswith(
        "NOT SEARCHED AT THIS SIZE" if inherited else "Every arm was tuned with the same search"
    )


TRAINED_OTHERWISE = (
    "shakespeare-char",
    "shakespeare-fast",
    "ladder-shakespeare",
    "ladder-tales",
    "scale-tales",
)
"""Where `train` has a published recipe and what beats it, or a study its starting point."""


@pytest.mark.parametrize("name", NAMED)
def test_train_has_the_settings_of_the_arms_of_compare(name: str) -> None:
    """Else two runs of `train` would not be the comparison that `compare` makes."""
    config = load_config(name)
    arms = arm_configs(config)
    own = {"NanoKimi": config.nanokimi, "NanoGPT": config.nanogpt}
    other = {arm for arm, family in own.items() if arm in arms and arms[arm].family != family}
    assert bool(other) == (name in TRAINED_OTHERWISE)


UNTUNED = [name for name in preset_names() if name.startswith("k2-") and not SEARCHED[name]]


@pytest.mark.parametrize("name", UNTUNED)
def test_a_preset_without_a_search_treats_its_arms_alike(name: str) -> None:
    """What was searched for no arm is equal in all of them; but for AdamW's rate, which is not Muon's."""
    arms = arm_configs(load_config(name))
    assert set(arms) == {"NanoKimi", "NanoGPT with Muon", "NanoGPT"}
    shared = (
        "warmup_steps",
        "weight_decay",
        "schedule",
        "decay_fraction",
        "min_lr_ratio",
        "betas",
        "grad_clip",
    )
    alike = {
        (arm.family.model.initializer_range, *(str(getattr(arm.family.optim, one)) for one in shared))
        for arm in arms.values()
    }
    assert len(alike) == 1
    kimi, muon = (arms[name].family.optim for name in ("NanoKimi", "NanoGPT with Muon"))
    assert (kimi.lr, kimi.adamw_lr, kimi.momentum) == (muon.lr, muon.adamw_lr, muon.momentum)
    assert "othing was searched" in preset_text(name)


@pytest.mark.parametrize("name", [name for name in preset_names() if load_config(name).compare.spread])
def test_how_far_a_presets_runs_differ_is_what_was_recorded(name: str) -> None:
    """The largest deviation of its arms, over seeds and over roundings of the first seed."""
    spread = load_config(name).compare.spread
    assert spread is not None
    lines = (Path(__file__).parents[1] / spread.file).read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row.get("test_loss") is not None]
    # the file may hold several presets' runs, and earlier ones; benchmarks/spread.py takes those of one commit
    rows = [row for row in rows if row.get("preset", name) == name]
    rows = [row for row in rows if row.get("commit") == rows[-1].get("commit")]
    seed, rounding = [], []
    for arm in {row["arm"] for row in rows}:
        own = [row for row in rows if row["arm"] == arm]
        plain = [row["test_loss"] for row in own if not row.get("nudged")]
        nudged = [row["test_loss"] for row in own if row["seed"] == min(row["seed"] for row in own)]
        seed.append(stdev(plain))
        rounding += [stdev(nudged)] if len(nudged) > 1 else []
        assert spread.runs in (len(plain), len(nudged))
    assert spread.seed == round(max(seed), 4)
    assert spread.rounding == (round(max(rounding), 4) if rounding else None)


def test_the_default_preset_is_nanogpts_cpu_recipe() -> None:
    config = preset("shakespeare-char")
    gpt, train, optim = config.nanogpt.model, config.train, config.nanogpt.optim
    assert (gpt.num_hidden_layers, gpt.num_attention_heads, gpt.hidden_size) == (4, 4, 128)
    assert (train.context_length, train.batch_size, train.max_steps) == (64, 12, 2000)
    assert (optim.name, optim.lr, optim.betas, optim.weight_decay, optim.grad_clip) == (
        "adamw",
        1e-3,
        (0.9, 0.99),
        0.1,
        1.0,
    )
    assert (optim.schedule, optim.warmup_steps, optim.min_lr_ratio, gpt.dropout, gpt.bias) == (
        "cosine",
        100,
        0.1,
        0.0,
        False,
    )
