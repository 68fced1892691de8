"""Models out and in: what transformers loads from an export computes ours, and what others saved is read exactly."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_GPT, TINY_KIMI, make_text
from hf_parity import fused
from safetensors.torch import load_file, save_file
from test_api import python_in
from test_kimi import random_config, randomised
from transformers import AutoModelForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM

from nanokimi import cli
from nanokimi.config import GPTConfig, KimiConfig, RunConfig, YarnConfig
from nanokimi.config.files import load_config
from nanokimi.data.tokenizers.own import CharTokenizer
from nanokimi.errors import UserError
from nanokimi.interop.card import began_elsewhere, model_card
from nanokimi.interop.deepseek import kimi_config
from nanokimi.interop.export import finished_folder
from nanokimi.interop.gpt2 import gpt_config
from nanokimi.interop.hf_write import stock_config, write_hf_folder
from nanokimi.interop.hostile_text import hostile_lines
from nanokimi.interop.import_run import import_model, read_source
from nanokimi.interop.verify import Receipt
from nanokimi.kernels.decode import decode_step
from nanokimi.measure.cost import model_cost
from nanokimi.model.build import LanguageModel, build_model
from nanokimi.model.cache import Cache
from nanokimi.model.gpt import NanoGPT
from nanokimi.train.checkpoint import set_to_beginning
from nanokimi.train.run import train_alone
from nanokimi.train.run_folder import open_run, set_up
from nanokimi.train.state import TrainState, build_state

ALPHABET = CharTokenizer("".join(map(chr, range(33, 33 + 60))))


def written(model: LanguageModel, folder: Path) -> Path:
    """The folder of an export, with the tokenizer left out of the time that the test takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nanokimi.interop.hf_write.fast_tokenizer", lambda _, **__: {})
        write_hf_folder(model, ALPHABET, 32, folder)
    return folder


def stock(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, experts_implementation="eager"
    ).eval()


def rebuilt(folder: Path) -> LanguageModel:
    """What `import` makes of a folder or a checkpoint."""
    source = read_source(folder)
    model = build_model(source.config, 0)
    model.load_state_dict(source.weights)
    return model.eval()


