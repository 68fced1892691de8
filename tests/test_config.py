"""Settings: what files and command lines may say, how mistakes are named in one line, what is chosen for the user."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import nanokimi
from nanokimi import cli
from nanokimi.cli.options import DEFAULT_CONFIG
from nanokimi.cli.verbs import run_compare
from nanokimi.config import RunConfig, YarnConfig
from nanokimi.config.files import load_config, preset_names, save_config
from nanokimi.config.parsing import all_keys, number_of, setting_parser
from nanokimi.config.rules import resolve, validate
from nanokimi.errors import UserError


def complaint(*overrides: str, config: str | Path = "smoke") -> str:
    """The one line that refuses a configuration."""
    with pytest.raises(UserError) as caught:
        load_config(str(config), overrides)
    message = str(caught.value)
    assert message and "\n" not in message, f"not one line: {message!r}"
    return message


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Every value of a configuration under its dotted key."""
    found = {}
    for field in fields(value):
        part = getattr(value, field.name)
        key = prefix + field.name
        found |= leaves(part, f"{key}.") if is_dataclass(part) else {key: part}
    return found


def as_yaml(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# ---- reading and writing


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    assert validate(config) is config
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(str(tmp_path / "saved.yaml")) == config


def test_the_presets_are_the_yaml_files_of_the_package() -> None:
    folder = Path(nanokimi.__file__).parent / "presets"
    single = {path.stem for path in folder.glob("*.yaml")}
    assert preset_names() == sorted(single | {path.parent.name for path in folder.glob("*/*.yaml")})
    assert {"smoke", DEFAULT_CONFIG} <= set(preset_names())


def test_numbers_of_a_file_are_what_jsonargparse_makes_of_them() -> None:
    """They are taken as they are, which is faster, if they have the type of their setting."""
    settings = [key for key in all_keys() if number_of(key)]
    assert {"seed", "train.max_steps", "train.compile", "nanokimi.optim.lr"} <= set(settings)
    assert not {"dataset.path", "nanokimi.optim.betas", "train.dtype"} & set(settings)
    for key in settings:
        for value in (0, -3, 2**40, 0.5, float("inf"), True, False):
            if type(value) is not number_of(key):
                continue
            nested: Any = value
            for name in reversed(key.split(".")):
                nested = {name: nested}
            parser = setting_parser(key)
            found = parser.instantiate(parser.parse_object(nested))[key]
            assert type(found) is type(value) and found == value, key


def test_overrides_survive_a_round_trip_with_their_types(tmp_path: Path) -> None:
    overrides = [
        "--data=texts/a b.txt",
        "--seed=9223372036854775807",
        "--nanokimi.optim.lr=1e-3",
        "--nanokimi.optim.betas=[0.8, 0.999]",
        "--nanokimi.optim.grad_clip=null",
        "--nanokimi.model.q_lora_rank=24",
        "--nanokimi.model.rope_scaling.factor=4",
        "--nanogpt.model.bias=true",
        "--train.max_tokens=1e6",
        '--sample.prompts=["caf\u00e9: yes", "two\\nlines"]',
        "--sample.top_p=null",
    ]
    config = load_config("smoke", overrides)
    assert config.dataset.path == "texts/a b.txt"
    assert config.seed == 2**63 - 1
    assert config.nanokimi.optim.lr == 1e-3
    assert config.nanokimi.optim.betas == (0.8, 0.999)
    assert config.nanokimi.optim.grad_clip is None
    assert config.nanokimi.model.q_lora_rank == 24
    assert config.nanokimi.model.rope_scaling == YarnConfig(factor=4.0)
    assert config.nanogpt.model.bias is True
    assert config.train.max_tokens == 1e6
    assert config.sample.prompts == ("caf\u00e9: yes", "two\nlines")
    assert config.sample.top_p is None
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(str(tmp_path / "saved.yaml")) == config


@pytest.mark.parametrize("text", ["123", "1e3", "true", "null.txt", "[a].txt", "a=b.txt", "~x", "#1", "a: b"])
def test_a_path_or_prompt_that_looks_like_something_else_stays_text(text: str, tmp_path: Path) -> None:
    config = replace(load_config("smoke"), sample=replace(load_config("smoke").sample, prompts=(text,)))
    config = replace(config, dataset=replace(config.dataset, path=text))
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(str(tmp_path / "saved.yaml")) == config
    assert load_config("smoke", ["--data", text]).dataset.path == text


def test_a_value_follows_its_option_after_a_space_or_an_equals_sign() -> None:
    spaced = load_config("smoke", ["--nanokimi.optim.lr", "2e-3", "--seed", "5"])
    assert spaced == load_config("smoke", ["--nanokimi.optim.lr=2e-3", "--seed=5"])
    assert (spaced.nanokimi.optim.lr, spaced.seed) == (2e-3, 5)


def test_an_override_changes_its_own_key_and_nothing_else() -> None:
    before, after = leaves(load_config("smoke")), leaves(load_config("smoke", ["--nanogpt.optim.lr", "0.5"]))
    assert {key for key in before if before[key] != after[key]} == {"nanogpt.optim.lr"}


def test_exponents_without_a_point_are_numbers_in_files_too(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-3 as text; a learning rate must not depend on that."""
    path = as_yaml(
        tmp_path,
        "train: {max_steps: 1, max_tokens: null}\nnanokimi:\n  optim:\n    lr: 1e-3\n    eps: 1E-9\n",
    )
    optim = load_config(str(path)).nanokimi.optim
    assert (optim.lr, optim.eps) == (1e-3, 1e-9)


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    config = load_config(str(as_yaml(tmp_path, "# nothing\n")), ["--train.max_steps", "3"])
    assert config == replace(RunConfig(), train=replace(RunConfig().train, max_steps=3))


@pytest.mark.parametrize("budget", ["max_epochs", "max_tokens", "max_flops", "max_seconds"])
def test_a_budget_on_the_command_line_replaces_the_files(budget: str) -> None:
    assert load_config("smoke").train.max_steps == 300
    train = load_config("smoke", [f"--train.{budget}", "2.5"]).train
    assert getattr(train, budget) == 2.5 and train.max_steps is None


def test_two_budgets_on_the_command_line_are_refused() -> None:
    message = complaint("--train.max_steps=3", "--train.max_tokens=9")
    assert "max_steps and max_tokens" in message


def test_a_file_may_set_only_a_part_of_an_arm(tmp_path: Path) -> None:
    """The arms' own defaults (muonclip and its rate for NanoKimi) stay where the file says nothing."""
    path = as_yaml(tmp_path, "train: {max_steps: 1}\nnanokimi: {optim: {weight_decay: 0.2}}\n")
    optim = load_config(str(path)).nanokimi.optim
    assert optim == replace(RunConfig().nanokimi.optim, weight_decay=0.2)


# ---- mistakes


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["--nanokimi.optim.learning_rate", "1"], ["nearest is --nanokimi.optim.lr"]),
        (["--nanokimi.optim.weight_decy", "1"], ["nearest is --nanokimi.optim.weight_decay"]),
        (["--train.batchsize", "4"], ["nearest is --train.batch_size"]),
        (["--lr", "1"], ["several are trained: name --nanokimi.optim.lr or --nanogpt.optim.lr"]),
        (["--learning_rte", "1"], ["nearest is --learning_rate"]),
        (["--reume"], ["nearest is --resume"]),
        (["--min_lr", "1"], ["--min_lr_ratio is the lowest rate"]),
        (["--vocab_size", "300"], ["name --dataset.vocab_size or --nanokimi.model.vocab_size"]),
        (["lr=1"], ["write --lr=1"]),
        (["--train", "1"], ["--train", "group", "--train.context_length"]),
        (["--train.batch_size"], ["--train.batch_size needs a value"]),
        (["train.batch_size", "4"], ["'train.batch_size' is not an option"]),
        (["--train.batch_size", "four"], ["train.batch_size", "four", "whole number"]),
        (["--train.batch_size", "4.5"], ["train.batch_size", "4.5", "whole number"]),
        (["--train.batch_size", "true"], ["train.batch_size", "whole number"]),
        (["--nanokimi.optim.lr", "fast"], ["nanokimi.optim.lr", "fast", "a number"]),
        (["--nanokimi.optim.lr", "null"], ["nanokimi.optim.lr", "a number"]),
        (["--nanogpt.model.bias", "maybe"], ["nanogpt.model.bias", "true or false"]),
        (["--nanokimi.optim.name", "sgd"], ["nanokimi.optim.name", "adamw, muon, muonclip"]),
        (["--model", "nanoqwen"], ["model", "nanoqwen", "nanokimi, nanogpt"]),
        (["--train.dtype", "fp64"], ["train.dtype", "auto, fp32, bf16, fp16"]),
        (["--nanokimi.optim.betas", "0.9"], ["nanokimi.optim.betas", "a list"]),
        (["--nanokimi.optim.betas", "[0.9]"], ["nanokimi.optim.betas", "a list"]),
        (["--nanokimi.optim.betas", "[0.9, 0.95, 0.99]"], ["nanokimi.optim.betas", "a list"]),
        (["--sample.prompts", "Hello"], ["sample.prompts", "a list"]),
        (["--train.max_steps", ""], ["train.max_steps"]),
    ],
)
def test_a_wrong_option_is_named_in_one_line(overrides: list[str], parts: list[str]) -> None:
    message = complaint(*overrides)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("trian: {max_steps: 1}", ["'trian'", "nearest is train"]),
        ("train: {max_step: 1}", ["'train.max_step'", "nearest is train.max_steps"]),
        ("nanokimi: {model: {n_experts: 4}}", ["'nanokimi.model.n_experts'", "nearest is"]),
        ("optim: {lr: 1}", ["'optim'", "nearest is"]),
        ("1: 2", ["'1'"]),
        ("train: {batch_size: many}", ["train.batch_size", "many", "whole number"]),
        ("train: 3", ["train"]),
        (
            "{train: {max_steps: 1}, nanokimi: {optim: {name: lionn}}}",
            ["nanokimi.optim.name is lionn", "muonclip", "nearest is lion"],
        ),
        ("sample: {prompts: {a: b}}", ["sample.prompts"]),
        ("- seed\n- train", ["list", "seed: 1"]),
        ("just words", ["str", "seed: 1"]),
        ("42", ["int", "seed: 1"]),
        ("train: {max_steps: 1", ["not valid YAML"]),
        ("train:\n\t max_steps: 1", ["not valid YAML"]),
        ("a: *b", ["not valid YAML"]),
        ("!!python/object/apply:os.system ['true']", ["not valid YAML"]),
        ("", ["budget", "max_steps"]),
    ],
)
def test_a_wrong_file_is_named_in_one_line(text: str, parts: list[str], tmp_path: Path) -> None:
    message = complaint(config=as_yaml(tmp_path, text))
    assert all(part in message for part in parts), message


