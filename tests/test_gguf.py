"""GGUF files: what gguf's own reader and llama.cpp find in them is the model and its tokenizer."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from conftest import TINY_GPT, TINY_KIMI, make_text
from test_fast_tokenizer import sentencepiece_model, small_bpe
from test_interop import meta_file, one_line, random_gpt
from test_kimi import random_config, randomised

from nanokimi import cli
from nanokimi.config import KimiConfig, RunConfig, YarnConfig
from nanokimi.config.files import load_config
from nanokimi.data.tokenizers.foreign import SentencePieceModel, TokenizersTokenizer
from nanokimi.data.tokenizers.own import (
    ByteTokenizer,
    CharTokenizer,
    WithEndOfText,
    train_sentencepiece,
)
from nanokimi.errors import TrainingError, UserError
from nanokimi.interop import gguf_verify
from nanokimi.interop.gguf_file import verify_gguf, write_gguf
from nanokimi.interop.gguf_model import (
    gguf_model,
    require_same_model,
    require_whole_blocks,
    with_stored_weights,
)
from nanokimi.interop.gguf_tokenizer import gguf_tokenizer
from nanokimi.interop.import_run import characters_of
from nanokimi.model.build import LanguageModel, build_model
from nanokimi.train.run import train_alone
from nanokimi.train.run_folder import open_run

TYPES = ("F32", "F16", "Q8_0", "Q4_0")
WIDE_KIMI = replace(
    TINY_KIMI,
    **{"hidden_size": 64, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "v_head_dim": 16},
    **{"intermediate_size": 96, "moe_intermediate_size": 32, "initializer_range": 0.15},
)
WIDE_GPT = replace(TINY_GPT, hidden_size=64, bias=True, initializer_range=0.15)
TEXT = make_text(6000) + " \u201cyes\u201d, caf\u00e9; 3.14\n" * 20


def exportable(config: KimiConfig) -> KimiConfig:
    """A random configuration, with the form of YaRN that llama.cpp has."""
    yarn = config.rope_scaling
    if yarn is None:
        return config
    return replace(config, rope_scaling=replace(yarn, beta_fast=32.0, mscale=1.0, mscale_all_dim=1.0))


def models(wide: bool = False) -> dict[str, LanguageModel]:
    if wide:
        return {"deepseek2": randomised(WIDE_KIMI, 1).eval(), "gpt2": build_model(WIDE_GPT, 1).eval()}
    return {"deepseek2": randomised(TINY_KIMI, 1).eval(), "gpt2": random_gpt(1).eval()}


@pytest.mark.parametrize("seed", range(12))
def test_a_file_in_f32_holds_every_configuration_bit_for_bit(seed: int, tmp_path: Path) -> None:
    model = random_gpt(seed) if seed > 8 else randomised(exportable(random_config(seed)[0]), seed)
    content, path = gguf_model(model.eval()), tmp_path / "model.gguf"
    write_gguf(path, content, content.metadata, "F32")
    stored, error = verify_gguf(path, content, content.metadata, "F32")
    back = with_stored_weights(model, stored)
    before, after = model.state_dict(), back.state_dict()
    assert error == 0 and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("name", ["blk.1.attn_k_b.weight", "blk.1.ffn_up_exps.weight", "token_embd.weight"])
def test_a_tensor_in_the_wrong_place_is_found(name: str) -> None:
    model = models(wide=True)["deepseek2"]
    content = gguf_model(model)
    require_same_model(model, content)
    content.tensors[name] = np.flip(content.tensors[name], axis=0)
    with pytest.raises(TrainingError, match="do not give back model"):
        require_same_model(model, content)


def test_attention_is_stored_absorbed_under_llama_cpps_names(tmp_path: Path) -> None:
    model, path = randomised(WIDE_KIMI, 3), tmp_path / "model.gguf"
    content = gguf_model(model)
    write_gguf(path, content, content.metadata, "F32")
    reader = gguf.GGUFReader(path)
    shapes = {one.name: one.shape.tolist() for one in reader.tensors}
    assert shapes["blk.1.attn_k_b.weight"] == [32, 32, 2] and shapes["blk.1.attn_v_b.weight"] == [32, 16, 2]
    assert shapes["blk.1.ffn_down_exps.weight"] == [32, 64, 4] and shapes["blk.1.exp_probs_b.bias"] == [4]
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DEEPSEEK2, 2)
    assert all(known.get_type(n, (".weight", ".bias")) for n in shapes if "blk" in n or "token" in n)
    stored = {one.name: torch.from_numpy(np.array(one.data)) for one in reader.tensors}
    both = model.state_dict()["model.layers.1.self_attn.kv_b_proj.weight"].view(2, 48, 32)
    for head in range(2):
        assert torch.equal(stored["blk.1.attn_k_b.weight"][head], both[head, :32].t())
        assert torch.equal(stored["blk.1.attn_v_b.weight"][head], both[head, 32:])
    found = {key: field.contents() for key, field in reader.fields.items()}
    assert found["deepseek2.expert_gating_func"] == 2 and found["deepseek2.attention.head_count_kv"] == 1
    assert (
        found["deepseek2.attention.key_length"] == 32 + 8 and found["deepseek2.attention.value_length"] == 32
    )


def test_without_a_shared_expert_there_is_one_of_zeros() -> None:
    content = gguf_model(build_model(replace(TINY_KIMI, n_shared_experts=0), 0))
    assert content.metadata["deepseek2.expert_shared_count"] == 1
    assert not any(content.tensors[f"blk.1.ffn_{part}_shexp.weight"].any() for part in ("gate", "up", "down"))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", ["deepseek2", "gpt2"])
def test_each_type_is_read_back_within_its_bound_and_a_change_is_found(
    name: str, kind: str, tmp_path: Path
) -> None:
    content, path = gguf_model(models(wide=True)[name]), tmp_path / "model.gguf"
    require_whole_blocks(content, kind)
    write_gguf(path, content, content.metadata, kind)
    stored, error = verify_gguf(path, content, content.metadata, kind)
    low, high = {"F32": (0, 0), "F16": (0, 0), "Q8_0": (0.003, 0.005), "Q4_0": (0.06, 0.126)}[kind]
    assert low <= error <= high
    kept = [one.name for one in gguf.GGUFReader(path).tensors if one.tensor_type.name == "F32"]
    assert kind == "F32" or {
        n.rpartition(".")[0].rpartition(".")[2] for n in kept if n.endswith("weight")
    } <= {
        *("output_norm", "attn_norm", "ffn_norm", "attn_q_a_norm", "attn_kv_a_norm"),
        *("ffn_gate_inp", "position_embd"),
    }
    for tensor in ("token_embd.weight", "output_norm.weight"):
        changed = content.tensors[tensor].copy()
        changed.flat[5] += 0.3 * np.abs(changed).max()
        other = replace(content, tensors={**content.tensors, tensor: changed})
        with pytest.raises(TrainingError, match=f"{tensor} is not the model's within"):
            verify_gguf(path, other, content.metadata, kind)
    with pytest.raises(TrainingError, match="another x.y than was meant"):
        verify_gguf(path, content, {**content.metadata, "x.y": 1}, kind)


def test_numbers_beyond_fp16_are_not_written_as_infinite(tmp_path: Path) -> None:
    model, path = build_model(TINY_GPT, 0), tmp_path / "model.gguf"
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[0, 0] = 1e5
    content = gguf_model(model)
    write_gguf(path, content, {}, "F16")
    with pytest.raises(TrainingError, match="ffn_up.weight is not the model's within F16"):
        verify_gguf(path, content, {}, "F16")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"latent_norm_eps": 1e-5}, "one epsilon for all norms, and the model has 1e-05 for its latents"),
        ({"q_lora_rank": 8, "num_hidden_layers": 27}, r"no query latent \(q_lora_rank\) with 27 layers"),
        ({"n_routed_experts": 1, "num_experts_per_tok": 1}, "at least 2 routed experts"),
        (
            {"rope_scaling": YarnConfig()},
            "only with beta_fast 32",
        ),
        ({"rope_scaling": YarnConfig(beta_fast=32.0, mscale=0.7)}, "mscale equal to mscale_all_dim"),
    ],
    ids=str,
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        gguf_model(build_model(replace(TINY_KIMI, **changed), 0))


def test_rows_without_whole_blocks_are_named() -> None:
    sizes = replace(WIDE_KIMI, qk_nope_head_dim=16, v_head_dim=12, moe_intermediate_size=24)
    with pytest.raises(UserError) as caught:
        require_whole_blocks(gguf_model(build_model(sizes, 0)), "Q8_0")
    for part in (
        "16 (qk_nope_head_dim)",
        "24 (num_attention_heads * v_head_dim)",
        "24 (moe_intermediate_size)",
    ):
        assert part in str(caught.value)
    require_whole_blocks(gguf_model(build_model(sizes, 0)), "F16")


def test_a_tokenizer_becomes_pieces_and_names_the_ids_that_end_a_text() -> None:
    def made(tokenizer: Any, size: int | None = None) -> dict[str, Any]:
        content = gguf_tokenizer(tokenizer, size or tokenizer.vocab_size)
        assert len(content["tokenizer.ggml.tokens"]) == (size or tokenizer.vocab_size)
        return {key.removeprefix("tokenizer.ggml."): value for key, value in content.items()}

    byte = made(WithEndOfText(ByteTokenizer()), 260)
    assert (byte["model"], byte["eos_token_id"], byte["token_type"][255:]) == ("gpt2", 256, [1, 3, 5, 5, 5])
    char = made(CharTokenizer("ab c"))
    assert (char["model"], char["tokens"]) == ("t5", ["\u2581", "a", "b", "c", "<unk>"])
    assert char["unknown_token_id"] == char["eos_token_id"] == 4
    bpe = made(WithEndOfText(train_sentencepiece("bpe", 330, [TEXT], len(TEXT))))
    assert bpe["model"] == "llama" and bpe["eos_token_id"] == 330 and not bpe["add_space_prefix"]
    assert "<0x0A>" in bpe["tokens"] and bpe["token_type"][bpe["tokens"].index("<0x0A>")] == 6
    unigram = made(train_sentencepiece("unigram", 320, [TEXT], len(TEXT)))
    assert unigram["model"] == "t5" and unigram["token_type"][unigram["tokens"].index("\n")] == 1
    assert "<0x0A>" not in unigram["tokens"] and "<0xE2>" in unigram["tokens"]
    foreign = made(TokenizersTokenizer(small_bpe()))
    assert foreign["model"] == "gpt2" and foreign["eos_token_id"] == 0 and len(foreign["merges"]) > 50


def nanogpts(folder: Path) -> TokenizersTokenizer:
    """A tokenizer of characters such as `import` makes, also of those that a form might misread."""
    characters = sorted(set(make_text(500)) | set("\n\t\r \\'\"<>\u00e9\u2581\U0001f600\0x0"))
    return TokenizersTokenizer(characters_of(meta_file(folder / "meta.pkl", "".join(characters))))


def test_nanogpts_characters_are_pieces_without_an_end(tmp_path: Path) -> None:
    tokenizer = nanogpts(tmp_path)
    content = gguf_tokenizer(tokenizer, tokenizer.vocab_size)
    assert content["tokenizer.ggml.model"] == "rwkv" and "tokenizer.ggml.eos_token_id" not in content
    texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    assert content["tokenizer.ggml.tokens"] == [
        {"\\": "\\\\", "\0": "\\x00"}.get(text, text) for text in texts
    ]
    other = json.loads(tokenizer.content)
    other["model"]["unk_token"] = "e"
    with pytest.raises(UserError, match="not in GPT-2's form"):
        gguf_tokenizer(TokenizersTokenizer(json.dumps(other).encode()), tokenizer.vocab_size)


@pytest.mark.slow
def test_llama_cpp_reads_nanogpts_characters(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    tokenizer, path = nanogpts(tmp_path), tmp_path / "model.gguf"
    size, generator = tokenizer.vocab_size, torch.Generator().manual_seed(0)
    model = build_model(replace(TINY_GPT, vocab_size=size, initializer_range=0.2), 0).eval()
    content = gguf_model(model)
    write_gguf(path, content, {**content.metadata, **gguf_tokenizer(tokenizer, size)}, "F32")
    ids = torch.randint(size, (2000,), generator=generator).numpy()
    data: Any = SimpleNamespace(tokenizer=tokenizer, val_ids=ids)
    receipt = gguf_verify.verify_in_llama(path, (model, model), data, 32, ("gpt2", "F32"))
    assert receipt.lines > 20 and receipt.lines_that_differ == 0


def test_tokenizers_that_do_not_fit_are_refused() -> None:
    lower = json.loads(small_bpe())
    lower["normalizer"] = {"type": "Lowercase"}
    for tokenizer, said in (
        (CharTokenizer("a\u2581b"), r"include U\+2581"),
        (CharTokenizer("a\0b"), "include NUL"),
        (TokenizersTokenizer(json.dumps(lower).encode()), "not in GPT-2's form"),
        (SentencePieceModel(sentencepiece_model(model_type="bpe")), "normalises text, or has no bytes"),
        (SentencePieceModel(sentencepiece_model(model_type="unigram")), "sums are rounded"),
    ):
        with pytest.raises(UserError, match=said):
            gguf_tokenizer(tokenizer, tokenizer.vocab_size)


def tiny_run(folder: Path, model: str, tokenizer: str) -> Path:
    """A run of four steps with windows of 72 tokens, so that 64 can follow a prompt."""
    text = folder / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    words = "--train.context_length 72 --train.max_steps 4 --train.batch_size 4 --train.eval_batch_size 4 --seed 7"
    words += f" --train.dtype fp32 --train.threads 1 --dataset.tokenizer {tokenizer}"
    words += " --dataset.vocab_size 320" if tokenizer in ("bpe", "unigram") else ""
    words += " --nanokimi.model.qk_nope_head_dim 32"
    config: RunConfig = load_config("smoke", [*words.split(), f"--dataset.path={text}"])
    train_alone(replace(config, model=model), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOKIMI_CACHE", str(tmp_path_factory.mktemp("cache")))
        return tiny_run(tmp_path_factory.mktemp("trained"), "nanogpt", "char")


@pytest.fixture
def without_llama(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanokimi.interop.export.has_llama", lambda: False)


@pytest.mark.usefixtures("without_llama")
def test_a_run_goes_out_with_a_receipt_that_says_what_was_not_run(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "export",
        str(trained),
        "--format",
        "gguf",
        "--type",
        "q8_0",
        "--out",
        str(tmp_path / "new" / "out"),
    ]
    assert cli.main(words) == 0
    printed, file = capsys.readouterr().out, tmp_path / "new" / "out" / "model-Q8_0.gguf"
    assert "28 tensors are the model's within 0.00" in printed and "Not run in llama.cpp" in printed
    assert [path.name for path in file.parent.iterdir()] == [file.name] and printed.endswith(f"{file}\n")
    assert "never overwrites" in one_line(words, capsys)
    words = ["export", str(trained), "--format", "gguf", "--out", str(tmp_path / "my.gguf")]
    assert cli.main(words) == 0 and (tmp_path / "my.gguf").is_file()


def test_what_cannot_be_asked_for_is_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(trained), "--out", str(tmp_path / "out")]
    assert "--type is Q5_0: expected F32, F16, Q8_0 or Q4_0" in one_line(
        [*words, "--format", "gguf", "--type", "Q5_0"], capsys
    )
    assert "--type is for --format gguf" in one_line([*words, "--type", "F16"], capsys)
    assert "needs --out FILE.gguf" in one_line([*words[:2], "--format", "gguf"], capsys)
    (tmp_path / "file").touch()
    blocked = [*words[:3], str(tmp_path / "file" / "x.gguf"), "--format", "gguf"]
    assert "cannot write" in one_line(blocked, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("wrong", ["nothing", "weights", "logits", "text", "ids", "crash"])
def test_llama_cpps_answer_is_compared_and_a_mismatch_leaves_nothing(
    wrong: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A program that stands in for llama.cpp answers rightly, or wrongly in one way."""
    run = open_run(trained)
    tokenizer = run.data.tokenizer

    def answer(request: dict[str, Any]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            logits = run.model(torch.tensor(request["windows"])).logits_BTW.numpy().copy()
            texts = torch.tensor(request["prompts"])
            for _ in range(request["count"]):
                texts = torch.cat((texts, run.model(texts).logits_BTW[:, -1:].argmax(-1)), dim=1)
            start = len(request["prompts"][0])
            chosen = run.model(texts[:, :-1]).logits_BTW[:, start - 1 :].numpy()
        written = texts[:, start:].numpy().copy()
        lines = [tokenizer.encode(line) for line in request["lines"]]
        if wrong == "logits":
            logits = np.roll(logits, 1, axis=1)
        if wrong == "text":
            written[3, -1] = (written[3, -1] + 1) % tokenizer.vocab_size
        if wrong == "ids":
            lines[2][0] += 1
        pieces = [tokenizer.decode(ids).encode() for ids in lines]
        return {
            "logits": logits,
            "written": written,
            "written_logits": chosen,
            "ids": np.concatenate(lines),
            "lengths": np.array([len(ids) for ids in lines]),
            "bytes": np.frombuffer(b"".join(pieces), dtype=np.uint8),
            "sizes": np.array([len(text) for text in pieces]),
        }

    monkeypatch.setattr("nanokimi.interop.export.has_llama", lambda: True)
    monkeypatch.setattr(gguf_verify, "llama_version", lambda: "0")
    if wrong == "crash":
        monkeypatch.setattr(sys, "executable", "false")
    else:
        monkeypatch.setattr(gguf_verify, "ask_llama", answer)
    if wrong == "weights":
        from nanokimi.interop import gguf_file

        right = gguf_file.add_value
        monkeypatch.setattr(
            gguf_file, "add_value", lambda w, k, v: right(w, k, 3 if "block_count" in k else v)
        )
    words = ["export", str(trained), "--format", "gguf", "--out", str(tmp_path / "new" / "my.gguf")]
    assert cli.main(words) == (0 if wrong == "nothing" else 1)
    said = capsys.readouterr()
    if wrong == "nothing":
        assert "1,280 greedy tokens after 20 prompts are equal\n" in said.out
        return
    expected = {
        "weights": "holds another gpt2.block_count than was meant",
        "logits": "logits that differ by",
        "text": "writes another text after 63 tokens",
        "ids": "tokenizer gives other ids",
        "crash": "llama.cpp cannot run the file",
    }
    assert expected[wrong] in said.err and list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["bpe", "unigram", "byte", "char"])
