"""The earlier systems' presets: their sizes, and at a reduced size each trains, writes and passes the audit."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from nanokimi.cli import main
from nanokimi.config import OptimConfig, RunConfig
from nanokimi.config.arms import arm_configs
from nanokimi.config.files import load_config, preset_names
from nanokimi.config.rules import resolve
from nanokimi.measure.cost import Cost, model_cost
from nanokimi.model.build import build_model
from nanokimi.runtime.files import read_json, read_json_lines
from nanokimi.tales import generate_text

PRESETS = Path(__file__).parent.parent / "nanokimi" / "presets"
Answer = tuple[int, str, str]
Shell = Callable[[str], Answer]

QUICK = "--train.max_steps 6 --train.eval_every 6 --train.context_length 24 --train.batch_size 4 --train.device cpu "
QUICK += "--train.eval_batch_size 16 --train.threads 1 --dataset.val_fraction 0.2 --sample.max_new_tokens 12 "
PIECES = "--dataset.vocab_size 320 "
NARROW = "--{arm}.model.hidden_size 32 --{arm}.model.num_hidden_layers {layers} --{arm}.optim.warmup_steps 2 "
FEW = "--variant.model.n_routed_experts 8 --variant.model.moe_intermediate_size 16 "
HEADS = "--variant.model.num_attention_heads 2 --nanogpt.model.num_attention_heads 2 "
RANKS = "--variant.model.q_lora_rank 16 --variant.model.kv_lora_rank 8 --variant.model.qk_nope_head_dim 16 "
RANKS += "--variant.model.qk_rope_head_dim 8 --variant.model.v_head_dim 24 "
REDUCED = {
    "seed-000": PIECES
    + HEADS
    + FEW
    + RANKS
    + "--variant.optim.precondition_every 2 --variant.optim.handover_steps 3",
    "seed-000-small": PIECES + HEADS + RANKS + "--variant.optim.handover_steps 3",
    "seed-002": "",
    "seed-002-k2": "",
    "seed-003": PIECES + "--dataset.fraction 1",
    "seed-004": PIECES + HEADS + FEW,
}
"""What makes each preset small enough for CI, besides QUICK and NARROW."""


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stories: Path) -> Shell:
    """The command line. What is prepared of the stories is kept for the tests after it."""
    monkeypatch.setenv("NANOKIMI_CACHE", str(stories.parent / "cache"))

    def run(line: str) -> Answer:
        return main(shlex.split(line)), *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of the user's in the place of TinyStories, which no test downloads."""
    path = tmp_path_factory.mktemp("stories") / "stories.txt"
    path.write_text(generate_text(0, characters=20_000), encoding="utf-8")
    return path


def small(name: str, text: Path) -> str:
    arms = arm_configs(load_config(name)).values()
    layers = {arm.model: 1 + getattr(arm.family.model, "first_k_dense_replace", 0) for arm in arms}
    families = "".join(NARROW.format(arm=family, layers=layers[family]) for family in sorted(layers))
    words = shlex.split(f"{QUICK}{families}{REDUCED[name]}")
    # In a file, settings of arms that are not trained are allowed.
    overlay = text.parent / f"{name}-small.yaml"
    lines = [f"{key.removeprefix('--')}: {value}" for key, value in zip(words[::2], words[1::2], strict=True)]
    overlay.write_text(yaml.safe_dump(nested(yaml.safe_load("\n".join(lines)))))
    return f"--config {name} --data {text} --config {overlay}"