def test_missing_configurations_are_named(tmp_path: Path) -> None:
    assert "nearest is smoke" in complaint(config="smok")
    assert "missing.yaml" in complaint(config=tmp_path / "missing.yaml")
    assert "folder" in complaint(config=tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"seed: 1 # caf\xe9\n")
    assert "latin.yaml" in complaint(config=tmp_path / "latin.yaml")


def test_a_name_too_long_for_a_file_is_no_crash() -> None:
    assert complaint(config="x" * 300)


# ---- limits

K, G, KO, GO = "nanokimi.model.", "nanogpt.model.", "nanokimi.optim.", "nanogpt.optim."
NAN, INF = float("nan"), float("inf")
POSITIVE = [
    *("train." + name for name in "context_length batch_size micro_batch_size threads eval_every".split()),
    "train.shard",
    "train.expert_parallel",
    *("train." + name for name in "eval_batch_size sample_every save_every keep_checkpoints".split()),
    *("train." + name for name in "max_steps max_epochs max_tokens max_flops max_seconds".split()),
    *("compare.turn_steps", "sample.max_new_tokens", "sample.top_k"),
    *(
        K + name
        for name in "vocab_size hidden_size num_hidden_layers num_attention_heads q_lora_rank".split()
    ),
    *(K + name for name in "kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim rope_theta".split()),
    *(K + name for name in "intermediate_size moe_intermediate_size n_routed_experts rms_norm_eps".split()),
    *(K + name for name in "num_experts_per_tok routed_scaling_factor initializer_range".split()),
    *(G + name for name in "vocab_size hidden_size num_hidden_layers num_attention_heads".split()),
    *(G + name for name in "intermediate_size layer_norm_epsilon initializer_range".split()),
    *(o + name for o in (KO, GO) for name in "lr adamw_lr eps ns_steps qk_clip_tau grad_clip".split()),
]
RANGES: list[tuple[str, list[Any], str]] = [
    ("seed", [-1, 2**63], "2^63"),
    ("dataset.val_fraction", [0.0, 1.0, -0.1, NAN], "between 0 and 1"),
    ("sample.temperature", [-0.1, NAN, INF], "0 or more"),
    ("sample.top_p", [0.0, 1.01, -1.0, NAN], "above 0, at most 1"),
    ("sample.prompts", [(), ("",), ("a", "")], "prompt"),
    (K + "qk_rope_head_dim", [15], "even"),
    (K + "num_experts_per_tok", [9], "n_routed_experts 8"),
    (K + "n_shared_experts", [-1], "0 or more"),
    (K + "first_k_dense_replace", [-1], "0 or more"),
    (K + "aux_loss_alpha", [-1.0, NAN, INF], "0 or more"),
    (K + "max_position_embeddings", [31, 0, -1], "below train.context_length 32"),
    (G + "max_position_embeddings", [31], "below train.context_length 32"),
    (G + "num_attention_heads", [3], "does not divide"),
    (G + "dropout", [-0.1, 1.0, NAN], "below 1"),
    (K + "rope_scaling.factor", [0.5, NAN, INF], "at least 1"),
    (K + "rope_scaling.original_max_position_embeddings", [0, -1], "above 0"),
    (K + "rope_scaling.beta_fast", [0.0, NAN], "above 0"),
    (K + "rope_scaling.beta_slow", [-1.0], "above 0"),
    ("train.micro_batch_size", [3, 32], "not a multiple of train.micro_batch_size"),
    *((o + "weight_decay", [-0.1, NAN, INF], "0 or more") for o in (KO, GO)),
    *((o + "warmup_steps", [-1], "0 or more") for o in (KO, GO)),
    *((o + "router_bias_update_speed", [-1.0, NAN], "0 or more") for o in (KO, GO)),
    *((o + "decay_fraction", [-0.1, 1.1, NAN], "0 to 1") for o in (KO, GO)),
    *((o + "min_lr_ratio", [-0.1, 1.1, NAN], "0 to 1") for o in (KO, GO)),
    *((o + "betas", [(1.0, 0.9), (0.9, -0.1), (0.9, NAN)], "betas") for o in (KO, GO)),
    *((o + "momentum", [1.0, -0.1, NAN], "momentum") for o in (KO, GO)),
]