@pytest.mark.parametrize("model", ["nanokimi", "nanogpt"])
def test_llama_cpp_writes_the_same_text(
    model: str, tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """20 prompts, 64 greedy tokens each, and logits within the bound of each type."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    run = tiny_run(tmp_path, model, tokenizer)
    capsys.readouterr()
    for kind in TYPES:
        words = ["export", str(run), "--format", "gguf", "--type", kind, "--out", str(tmp_path / "out")]
        assert cli.main(words) == 0
        printed = capsys.readouterr().out
        assert "Run in llama.cpp" in printed and "greedy tokens after 20 prompts are equal" in printed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_llama_cpp_computes_every_configuration(seed: int, tmp_path: Path) -> None:
    """24 random NanoKimis (with and without query latent and YaRN, 0, 1 and 2 shared experts), and 6 NanoGPTs."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = random_gpt(seed) if seed >= 24 else randomised(exportable(random_config(seed)[0]), seed)
    content, path = gguf_model(model.eval()), tmp_path / "model.gguf"
    size = model.config.vocab_size
    pieces = gguf_tokenizer(CharTokenizer("".join(map(chr, range(33, 32 + size)))), size)
    write_gguf(path, content, {**content.metadata, **pieces}, "F32")
    ids = torch.randint(size, (2, 24), generator=torch.Generator().manual_seed(seed))
    request = {"path": str(path), "context": 32, "windows": ids.tolist(), "prompts": ids[:, :8].tolist()}
    found = gguf_verify.ask_llama({**request, "count": 16, "lines": []})
    assert gguf_verify.relative(found["logits"].reshape(-1, size), gguf_verify.flat(model, ids)) < 1e-3
    texts = torch.cat((ids[:, :8], torch.from_numpy(found["written"])), dim=1)
    gguf_verify.compare_written(found, gguf_verify.flat(model, texts[:, :-1], 7))