def random_gpt(seed: int) -> NanoGPT:
    sizes = dict(hidden_size=[16, 24, 40][seed % 3], num_attention_heads=[1, 2, 4][seed % 3])
    config = GPTConfig(
        vocab_size=30 + seed,
        num_hidden_layers=1 + seed % 3,
        intermediate_size=[None, 40][seed % 2],
        max_position_embeddings=32,
        bias=seed % 2 == 1,
        activation_function=["gelu", "gelu_new"][seed // 2 % 2],
        layer_norm_epsilon=[1e-5, 1e-6][seed % 2],
        initializer_range=0.2,
        **sizes,
    )
    model = build_model(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    assert isinstance(model, NanoGPT)
    return model


def same_greedy(model: LanguageModel, other: Any, ids: torch.Tensor, count: int) -> bool:
    """Whether two models write the same tokens, or part where they are as likely."""
    written = other.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    logits = model(written).logits_BTW[:, ids.shape[1] - 1 : -1]
    gap = logits.max(dim=-1).values - logits.gather(2, written[:, ids.shape[1] :, None])[..., 0]
    return bool((gap <= 2e-4).all()) and written.shape[1] == ids.shape[1] + count


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("seed", range(30))
def test_the_stock_class_loads_every_configuration_and_it_comes_back_bit_for_bit(
    seed: int, tmp_path: Path
) -> None:
    """24 random NanoKimis (with and without query latent and YaRN, 0, 1 and 2 shared experts), and 6 NanoGPTs."""
    if seed < 24:
        config, _, _ = random_config(seed)
        model: LanguageModel = randomised(config, seed)
    else:
        model = random_gpt(seed)
    model.eval()
    other, vocabulary = stock(written(model, tmp_path)), model.config.vocab_size
    assert type(other).__name__ == stock_config(model)["architectures"][0]
    ids = torch.randint(vocabulary, (2, 24), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        assert (model(ids).logits_BTW - other(ids).logits).abs().max() < 1e-4
        assert same_greedy(model, other, ids[:, :4], 24)
    back = rebuilt(tmp_path)
    again, before = back.state_dict(), model.state_dict()
    assert again.keys() == before.keys() and all(torch.equal(again[n], before[n]) for n in before)
    assert stock_config(back) == stock_config(model) | {"initializer_range": back.config.initializer_range}


def test_decoding_in_c_is_not_for_openais_activation() -> None:
    """It computes the exact one, which differs by 1e-3."""
    model = build_model(replace(TINY_GPT, activation_function="gelu_new", initializer_range=0.3), 0).eval()
    ids = torch.randint(61, (1, 8), generator=torch.Generator().manual_seed(0))
    step, cache = decode_step(model), Cache(2, 8)
    with torch.inference_mode():
        logits = torch.stack([step(token, cache) for token in ids[0].tolist()])
        assert (logits - model(ids).logits_BTW[0]).abs().max() < 1e-5
        assert (logits - stock_exact(model, ids)).abs().max() > 1e-4, "the two can be told apart"


def stock_exact(model: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    """The logits with the exact activation."""
    other = build_model(replace(model.config, activation_function="gelu"), 0).eval()
    other.load_state_dict(model.state_dict())
    logits: torch.Tensor = other(ids).logits_BTW[0]
    return logits


BIG_MODELS_WORDS = {
    "rms_norm_eps": 1e-5,  # Moonlight's; the norms of the latents keep 1e-6
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
    "n_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": 0,
    "scoring_func": "sigmoid",
}


def deepseek(seed: int, **changed: Any) -> DeepseekV3ForCausalLM:
    """A small DeepSeek-V3 that is not ours, with random biases of the router."""
    sizes = {name: getattr(TINY_KIMI, name) for name in ("hidden_size", "num_hidden_layers", "vocab_size")}
    sizes |= {
        name: getattr(TINY_KIMI, name) for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim")
    }
    sizes |= {name: getattr(TINY_KIMI, name) for name in ("v_head_dim", "intermediate_size")}
    torch.manual_seed(seed)
    sizes |= {
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "q_lora_rank": None,
        "first_k_dense_replace": 1,
    }
    sizes |= {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2}
    sizes |= {"max_position_embeddings": 64, "initializer_range": 0.1}
    config = DeepseekV3Config(**{**sizes, **BIG_MODELS_WORDS, **changed})
    model = DeepseekV3ForCausalLM(config).eval()
    model.set_experts_implementation("eager")
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer += 0.2 * torch.randn(buffer.shape)
    return model


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"q_lora_rank": 24, "n_shared_experts": 2},
        {"rope_interleave": False},
        {"rope_interleave": False, "q_lora_rank": 24},
        {"tie_word_embeddings": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["per expert", "fused", "in shards", "bfloat16"])
def test_a_folder_of_others_computes_the_same_here(
    form: str, changed: dict[str, Any], tmp_path: Path
) -> None:
    model = deepseek(1, **changed)
    if form == "bfloat16":
        model = model.to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="40KB" if form == "in shards" else "1GB")
    if form == "fused":
        save_file(fused(load_file(tmp_path / "model.safetensors")), tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors.index.json").exists() == (form == "in shards")
    if form == "bfloat16":
        model = stock(tmp_path)  # its tables of angles are then of fp32
    ids = torch.randint(61, (2, 40), generator=torch.Generator().manual_seed(0))
    ours = rebuilt(tmp_path)
    assert isinstance(ours.config, KimiConfig) and ours.config.latent_norm_eps == 1e-6
    with torch.inference_mode():
        assert (ours(ids).logits_BTW - model(ids).logits).abs().max() < 1e-4


@pytest.mark.parametrize("own", [True, False])
def test_a_head_of_its_own_is_kept_though_the_folder_says_tied(own: bool, tmp_path: Path) -> None:
    """As transformers does: torchtitan trains the head of a tied export apart, and the loss would not show here."""
    folder = written(build_model(replace(TINY_KIMI, tie_word_embeddings=True), 0), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    if own:
        save_file(
            {**tensors, "lm_head.weight": tensors["lm_head.weight"] + 0.1}, folder / "model.safetensors"
        )
    ours, theirs = rebuilt(folder), stock(folder)
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) is not own
    assert (theirs.lm_head.weight is theirs.model.embed_tokens.weight) is not own
    ids = torch.randint(61, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert (ours(ids).logits_BTW - theirs(ids).logits).abs().max() < 1e-4


def nanogpt_checkpoint(path: Path, **changed: Any) -> NanoGPT:
    """What nanoGPT's train.py saves, of a model that torch.compile wrapped."""
    model = build_model(replace(TINY_GPT, bias=True, initializer_range=0.2), 3).eval()
    config = model.config
    arguments = {
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_embd": config.hidden_size,
        "block_size": config.max_position_embeddings,
        "bias": True,
        "vocab_size": config.vocab_size,
        "dropout": 0.0,
    }
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.tensor([[1, 2]])).logits_BTW.sum().backward()
    optimizer.step()
    content = {
        "model": {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": arguments,
        "iter_num": 5,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "shakespeare_char", "device": "cpu"},
    }
    torch.save({**content, **changed}, path)
    assert isinstance(model, NanoGPT)
    return model


def meta_file(path: Path, characters: str) -> Path:
    """nanoGPT's meta.pkl."""
    meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters))}
    path.write_bytes(pickle.dumps(meta | {"stoi": {c: i for i, c in enumerate(characters)}}))
    return path