def nested(flat: dict[str, object]) -> dict[str, object]:
    """Settings by dotted key as a settings file has them."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, last = key.split(".")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return tree


SAME = ("NanoKimi of seed 2", "NanoGPT of seed 2")
"""Arms that seed-002-k2 takes from seed-002; test_nanokimi_enters_seed_2s_contest_within_its_limits compares them."""
ARMS = [
    (name, arm)
    for name in REDUCED
    for arm in load_config(name).arms
    if name != "seed-002-k2" or arm not in SAME
]


def test_every_seed_preset_is_tried() -> None:
    assert sorted(REDUCED) == [name for name in preset_names() if name.startswith("seed-")]


@pytest.mark.parametrize(("name", "arm"), ARMS, ids=lambda value: value.replace(" ", "-"))
def test_every_arm_of_a_seed_preset_trains_writes_and_is_causal(
    name: str, arm: str, stories: Path, tmp_path: Path, shell: Shell
) -> None:
    status, _, err = shell(f"train {small(name, stories)} --arm \"Mine: from='{arm}'\" --out {tmp_path}/run")
    assert status == 0, err
    result = read_json(tmp_path / "run" / "result.json")
    assert result["audit"]["causal"] and result["steps"] == 6
    asked = arm_configs(load_config(name))[arm]
    assert result["optimizer"] == asked.family.optim.name
    lines = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    prompts = {line["prompt"] for line in lines if line["kind"] == "sample"}
    assert prompts == set(asked.sample.prompts) if asked.sample.prompts else len(prompts) == 1


def test_expert_choice_in_the_place_of_seed_0s_repair_is_caught(
    stories: Path, tmp_path: Path, shell: Shell
) -> None:
    """As the seed had it. The arm leaves top-k's own settings behind."""
    chosen = "model.experts=expert_choice model.capacity_factor=2.5"
    line = f'{small("seed-000-small", stories)} --arm "NanoKimiK2: from=variant {chosen}"'
    status, _, err = shell(f"train {line} --out {tmp_path}/run")
    assert status == 1 and "LEAKING" in err and "the loss is void" in err


def header(name: str) -> str:
    """The comment at the top of a preset, as one line."""
    lines = (PRESETS / f"{name}.yaml").read_text().splitlines()
    return " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))


FILES = [f"seed-{rest}" for rest in ("000", "000-small", "002", "002-k2", "003")]


@pytest.mark.parametrize("name", [*FILES, *(f"seed-004/{part}" for part in ("model", "train", "dataset"))])
def test_a_header_separates_what_is_written_what_is_repaired_and_what_is_not_reproduced(name: str) -> None:
    order = [header(name).find(title) for title in ("As written", "Repaired, because:", "Not reproduced:")]
    assert -1 < order[0] < order[1] < order[2]


# ---- sizes, which no test here can afford to train


def arms_of(name: str, vocab_size: int | None = None) -> dict[str, RunConfig]:
    """Each arm's configuration for a text of so many tokens, by the arm's name without " of seed N"."""
    found = {}
    for arm, config in arm_configs(load_config(name)).items():
        size = vocab_size or config.dataset.vocab_size
        ready = resolve(config, vocab_size=size, device="cpu", dtype="fp32", threads=1)
        found[arm.partition(" of ")[0]] = ready
    return found


def cost(config: RunConfig) -> Cost:
    return model_cost(config.family.model, config.train.context_length)


def same_but(first: object, second: object, *names: str) -> bool:
    """Whether two settings groups differ in these settings at most."""
    return replace(first, **{name: getattr(second, name) for name in names}) == second  # type: ignore[type-var]


def test_seed_0_has_its_sizes_and_no_more_active_parameters_than_its_baseline() -> None:
    """By formula: 223M parameters are not built. The seed itself had 6.26 B beside 69.4 M, and did not say so."""
    arms = arms_of("seed-000")
    model, train, data = arms["NanoKimiK2"].variant.model, arms["NanoGPT"].train, arms["NanoGPT"].dataset
    assert (model.hidden_size, model.num_hidden_layers, model.num_attention_heads) == (768, 8, 8)
    assert (model.n_routed_experts, model.num_experts_per_tok, model.n_shared_experts) == (32, 6, 1)
    assert (model.q_lora_rank, model.kv_lora_rank, model.qk_rope_head_dim) == (192, 32, 32)
    assert (data.tokenizer, data.vocab_size, train.context_length) == ("unigram", 8000, 512)
    d, width, ranks = 768, 8 * 224, 192 + 32 + 32
    attention = d * ranks + 192 * width + 32 * 8 * (192 + 224) + width * d
    expert = 3 * d * 320
    outside = 2 * 8000 * d + 2 * (2 * 8 + 1) * d
    by_hand = outside + 8 * (attention + 192 + 32 + 33 * expert + 32 * d)
    kimi, gpt = cost(arms["NanoKimiK2"]), cost(arms["NanoGPT"])
    assert kimi.params_total == by_hand and 200e6 < by_hand < 250e6
    assert kimi.params_active == 8000 * d + 8 * (attention + 7 * expert + 32 * d)
    assert abs(kimi.params_active / gpt.params_active - 1) < 0.02
    assert round(gpt.params_total / 1e6, 1) == 69.4