@pytest.fixture(scope="module")
def smoke() -> RunConfig:
    """A valid configuration; YaRN on, so that its settings can be changed."""
    return load_config("smoke", ["--nanokimi.model.rope_scaling.factor=2"])


def with_value(group: Any, key: str, value: object) -> Any:
    """A copy of a configuration in which the dotted key has another value."""
    name, _, rest = key.partition(".")
    return replace(group, **{name: with_value(getattr(group, name), rest, value) if rest else value})


def refusal(config: RunConfig, key: str, value: object) -> str:
    if key.startswith("train.max_"):
        config = with_value(config, "train.max_steps", None)
    with pytest.raises(UserError) as caught:
        validate(with_value(config, key, value))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("key", POSITIVE)
def test_sizes_rates_and_counts_must_be_above_zero(key: str, smoke: RunConfig) -> None:
    for value in (0, -1):
        assert f"{key} is {value}: it must be above 0" in refusal(smoke, key, value)


@pytest.mark.parametrize(("key", "values", "part"), RANGES, ids=[key for key, _, _ in RANGES])
def test_values_outside_their_range_are_refused(
    key: str, values: list[object], part: str, smoke: RunConfig
) -> None:
    for value in values:
        message = refusal(smoke, key, value)
        assert part in message and key.split(".")[0] in message, message