def test_nanogpts_own_checkpoint_becomes_a_run_that_goes_out_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nanogpt_checkpoint(tmp_path / "ckpt.pt")
    text = tmp_path / "text.txt"
    text.write_text(make_text(4000))
    used = sorted(set(text.read_text()))
    others = [c for c in map(chr, range(33, 127)) if c not in used]
    meta = meta_file(tmp_path / "meta.pkl", "".join(sorted(used + others[: 61 - len(used)])))
    words = ["import", str(tmp_path / "ckpt.pt"), "--out", str(tmp_path / "run"), "--data", str(text)]
    assert cli.main([*words, "--tokenizer", str(meta)]) == 0, capsys.readouterr().err
    run = open_run(tmp_path / "run")
    ids = torch.randint(61, (2, 20), generator=torch.Generator().manual_seed(0))
    assert torch.equal(run.model(ids).logits_BTW, model(ids).logits_BTW)
    assert run.data.tokenizer.decode(run.data.train_ids[:30]) == text.read_text()[:30]
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 0
    assert cli.main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    validation = run.data.tokenizer.decode(run.data.val_ids[:20_000])
    lines = [line for line in validation.split("\n")[:500] if line] + hostile_lines(500, 0, validation)
    known = sum(set(line) <= set(used + others[: 61 - len(used)]) for line in lines)
    assert known < 400, "this tokenizer refuses other characters, and lines with them were not compared"
    assert "0.0e+00 at most" in printed and f"- {known} lines of text have the same ids" in printed
    assert torch.equal(rebuilt(tmp_path / "out")(ids).logits_BTW, model(ids).logits_BTW)
    words = ["train", "--init-from", str(tmp_path / "run"), "--out", str(tmp_path / "more"), "--lr", "1e-3"]
    words += ["--warmup_steps", "0", "--steps", "3", "--batch_size", "4", "--dtype", "fp32", "--threads", "1"]
    assert cli.main([*words, "--context", "16", "--eval_batch_size", "4"]) == 0, capsys.readouterr().err
    more = open_run(tmp_path / "more")
    first = [p.detach() for p in run.model.parameters()]
    moved = [(p - q).abs().max() for p, q in zip(more.model.parameters(), first, strict=True)]
    assert 0 < max(moved) < 0.01, "three small steps from the weights that came in"
    assert cli.main(["export", str(tmp_path / "more"), "--out", str(tmp_path / "again")]) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison's folder in which an arm of two has finished."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOKIMI_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("trained")
        (folder / "text.txt").write_text(make_text())
        config = tiny_run(folder / "text.txt")
        for name in ("nanokimi", "nanogpt"):
            train_alone(replace(config, model=name), folder / "both" / name / "seed-7")
        shutil.copytree(folder / "both" / "nanokimi" / "seed-7" / "data", folder / "both" / "data")
    return folder / "both"