def test_seed_0_clips_and_balances_as_it_says() -> None:
    """QK-Clip was its headline: tau 20, logits from the weights, after each step."""
    for name in ("seed-000", "seed-000-small"):
        arms = arms_of(name)
        optim, model = arms["NanoKimiK2"].family.optim, arms["NanoKimiK2"].variant.model
        assert (optim.name, optim.qk_clip_tau, optim.qk_clip_logits) == ("shampooclip", 20.0, "rms")
        assert (model.aux_loss_alpha, model.initialization) == (0.0025, "torch")
        gpt = arms["NanoGPT"].variant.model
        assert (gpt.feed_forward, gpt.initialization, gpt.initializer_range) == ("relu", "flat", 0.02)
        assert gpt.bias and not gpt.qkv_bias and not gpt.lm_head_bias and not gpt.tie_word_embeddings
        assert same_but(
            arms["NanoGPT"].family.optim, OptimConfig(), "lr", "betas", "warmup_steps", "min_lr_ratio"
        )


def test_the_small_sibling_of_seed_0_differs_in_size_and_budget_only() -> None:
    large, little = load_config("seed-000").variant, load_config("seed-000-small").variant
    for name in ("norm", "positions", "rope_theta", "attention", "feed_forward", "experts", "aux_loss_alpha"):
        assert getattr(large.model, name) == getattr(little.model, name)
    for name in ("name", "qk_clip_tau", "qk_clip_logits", "weight_decay", "grad_clip", "min_lr_ratio"):
        assert getattr(large.optim, name) == getattr(little.optim, name)
    active = [cost(config).params_active for config in arms_of("seed-000-small").values()]
    assert abs(active[0] / active[1] - 1) < 0.02


def test_seed_2_has_its_sizes_and_one_schedule() -> None:
    arms = arms_of("seed-002", 65)
    kimi, gpt = arms["NanoKimi"], arms["NanoGPT"]
    train, optim = kimi.train, kimi.family.optim
    assert (kimi.variant.model.experts, kimi.variant.model.n_routed_experts, optim.name) == (
        "soft",
        4,
        "truemuon",
    )
    assert (train.batch_size, train.context_length, train.max_steps, train.eval_every) == (
        16,
        32,
        10_000,
        100,
    )
    assert (gpt.family.optim.name, gpt.family.optim.lr, gpt.family.optim.weight_decay) == (
        "adamw",
        1e-3,
        0.01,
    )
    for name in ("schedule", "warmup_steps", "decay_fraction", "min_lr_ratio", "grad_clip", "betas"):
        assert getattr(optim, name) == getattr(gpt.family.optim, name), "alike"
    assert optim.grad_clip is None and optim.warmup_steps == 0 and optim.split_heads
    assert cost(gpt).params_total == 209_729, "as the notebook counts them"
    assert cost(kimi).params_total == 278_097 - 3_088, "but for biases of experts and routers"


def test_seed_2s_nanogpt_is_the_notebooks() -> None:
    """Logits of the module below, written as the notebook's classes are, from the same weights."""
    config = arms_of("seed-002", 65)["NanoGPT"]
    ours, theirs = build_model(config.family.model, 0).double(), NotebookGPT().double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    theirs.load_state_dict(ours.state_dict())
    ids = torch.randint(65, (3, 32), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(ids).logits_BTW, theirs(ids), rtol=1e-9, atol=1e-9)
    begun, fresh = build_model(config.family.model, 0), NotebookGPT()
    for name, value in fresh.state_dict().items():
        found = begun.state_dict()[name]
        assert float(found.std()) == pytest.approx(float(value.std()), rel=0.3), name
        if name.endswith(("proj.weight", "lm_head.weight")):
            assert float(found.abs().max()) <= value.shape[1] ** -0.5, name