@pytest.mark.parametrize("value", [INF, NAN])
def test_a_number_that_is_not_finite_is_refused(value: float, smoke: RunConfig) -> None:
    for key in (KO + "lr", "train.max_tokens", "train.max_seconds", K + "rope_theta", GO + "grad_clip"):
        assert f"{key} is {value}" in refusal(smoke, key, value)


def test_limits_hold_on_the_command_line() -> None:
    assert "nanogpt.optim.lr is -1" in complaint("--nanogpt.optim.lr", "-1")
    assert "seed is -1" in complaint("--seed=-1")
    assert "sample.top_p is nan" in complaint("--sample.top_p", "nan")


def test_pieces_of_a_learnt_tokenizer_have_limits(smoke: RunConfig) -> None:
    for name in ("bpe", "unigram"):
        learnt = with_value(smoke, "dataset.tokenizer", name)
        for size in (299, 100_001):
            assert "dataset.vocab_size" in refusal(learnt, "dataset.vocab_size", size)
        validate(with_value(learnt, "dataset.vocab_size", 300))


def test_a_setting_that_would_be_ignored_is_refused(smoke: RunConfig) -> None:
    smoke = with_value(
        with_value(smoke, "nanogpt.optim.schedule", "cosine"), "nanogpt.optim.decay_fraction", 0.4
    )
    for key, value in {
        "dataset.vocab_size": 7,
        "nanogpt.optim.momentum": 0.9,
        "nanogpt.optim.qk_clip_tau": 50.0,
        "nanogpt.optim.decay_fraction": 0.5,
        "nanogpt.optim.router_bias_update_speed": 0.0,
    }.items():
        assert f"{key} has no effect" in refusal(smoke, key, value)
    assert "leave out --model" in complaint_of_compare("--model", "nanogpt")