def tiny_run(text: Path) -> RunConfig:
    words = "--train.context_length 72 --train.max_steps 4 --train.batch_size 4 --train.eval_batch_size 4"
    words += " --nanokimi.model.hidden_size 32 --nanogpt.model.hidden_size 32 --train.dtype fp32 --seed 7"
    words += " --nanokimi.model.num_hidden_layers 2 --nanogpt.model.num_hidden_layers 2 --train.threads 1"
    return load_config("smoke", [*words.split(), f"--dataset.path={text}"])


def test_an_arm_goes_out_with_a_receipt_and_comes_in_again(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    assert cli.main(["export", str(trained), "--arm", "NanoKimi", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "as DeepseekV3ForCausalLM" in printed and "- 256 greedy tokens are equal" in printed
    assert {path.name for path in out.iterdir()} == {
        *("README.md", "config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    assert not list(out.parent.glob(".*")), "nothing is left beside it"
    (example,) = python_in("docs/interop.md")
    exec(example.replace('"my-model"', repr(str(out))), {})
    assert capsys.readouterr().out.startswith("Once upon a time")
    card = (out / "README.md").read_text()
    result = json.loads((trained / "nanokimi" / "seed-7" / "result.json").read_text())
    assert f"| test loss (nats per token) | {result['test_loss']:.4f} |" in card and "Causal: " in card
    assert all(line in card for line in printed.splitlines()[:4]) and str(trained) not in card
    text = str(trained.parent / "text.txt")
    assert cli.main(["import", str(out), "--out", str(tmp_path / "run"), "--data", text]) == 0
    ours, theirs = open_run(trained / "nanokimi" / "seed-7"), open_run(tmp_path / "run")
    ids = torch.from_numpy(ours.data.val_ids[:40].astype(int))[None]
    assert (ours.model(ids).logits_BTW - theirs.model(ids).logits_BTW).abs().max() < 1e-6
    assert ours.data.val_ids.tolist() == theirs.data.val_ids.tolist()


def test_an_export_that_does_not_compute_the_same_leaves_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nanokimi.interop import fast_tokenizer, hf_write

    right_weights, right_tokenizer = hf_write.stock_weights, fast_tokenizer.fast_tokenizer
    right_config = fast_tokenizer.tokenizer_config

    def other_weights(model: LanguageModel) -> dict[str, torch.Tensor]:
        return {n: t.flip(0) if "c_fc.weight" in n else t for n, t in right_weights(model).items()}

    def other_tokenizer(tokenizer: Any, *, starts: bool) -> dict[str, Any]:
        content = right_tokenizer(tokenizer, starts=starts)
        vocab = content["model"]["vocab"]
        vocab["e"], vocab["t"] = vocab["t"], vocab["e"]
        return content

    def other_end(tokenizer: Any, context_length: int, *, starts: bool) -> dict[str, Any]:
        return right_config(tokenizer, context_length, starts=starts) | {"eos_token": "e"}

    arm = str(trained / "nanogpt" / "seed-7")
    for name, wrong, said in (
        ("stock_weights", other_weights, "logits that differ by"),
        ("fast_tokenizer", other_tokenizer, "tokenizer gives other ids"),
        ("tokenizer_config", other_end, "another id for end-of-text"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(hf_write, name, wrong)
            assert cli.main(["export", arm, "--out", str(tmp_path / "new" / "out")]) == 1
        assert said in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that bad input gives."""
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("nanokimi: ") and said.count("\n") == 1
    return said


def test_what_cannot_go_out_is_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    arm = str(trained / "nanokimi" / "seed-7")
    assert "name one of its arms with --arm: nanogpt, nanokimi" in one_line(
        ["export", str(trained), "--out", out], capsys
    )
    assert "no arm 'lion'" in one_line(["export", str(trained), "--out", out, "--arm", "lion"], capsys)
    assert "--format is onnx" in one_line(["export", arm, "--out", out, "--format", "onnx"], capsys)
    assert "needs --out" in one_line(["export", arm], capsys)
    assert "never overwrites" in one_line(["export", arm, "--out", str(trained)], capsys)
    assert "keeps no checkpoint '77'" in one_line(["export", arm, "--out", out, "--step", "77"], capsys)
    assert not Path(out).exists()
    config = replace(tiny_run(trained.parent / "text.txt"), model="variant")
    from nanokimi.model.variants.variant import Variant

    with pytest.raises(UserError, match="family variant has no stock class"):
        stock_config(Variant(replace(config.variant.model, vocab_size=9, max_position_embeddings=9)))
    with pytest.raises(UserError, match="latent norms have epsilon 1e-05"):
        stock_config(build_model(replace(TINY_KIMI, rms_norm_eps=1e-5), 0))


class Harmful:
    """A pickle of it runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("open('/tmp/nanokimi-ran', 'w')",))


def with_config(folder: Path, **changed: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changed))


def with_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "half written": (lambda f: cut(f / "model.safetensors"), "is damaged, or not whole"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "an expert missing": (lambda f: with_weights(f, lambda t: t.pop(EXPERT)), "are not whole"),
    "a tensor missing": (
        lambda f: with_weights(f, lambda t: t.pop("model.norm.weight")),
        "lack model.norm.weight",
    ),
    "no head": (lambda f: with_weights(f, lambda t: t.pop("lm_head.weight")), "lack lm_head.weight"),
    "a tensor more": (lambda f: with_weights(f, lambda t: t.update(x=torch.ones(1))), "hold x, which"),
    "another shape": (
        lambda f: with_weights(f, lambda t: t.update({"model.norm.weight": torch.ones(3)})),
        "of shape (3,), where config.json means (32,)",
    ),
    "whole numbers": (
        lambda f: with_weights(
            f, lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)})
        ),
        "model.norm.weight in I8: expected one of",
    ),
    "not a number": (
        lambda f: with_weights(f, lambda t: t["model.norm.weight"].fill_(float("nan"))),
        "with a number that is not finite",
    ),
    "10^9 experts": (lambda f: with_config(f, n_routed_experts=10**9), "must be at most 4096"),
    "10^9 layers": (lambda f: with_config(f, num_hidden_layers=10**9), "must be at most 1000"),
    "huge width": (lambda f: with_config(f, hidden_size=1 << 20, vocab_size=1 << 21), "billion parameters"),
    "text for a size": (lambda f: with_config(f, hidden_size="wide"), "hidden_size 'wide': expected int"),
    "text for an angle": (lambda f: with_config(f, rope_parameters={"rope_theta": "x"}), "rope_theta 'x'"),
    "text for positions": (lambda f: with_config(f, rope_scaling="yarn"), "rope_scaling 'yarn'"),
    "text for a loss": (lambda f: with_config(f, aux_loss_alpha="x"), "aux_loss_alpha 'x': expected float"),
    "endless number": (lambda f: with_config(f, rms_norm_eps=10**400), "has rms_norm_eps '1000"),
    "groups": (lambda f: with_config(f, n_group=8), "n_group 8, and NanoKimi 1"),
    "softmax": (
        lambda f: with_config(f, scoring_func="softmax"),
        "scoring_func softmax, and NanoKimi sigmoid",
    ),
    "quantized": (lambda f: with_config(f, quantization_config={"bits": 4}), "quantized"),
    "another model": (lambda f: with_config(f, model_type="llama"), "has model_type llama"),
    "another vocabulary": (
        lambda f: (f / "tokenizer.json").write_text((f / "larger.json").read_text()),
        "has a model of 61 ids, and its tokenizer has 90: name the model's own with --tokenizer",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "name it with --tokenizer"),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small folder to damage, and the tokenizer of a larger vocabulary."""
    from nanokimi.interop.fast_tokenizer import bpe, whole

    folder = written(build_model(TINY_KIMI, 0), tmp_path_factory.mktemp("exported"))
    for name, size in (("tokenizer", 61), ("larger", 90)):
        characters = dict.fromkeys("\n " + "".join(map(chr, (*range(97, 123), *range(33, 97)))))
        vocab = {character: number for number, character in enumerate(list(characters)[:size])}
        (folder / f"{name}.json").write_text(json.dumps(whole(bpe(vocab, []), decoder={"type": "Fuse"})))
    return folder


@pytest.mark.parametrize("name", DAMAGE)
def test_a_bad_folder_is_one_line_and_writes_nothing(
    name: str, exported: Path, tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, said = DAMAGE[name]
    folder = Path(shutil.copytree(exported, tmp_path / "in"))
    damage(folder)
    words = ["import", str(folder), "--out", str(tmp_path / "run"), "--data", str(text_file)]
    assert said in one_line(words, capsys)
    assert not (tmp_path / "run").exists()


def test_the_folder_that_is_damaged_above_is_fine(
    exported: Path, tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["import", str(exported), "--out", str(tmp_path / "run"), "--data", str(text_file)]
    assert "context_length" in one_line([*words, "--context", "0"], capsys)
    assert "expected a tokenizer.json" in one_line([*words, "--tokenizer", str(text_file)], capsys)
    assert not (tmp_path / "run").exists()
    assert cli.main(words) == 0


def test_a_model_without_an_id_for_ends_is_told_to_name_a_single_text(
    exported: Path, tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tokenizer has all its ids, and documents, such as the built-in stories, need one more."""
    words = ["import", str(exported), "--out", str(tmp_path / "run")]
    said = one_line(words, capsys)
    assert "61 ids, none of them for the ends of documents, as the built-in stories would need" in said
    assert "name a single text with --data TEXT" in said
    documents = tmp_path / "stories.jsonl"
    documents.write_text(json.dumps({"text": "a story"}) + "\n")
    assert f"as {documents} would need" in one_line([*words, "--data", str(documents)], capsys)
    assert not (tmp_path / "run").exists()


def test_a_card_claims_nothing_of_weights_that_others_trained(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text of an imported run is the built-in one where none is named, and the model has never seen it."""
    out, other = tmp_path / "run", tmp_path / "other"
    monkeypatch.setattr("nanokimi.interop.import_run.BUILT_IN_CHARACTERS", 20_000)
    (tmp_path / "in").mkdir()
    folder = written(build_model(replace(TINY_KIMI, vocab_size=64), 0), tmp_path / "in")
    shutil.copy(exported / "tokenizer.json", folder)
    import_model(folder, out, context=16, origin="someone/model@1")
    receipt = Receipt("a test", 1, 0.0, 1, 0, 1, 0)
    run = open_run(out)
    card = model_card(run, "final", "DeepseekV3ForCausalLM", receipt)
    assert "made by others, imported into nanokimi" in card and "from someone/model@1" in card
    assert "license: unknown" in card and "MIT" not in card and "trained with nanokimi" not in card
    begun = replace(run.config, train=replace(run.config.train, init_from=str(out)))
    card = model_card(replace(run, folder=other, config=begun), "final", "DeepseekV3ForCausalLM", receipt)
    assert "beginning with the weights of another run" in card and "license: unknown" in card
    card = model_card(replace(run, folder=other), "final", "DeepseekV3ForCausalLM", receipt)
    assert "license: mit" in card and "A small language model, trained with nanokimi" in card


def test_an_export_takes_the_place_of_an_empty_folder_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (Path("."), tmp_path / "link"):
        with finished_folder(out) as partial:
            (partial / "file").touch()
    assert (tmp_path / "here" / "file").exists() and (tmp_path / "empty" / "file").exists()
    with pytest.raises(UserError, match="cannot write .*; choose another"):
        with finished_folder(tmp_path / "new" / ("n" * 250)):
            pass
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["code", "packed", "text", "no model", "stretched", "no meta", "short meta"])
def test_a_bad_checkpoint_is_one_line_and_runs_nothing(
    name: str, tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, meta = tmp_path / "ckpt.pt", tmp_path / "meta.pkl"
    meta_file(meta, "ab" if name == "short meta" else "\n .abcdefghijklmnopqrstuvwxyz")
    nanogpt_checkpoint(path, **({"best_val_loss": Harmful()} if name == "code" else {}))
    said = {
        "code": "or would run code",
        "packed": "is a packed archive",
        "text": "cannot be read as nanoGPT's ckpt.pt",
        "no model": "has no model and model_args",
        "stretched": "shows more numbers than it stores",
        "no meta": "name it with --tokenizer",
        "short meta": "which is none of the tokenizer's 2 characters",
    }[name]
    if name == "packed":
        with zipfile.ZipFile(path) as archive:
            content = {one: archive.read(one) for one in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for one, data in content.items():
                archive.writestr(one, data)
    elif name == "text":
        path.write_text("no checkpoint")
    elif name == "no model":
        torch.save({"a": 1}, path)
    elif name == "stretched":
        weights = {"transformer.wte.weight": torch.zeros(1).expand(10**6, 10**4)}
        nanogpt_checkpoint(path, model=weights)
    words = ["import", str(path), "--out", str(tmp_path / "run"), "--data", str(text_file)]
    assert said in one_line([*words, *([] if name == "no meta" else ["--tokenizer", str(meta)])], capsys)
    assert not (tmp_path / "run").exists() and not Path("/tmp/nanokimi-ran").exists()


def test_training_starts_from_another_runs_weights_and_tokenizer(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, other = trained / "nanokimi" / "seed-7", tmp_path / "other.txt"
    other.write_text(make_text(5000, seed=3))
    words = ["train", "--init-from", str(first), "--steps", "1", "--lr", "1e-9", "--adamw_lr", "1e-9"]
    assert cli.main([*words, "--data", str(other), "--out", str(tmp_path / "run")]) == 0, (
        capsys.readouterr().err
    )
    start, run = open_run(first), open_run(tmp_path / "run")
    assert run.config.train.init_from == str(first.resolve()) and run.config.dataset.path == str(other)
    pairs = zip(run.model.parameters(), start.model.parameters(), strict=True)
    assert max(float((p - q).detach().abs().max()) for p, q in pairs) < 1e-6
    assert run.data.tokenizer_sha256 == start.data.tokenizer_sha256
    capsys.readouterr()
    assert "is not a run folder" in one_line(["train", "--init-from", str(tmp_path)], capsys)
    pruned, gone = tmp_path / "pruned", tmp_path / "gone"
    assert cli.main(["prune", str(tmp_path / "run"), "--keep", "2", "--out", str(pruned)]) == 0
    assert began_elsewhere(open_run(pruned)), "a pruned run has other shapes, and its card still tells"
    capsys.readouterr()
    shutil.copytree(first, gone)
    (gone / "model.safetensors").unlink()
    unfinished = ["train", "--init-from", str(gone), "--out", str(tmp_path / "wrong"), "--data", str(other)]
    assert "has no model.safetensors: name a finished run" in one_line(unfinished, capsys).splitlines()[-1]
    for more, said in (
        (["--hidden_size", "48"], "does not fit the model"),
        (["--dataset.tokenizer", "char", "--data", str(other)], "has another tokenizer than this text"),
    ):
        assert said in one_line([*words, *more, "--out", str(tmp_path / "wrong")], capsys).splitlines()[-1]
        assert not (tmp_path / "wrong").exists()
    text = ["--config", str(first / "config.yaml"), "--out", str(tmp_path / "wrong")]
    for verb, source, said in (
        ("train", tmp_path / "none", f"train.init_from {tmp_path / 'none'} has no model.safetensors"),
        ("compare", first, f"NanoGPT with Muon: {first / 'model.safetensors'} does not fit the model"),
        ("compare", tmp_path / "none", "NanoKimi: train.init_from"),
    ):
        assert said in one_line([verb, *text, "--train.init_from", str(source)], capsys)
        assert not (tmp_path / "wrong").exists()


def test_a_run_keeps_the_weights_that_it_began_with(make_run: Callable[..., Path], tmp_path: Path) -> None:
    """The other run's folder may change or go: the run is resumed, and goes back to its beginning, without it."""
    source, folder = make_run("source"), tmp_path / "run"
    folder.mkdir()
    config = load_config(str(source / "config.yaml"))
    config = replace(config, train=replace(config.train, init_from=str(source)))
    config, data = set_up(config, folder)
    expected = load_file(source / "model.safetensors")
    shutil.rmtree(source)

    def same(state: TrainState) -> bool:
        found = state.model.state_dict()
        return all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    part = folder / "nanokimi" / "seed-7"
    part.mkdir(parents=True)
    assert same(build_state(config, data, part)), "an arm of a comparison, whose folder keeps them"
    state = build_state(config, data, folder)
    assert same(state)
    with torch.no_grad():
        next(state.model.parameters()).add_(1)
    assert not same(state)
    set_to_beginning(state)
    assert same(state)
    other = replace(config, train=replace(config.train, init_from=str(tmp_path)))
    with pytest.raises(UserError, match=f"began with the weights of {source}, not {tmp_path}"):
        build_state(other, data, folder)
    cut(folder / "initial.safetensors")
    with pytest.raises(UserError, match="initial.safetensors is damaged"):
        build_state(config, data, folder)
    (folder / "initial.json").write_text("[]")
    with pytest.raises(UserError, match="initial.json is not the file that the run wrote"):
        build_state(config, data, folder)
    (folder / "initial.json").unlink()
    with pytest.raises(UserError, match="has no model.safetensors: name a finished run"):
        build_state(config, data, folder)


MOONLIGHT = {
    **{"model_type": "deepseek_v3", "vocab_size": 163840, "hidden_size": 2048, "num_hidden_layers": 27},
    **{"num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": None, "kv_lora_rank": 512},
    **{"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 11264},
    **{
        "moe_intermediate_size": 1408,
        "n_routed_experts": 64,
        "num_experts_per_tok": 6,
        "n_shared_experts": 2,
    },
    **{"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "scoring_func": "sigmoid"},
    **{
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.446,
        "moe_layer_freq": 1,
    },
    **{"rms_norm_eps": 1e-05, "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False},
    **{"rope_theta": 50000.0, "rope_scaling": None, "max_position_embeddings": 8192, "aux_loss_alpha": 0.001},
}
K2_YARN = {
    **{"type": "yarn", "factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0},
    **{"mscale_all_dim": 1.0, "original_max_position_embeddings": 4096},
}


def test_the_released_configurations_are_understood() -> None:
    """In the words of their own config.json files, which are older than transformers' present ones."""
    moonlight = kimi_config(MOONLIGHT)
    assert (moonlight.rms_norm_eps, moonlight.latent_norm_eps, moonlight.rope_scaling) == (1e-5, 1e-6, None)
    assert (moonlight.rope_theta, moonlight.routed_scaling_factor, moonlight.aux_loss_alpha) == (
        5e4,
        2.446,
        1e-3,
    )
    assert model_cost(moonlight, 8192).params_total == pytest.approx(15.96e9, rel=1e-3)
    k2 = kimi_config({**MOONLIGHT, "model_type": "kimi_k2", "rope_scaling": K2_YARN, "rms_norm_eps": 1e-6})
    assert k2.rope_scaling == YarnConfig() and k2.latent_norm_eps is None
    for wrong, said in (
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rotary positions of type linear"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "describes YaRN without"),
        ({"num_key_value_heads": 4}, "num_key_value_heads"),
        ({"max_position_embeddings": None}, "does not say max_position_embeddings"),
    ):
        with pytest.raises(UserError, match=said):
            kimi_config({**MOONLIGHT, **wrong})
    with pytest.raises(UserError, match="has dropout 'x': expected float"):
        gpt_config(dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), "x"), bias=True)