class NotebookGPT(nn.Module):
    """Seed 2's NanoGPT with our names, by torch's layers and their own initial weights; logits scaled by the head."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.lm_head = nn.Module(), nn.Linear(64, 65)
        self.model.embed_tokens, self.model.embed_positions = nn.Embedding(65, 64), nn.Embedding(32, 64)
        self.model.layers, self.model.norm = nn.ModuleList(nn.Module() for _ in range(4)), nn.LayerNorm(64)
        for layer in self.model.layers:
            layer.input_layernorm, layer.post_attention_layernorm = nn.LayerNorm(64), nn.LayerNorm(64)
            layer.self_attn, layer.mlp = nn.Module(), nn.Module()
            for name in ("q_proj", "k_proj", "v_proj"):
                setattr(layer.self_attn, name, nn.Linear(64, 64, bias=False))
            layer.self_attn.o_proj = nn.Linear(64, 64)
            layer.mlp.up_proj, layer.mlp.down_proj = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        T = ids_BT.shape[1]
        x = self.model.embed_tokens(ids_BT) + self.model.embed_positions(torch.arange(T))
        for layer in self.model.layers:
            h, attention, heads = layer.input_layernorm(x), layer.self_attn, []
            for rows in torch.arange(64).split(16):
                q, k, v = (
                    h @ p.weight[rows].T for p in (attention.q_proj, attention.k_proj, attention.v_proj)
                )
                weights = (q @ k.mT * 16**-0.5).masked_fill(torch.ones(T, T).tril() == 0, float("-inf"))
                heads.append(weights.softmax(dim=-1) @ v)
            x = x + attention.o_proj(torch.cat(heads, dim=-1))
            h = layer.mlp.up_proj(layer.post_attention_layernorm(x))
            x = x + layer.mlp.down_proj(torch.relu(h))
        logits: torch.Tensor = self.lm_head(self.model.norm(x))
        return logits


def test_nanokimi_enters_seed_2s_contest_within_its_limits() -> None:
    contest, seed = arms_of("seed-002-k2", 65), arms_of("seed-002", 65)
    kimi, train = contest["NanoKimi"], contest["NanoKimi"].train
    by_name = arm_configs(load_config("seed-002-k2"))
    assert list(by_name) == ["NanoKimi", "NanoKimi of seed 2", "NanoGPT of seed 2"]
    model = by_name["NanoKimi"].nanokimi.model
    ready = replace(model, vocab_size=65, max_position_embeddings=32)
    total = model_cost(ready, 32).params_total
    assert total == sum(p.numel() for p in build_model(ready, seed=0).parameters()) <= 280_000
    assert train.max_steps is not None and train.max_steps * train.batch_size * train.context_length == 5.12e6
    assert kimi.dataset == seed["NanoKimi"].dataset and train == seed["NanoKimi"].train
    for name in SAME:
        ours, theirs = by_name[name], arm_configs(load_config("seed-002"))[name]
        assert replace(ours, nanokimi=theirs.nanokimi) == theirs, "the same opponents"


def test_seed_3_has_its_sizes() -> None:
    arms = arms_of("seed-003")
    config = arms["NanoKimi"]
    model, sample, optim = config.variant.model, config.sample, config.variant.optim
    assert (model.attention, model.num_latents, model.num_attention_heads, model.head_dim) == (
        "latent",
        16,
        1,
        64,
    )
    assert (model.hidden_size, model.num_hidden_layers, model.n_routed_experts) == (256, 6, 4)
    assert (config.dataset.path, config.dataset.fraction) == ("tinystories", 0.1)
    assert (config.dataset.tokenizer, config.dataset.vocab_size) == ("bpe", 4096)
    train = config.train
    assert (train.context_length, train.batch_size, train.max_steps, train.eval_every) == (64, 32, 5000, 100)
    assert (sample.top_k, sample.temperature, sample.max_new_tokens) == (50, 0.8, 50)
    assert (optim.name, optim.lr, optim.betas, optim.weight_decay) == ("lion", 1e-3, (0.9, 0.99), 0.01)
    for arm in arms.values():
        assert (arm.family.optim.schedule, arm.family.optim.warmup_steps) == ("constant", 0)


def test_seed_4_is_three_files_that_make_one() -> None:
    config = load_config("seed-004")
    assert config == load_config("seed-004/model,seed-004/train,seed-004/dataset")
    model, optim = config.variant.model, config.variant.optim
    assert (model.experts, model.num_experts_per_tok) == ("topk", 2) and model.aux_loss_alpha > 0
    assert (model.moe_intermediate_size, model.initialization) == (3072, "xavier")
    assert (optim.name, optim.betas, optim.weight_decay) == ("adamw", (0.9, 0.95), 0.1)
    whole = arms_of("seed-004")["NanoKimi"]
    with torch.device("meta"):
        built = build_model(whole.variant.model, seed=0)
    assert sum(p.numel() for p in built.parameters()) == cost(whole).params_total


def test_seed_4_takes_a_file_of_the_users_for_one_of_its_own(
    stories: Path, tmp_path: Path, shell: Shell
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("train: {context_length: 24, batch_size: 4, max_steps: 2}\n")
    line = small("seed-004", stories).replace(
        "--config seed-004", "--config seed-004/model --config seed-004/dataset"
    )
    line = f"{line} --config {mine} --out {tmp_path}/run"
    status, _, err = shell("train " + line)
    assert status == 0, err
    assert load_config(str(tmp_path / "run" / "config.yaml")).variant.model.experts == "topk"