def complaint_of_compare(*arguments: str) -> str:
    """What `nanokimi compare` refuses."""
    with pytest.raises(UserError) as caught:
        run_compare(["--config", "smoke", "--data", "text.txt", *arguments])
    return str(caught.value)


def test_values_at_their_limits_are_allowed(smoke: RunConfig) -> None:
    for key, value in {
        **{"sample.top_p": 1.0, "sample.temperature": 0.0, "train.micro_batch_size": 16, "seed": 0},
        **{
            G + "dropout": 0.0,
            KO + "weight_decay": 0.0,
            KO + "min_lr_ratio": 1.0,
            KO + "decay_fraction": 0.0,
        },
        **{K + "n_shared_experts": 0, K + "first_k_dense_replace": 99, K + "num_experts_per_tok": 8},
        **{K + "max_position_embeddings": 32, K + "aux_loss_alpha": 0.0, KO + "grad_clip": None},
    }.items():
        assert validate(with_value(smoke, key, value))


# ---- chosen for the user


def resolved(config: RunConfig) -> RunConfig:
    return resolve(config, vocab_size=61, device="cpu", dtype="fp32", threads=3)


def test_resolve_fills_in_whatever_is_chosen_for_the_user() -> None:
    config = resolved(load_config("smoke"))
    off_by_choice = {  # None means "off" here, not "choose for me"
        *(f"train.max_{unit}" for unit in ("epochs", "tokens", "flops", "seconds")),
        "nanokimi.model.q_lora_rank",
        *("nanokimi.model.rope_scaling", "train.init_from", "train.shard"),
        *("sample.prompts", "sample.top_k", "sample.min_p", "train.memory_limit_gb", "train.save_every"),
        *("dataset.characters", "dataset.workers", "dataset.cache"),  # chosen when the data is prepared
        *(f"{arm}.optim.handover_steps" for arm in ("nanokimi", "nanogpt", "variant", "module")),
        *("module.optim.adamw_lr", "dataset.test_fraction"),
        # these follow from other settings wherever they are used
        *("train.micro_batch_size", "train.sample_every", "train.telemetry_every", "train.eval_batch_size"),
        "nanokimi.model.latent_norm_eps",
        *("nanokimi.model.routed_scaling_factor", "nanogpt.model.intermediate_size"),
        *("variant.model.routed_scaling_factor", "variant.model.intermediate_size"),
        *(
            "variant.model.num_key_value_heads",
            "variant.model.q_lora_rank",
            "variant.optim.adamw_lr",
        ),
        *("variant.model.head_dim", "variant.model.qkv_bias"),
    }
    assert {key for key, value in leaves(config).items() if value is None} == off_by_choice
    assert "auto" not in (config.train.device, config.train.dtype)
    assert (config.train.device, config.train.dtype, config.train.threads) == ("cpu", "fp32", 3)
    assert config.nanokimi.model.vocab_size == config.nanogpt.model.vocab_size == 61
    assert config.nanokimi.model.max_position_embeddings == config.nanogpt.model.max_position_embeddings == 32


def test_resolve_is_idempotent_and_keeps_what_the_user_chose(tmp_path: Path) -> None:
    config = load_config("smoke", ["--nanokimi.model.vocab_size=64", "--train.micro_batch_size=4"])
    config = replace(config, train=replace(config.train, sample_every=7))
    once = resolved(config)
    assert resolved(once) == once
    assert (once.nanokimi.model.vocab_size, once.train.micro_batch_size, once.train.sample_every) == (
        64,
        4,
        7,
    )
    save_config(once, tmp_path / "saved.yaml")
    assert resolved(load_config(str(tmp_path / "saved.yaml"))) == once


def test_a_vocabulary_below_the_tokenizers_is_refused() -> None:
    for arm in ("nanokimi", "nanogpt"):
        with pytest.raises(UserError, match=rf"{arm}\.model\.vocab_size 60 is below the tokenizer's 61"):
            resolved(load_config("smoke", [f"--{arm}.model.vocab_size=60"]))


def test_routed_scaling_agrees_with_k2s_own_number() -> None:
    """Kimi K2 ships 2.827 for 8 of 384 experts."""
    from nanokimi.config.rules import routed_scaling

    assert routed_scaling(384, 8) == pytest.approx(2.827, abs=0.005)


# ---- help


def groups(cls: type = RunConfig) -> set[type]:
    """Every dataclass of the configuration."""
    found = {cls}
    for hint in get_type_hints(cls).values():
        for part in (hint, *get_args(hint)):
            if is_dataclass(part):
                found |= groups(part)  # type: ignore[arg-type]
    return found


def test_help_shows_every_setting_with_its_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    import ast
    import inspect

    from nanokimi.config import schema, schema_compare, schema_optim, schema_sample, schema_variant

    for verb in ("train", "compare"):
        assert cli.main([verb, "--help-all", "--config", "smoke"]) == 0
    shown = " ".join(capsys.readouterr().out.split()).replace("- ", "-")  # argparse breaks lines at hyphens
    for key in all_keys():
        if key.startswith(("arms", "compare.spread.")):
            continue  # given with --arm, and null here
        assert f"--{key}" in shown, f"--help does not show {key}"
    modules = (schema, schema_compare, schema_optim, schema_sample, schema_variant)
    nodes = [node for module in modules for node in ast.parse(inspect.getsource(module)).body]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    for group in groups():
        body = classes[group.__name__].body
        for number, node in enumerate(body):
            if not isinstance(node, ast.AnnAssign):
                continue
            after = body[number + 1] if number + 1 < len(body) else None
            text = (
                after.value.value
                if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                else ""
            )
            where = f"{group.__name__}.{ast.unparse(node.target)}"
            assert text, f"{where} has no docstring"
            if (
                is_dataclass(get_type_hints(group)[ast.unparse(node.target)])
                or "Spread" in where
                or "arms" in where
            ):
                continue  # a group of settings: each of them is shown, not the group
            text = re.sub(r"\s+", " ", text).replace("- ", "-")
            assert text in shown, f"--help does not show the docstring of {where}"


@pytest.mark.parametrize(
    ("option", "part"),
    [
        ("--model=!!timestamp x", "model is !!timestamp x: expected one of nanokimi"),
        ("--model=" + "9:" * 300 + "9", ""),
        ("--seed=null", "seed is null: expected a whole number"),
        ("--nanokimi.model.hidden_size=null", "nanokimi.model.hidden_size is null"),
        ("--nanogpt.optim.min_lr_ratio=null", "nanogpt.optim.min_lr_ratio is null: expected a number"),
    ],
)
def test_what_the_fuzzer_found_is_refused_in_one_line(option: str, part: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config("smoke", [option])
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_thousands_of_brackets_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "brackets.yaml"
    path.write_text("{" * 3000)
    with pytest.raises(UserError, match="nested too deeply"):
        load_config(str(path))


# ---- several files


def two_files(folder: Path, first: str, second: str) -> str:
    (folder / "first.yaml").write_text(first)
    (folder / "second.yaml").write_text(second)
    return f"{folder / 'first.yaml'},{folder / 'second.yaml'}"


def test_a_later_file_says_over_an_earlier_one(tmp_path: Path) -> None:
    first = "seed: 1\ntrain: {max_steps: 5, batch_size: 3}\nnanokimi: {optim: {lr: 0.5}}\n"
    names = two_files(
        tmp_path, first, "seed: 2\ntrain: {batch_size: 4}\nnanokimi: {optim: {weight_decay: 0}}\n"
    )
    config = load_config(names, ["--train.context_length", "9"])
    assert (config.seed, config.train.max_steps, config.train.batch_size) == (2, 5, 4)
    assert (config.nanokimi.optim.lr, config.nanokimi.optim.weight_decay) == (0.5, 0)
    assert config.train.context_length == 9
    backwards = load_config(",".join(reversed(names.split(","))))
    assert (backwards.seed, backwards.train.batch_size) == (1, 3)


def test_a_later_files_budget_takes_the_place_of_an_earlier_ones(tmp_path: Path) -> None:
    names = two_files(tmp_path, "train: {max_steps: 5}\n", "train: {max_tokens: 1000}\n")
    train = load_config(names).train
    assert (train.max_steps, train.max_tokens) == (None, 1000)


def test_presets_and_files_mix_and_a_file_may_have_a_comma_in_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a,b.yaml"
    path.write_text("train: {max_steps: 5}\n")
    assert load_config(str(path)).train.max_steps == 5
    (tmp_path / "mine.yaml").write_text("train: {max_steps: 6}\n")
    mixed = load_config(f"smoke,{tmp_path / 'mine.yaml'}")
    assert mixed.train.max_steps == 6 and mixed.dataset.tokenizer == "byte"


@pytest.mark.parametrize(
    ("first", "second", "part"),
    [
        ("seed: 1\n", "sead: 1\n", "second.yaml: there is no setting 'sead'; the nearest is seed"),
        ("sead: 1\n", "seed: 1\n", "first.yaml: there is no setting"),
        ("train: {max_steps: 5}\n", "- 1\n", "second.yaml holds list"),
        ("train: {max_steps: 5}\n", "train: 3\n", "second.yaml: train is 3: expected settings"),
        ("train: {max_steps: 5}\n", "train: {batch_size: x}\n", "train.batch_size is x: expected"),
        ("train: {max_steps: 5}\n", "train: {batch_size: 0}\n", "must be above 0"),
        ("train: {max_steps: 5}\n", "{\n", "second.yaml"),
    ],
)
def test_whatever_is_wrong_with_one_of_several_files_is_said(
    first: str, second: str, part: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(two_files(tmp_path, first, second))
    assert part in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("names", ["smoke,smoek", "smoke,", ",", "seed-004/modle", "smoke,seed-004/"])
def test_a_missing_one_of_several_files_is_named(names: str) -> None:
    with pytest.raises(UserError, match="is neither a file nor a preset"):
        load_config(names)
