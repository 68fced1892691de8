"""What exports compute in transformers and in llama.cpp, for random models and for every tokenizer.

    python benchmarks/receipts.py                  # writes docs/results/receipts.jsonl, then benchmarks/tables.py
    python benchmarks/receipts.py --out FILE --only byte

Each line is the receipt that `nanokimi export` prints: logits of four windows, 64 greedy tokens after 4 prompts
(transformers) or 20 (llama.cpp), and the ids of lines of the text and of hostile lines. Whatever an export would refuse
stops this. Random models have sizes that Q8_0 can hold, and random norms and router biases. The others are trained for
a few steps on the pages of docs/. Needs transformers, gguf and llama-cpp-python.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from recorded import RESULTS, ROOT, Row

from nanokimi.runtime.files import append_json_line, describe_environment, read_json_lines

FILE = RESULTS / "receipts.jsonl"
RANDOM_KIMIS, RANDOM_GPTS, CONTEXT, STEPS, CHARACTERS = 24, 6, 80, 20, 60_000
TYPES = ("F32", "Q8_0")
TOKENIZERS = ("byte", "char", "bpe", "unigram", "tokenizer.json", "SentencePiece model")


def pages() -> str:
    """The text of docs/, without the page that these numbers go into."""
    return "\n".join(
        path.read_text(encoding="utf-8")
        for path in sorted((ROOT / "docs").glob("*.md"))
        if path.name != "interop.md"
    )


# ---- models


def random_kimi(seed: int) -> Any:
    """A NanoKimi: with and without query latent and YaRN, 0, 1 and 2 shared experts, each combination twice."""
    from nanokimi.config import KimiConfig, YarnConfig

    rng = random.Random(seed)
    experts = rng.choice([2, 3, 4, 6, 8])
    layers = rng.randint(1, 3)
    yarn = YarnConfig(
        factor=rng.choice([2.0, 4.0, 32.0]),
        original_max_position_embeddings=rng.choice([16, 32, 64]),
        beta_fast=32.0,  # the one form of YaRN that llama.cpp's deepseek2 has
        beta_slow=1.0,
        mscale=1.0,
        mscale_all_dim=1.0,
    )
    return KimiConfig(
        vocab_size=256,
        hidden_size=rng.choice([32, 64, 96]),
        num_hidden_layers=layers,
        num_attention_heads=rng.choice([1, 2, 3, 4]),
        q_lora_rank=rng.choice([32, 64]) if seed % 2 else None,
        kv_lora_rank=rng.choice([32, 64]),
        qk_nope_head_dim=rng.choice([32, 64]),
        qk_rope_head_dim=rng.choice([4, 8, 16]),
        v_head_dim=rng.choice([32, 64]),
        intermediate_size=rng.choice([64, 96]),
        moe_intermediate_size=rng.choice([32, 64]),
        n_routed_experts=experts,
        n_shared_experts=seed // 4 % 3,
        num_experts_per_tok=rng.randint(1, min(experts, 3)),
        first_k_dense_replace=rng.randint(0, min(2, layers - 1)),
        norm_topk_prob=rng.random() < 0.7,
        routed_scaling_factor=rng.choice([1.0, 1.4, 2.5]),
        rope_theta=rng.choice([100.0, 10000.0, 50000.0]),
        rope_scaling=yarn if seed // 2 % 2 else None,
        max_position_embeddings=CONTEXT,
        initializer_range=rng.uniform(0.1, 0.2),
    )


def random_gpt(seed: int) -> Any:
    """A NanoGPT: with and without biases, with the exact and OpenAI's activation. Its head is tied."""
    from nanokimi.config import GPTConfig

    rng = random.Random(seed)
    return GPTConfig(
        vocab_size=256,
        hidden_size=rng.choice([32, 64, 96]),
        num_attention_heads=rng.choice([1, 2, 4]),
        num_hidden_layers=rng.randint(1, 3),
        max_position_embeddings=CONTEXT,
        bias=seed % 2 == 1,
        activation_function=["gelu", "gelu_new"][seed // 2 % 2],
        initializer_range=rng.uniform(0.1, 0.2),
    )


def randomised(config: Any, seed: int) -> Any:
    """A model whose norms and router biases are not their trivial initial values."""
    from nanokimi.model.build import build_model

    model = build_model(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer += 0.2 * torch.randn(buffer.shape, generator=generator)
    return model.eval()


def random_models() -> Iterator[tuple[Row, Any, Any]]:
    """(what it is, model, data) of each random model."""
    from nanokimi.data.tokenizers.own import ByteTokenizer

    tokenizer = ByteTokenizer()
    data = SimpleNamespace(tokenizer=tokenizer, val_ids=tokenizer.encode(pages()[:50_000]))
    made: list[tuple[str, Callable[[int], Any], int]] = [
        ("NanoKimi", random_kimi, RANDOM_KIMIS),
        ("NanoGPT", random_gpt, RANDOM_GPTS),
    ]
    for name, make, count in made:
        for seed in range(count):
            config = make(seed)
            about = {"model": name, "tokenizer": "byte", "random": True, "config": asdict(config)}
            yield about, randomised(config, seed), data


def tokenizer_words(name: str, folder: Path) -> list[str]:
    """The settings of a run for one of TOKENIZERS; those that others would have made are made here."""
    if name in ("byte", "char"):
        return ["--dataset.tokenizer", name]
    if name in ("bpe", "unigram"):
        return ["--dataset.tokenizer", name, "--dataset.vocab_size", "512"]
    if name == "tokenizer.json":
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        fast = Tokenizer(models.BPE())
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        fast.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=512, initial_alphabet=alphabet, show_progress=False)
        fast.train_from_iterator([pages()], trainer)
        path = folder / name
        fast.save(str(path))
    else:
        import sentencepiece

        path = folder / "tokenizer.model"
        options = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "minloglevel": 2}
        options |= {"byte_fallback": True, "vocab_size": 512, "model_type": "bpe", "num_threads": 1}
        with open(path, "wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(pages().split("\n")), model_writer=file, **options
            )
    return ["--dataset.tokenizer", str(path)]


def trained_models(folder: Path, tokenizers: Sequence[str]) -> Iterator[tuple[Row, Any, Any]]:
    """(what it is, model, data) of both models after a few steps with each tokenizer."""
    from nanokimi.config.files import load_config
    from nanokimi.train.loop import train
    from nanokimi.train.run_folder import set_up
    from nanokimi.train.state import build_state

    text = folder / "text.txt"
    text.write_text(pages()[:CHARACTERS], encoding="utf-8")
    words = (
        f"--train.context_length {CONTEXT} --train.max_steps {STEPS} --train.batch_size 8 --train.dtype fp32"
    )
    words += " --train.device cpu --train.threads 1 --seed 7 --nanokimi.model.qk_nope_head_dim 32"
    for tokenizer in tokenizers:
        given = [*words.split(), f"--dataset.path={text}", *tokenizer_words(tokenizer, folder)]
        config = load_config("smoke", given)
        for name in ("nanokimi", "nanogpt"):
            run = folder / f"{name}-{tokenizer.replace(' ', '-')}"
            run.mkdir()
            chosen, data = set_up(replace(config, model=name), run)  # type: ignore[arg-type]
            state = build_state(chosen, data, run)
            state.only_final_score = True
            list(train(state))
            title = {"nanokimi": "NanoKimi", "nanogpt": "NanoGPT"}[name]
            yield {"model": title, "tokenizer": tokenizer, "random": False}, state.model.eval(), data


# ---- receipts


def receipts(about: Row, model: Any, data: Any) -> Row:
    """What transformers and llama.cpp compute from a model's exports. Raises TrainingError as an export does."""
    from nanokimi.errors import TrainingError
    from nanokimi.interop.gguf_file import verify_gguf, write_gguf
    from nanokimi.interop.gguf_model import gguf_model, require_same_model, with_stored_weights
    from nanokimi.interop.gguf_tokenizer import gguf_tokenizer
    from nanokimi.interop.gguf_verify import verify_in_llama
    from nanokimi.interop.hf_write import write_hf_folder
    from nanokimi.interop.verify import verify_hf_folder

    context = model.config.max_position_embeddings
    row = dict(about)
    with tempfile.TemporaryDirectory() as folder:
        write_hf_folder(model, data.tokenizer, context, Path(folder))
        row["transformers"] = asdict(verify_hf_folder(Path(folder), model, data, context))
        content = gguf_model(model)
        metadata = {**content.metadata, **gguf_tokenizer(data.tokenizer, model.config.vocab_size)}
        require_same_model(model, content)
        for kind in TYPES:
            path = Path(folder) / f"{kind}.gguf"
            write_gguf(path, content, metadata, kind)
            stored, _ = verify_gguf(path, content, metadata, kind)
            models = model, with_stored_weights(model, stored)
            bound = (content.architecture, kind)
            try:
                row[kind] = asdict(verify_in_llama(path, models, data, context, bound))
            except TrainingError as error:
                if not about["random"] or kind == "F32":
                    raise
                # With 8 bits, a random router's near-tie sends many a token to another expert.
                row[kind] = {"refused": str(error)}
    return row


# ---- the table


def receipts_table() -> str:
    """A row for the random models and for each tokenizer of both models."""
    head, *rows = read_json_lines(FILE)
    lines = [
        "| model | transformers: largest difference of a logit | equal greedy tokens | llama.cpp F32 | equal greedy "
        "tokens | llama.cpp Q8_0 | equal greedy tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        made = "random" if row["random"] else row["tokenizer"]
        groups.setdefault(f"{row['model']}, {made}", []).append(row)
    for name, group in groups.items():
        title = name.replace("random", f"{len(group)} random configurations")
        cells = [title, f"{max(row['transformers']['logits_difference'] for row in group):.1e}"]
        cells.append(greedy_cell([row["transformers"] for row in group]))
        for kind in TYPES:
            found = [row[kind] for row in group if "refused" not in row[kind]]
            refused = f"; {len(group) - len(found)} refused" if len(found) < len(group) else ""
            cells.append(f"{max(one['difference'] for one in found):.1e}{refused}")
            cells.append(greedy_cell(found))
        lines.append("| " + " | ".join(cells) + " |")
    kimis = [row["config"] for row in rows if row["random"] and row["model"] == "NanoKimi"]
    shared = ", ".join(
        f"{sum(one['n_shared_experts'] == count for one in kimis)} with {count}" for count in (0, 1, 2)
    )
    lines += [
        "",
        f"Of the {len(kimis)} random NanoKimis {sum(one['q_lora_rank'] is None for one in kimis)} have no query latent "
        f"(query LoRA), {sum(one['rope_scaling'] is not None for one in kimis)} have YaRN; shared experts: {shared}. A "
        "NanoKimi's head is its own, a NanoGPT's is tied. llama.cpp's differences are root mean squares, as a share of "
        "the logits' standard deviation. In brackets: texts that part at a near-tie, and are compared up to there. "
        "Refused: with activations of 8 bits, a random router's near-ties send too many tokens to other experts.",
        "",
        f"`python benchmarks/receipts.py`, {head['time'][:10]}, {head['versions']}.",
    ]
    return "\n".join(lines)


def greedy_cell(found: list[Row]) -> str:
    """The greedy tokens that were compared, and the near-ties."""
    ties = sum(one["near_ties"] for one in found)
    return f"{sum(one['greedy_tokens'] for one in found):,}" + (f" ({ties})" if ties else "")


def main() -> int:
    """Write the lines, one at a time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--only", default="", choices=("random", "trained", *TOKENIZERS))
    options = parser.parse_args()
    from nanokimi.interop.gguf_verify import has_llama, llama_version
    from nanokimi.interop.verify import require_transformers

    if not has_llama():
        print("receipts need llama-cpp-python: pip install llama-cpp-python", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    environment = describe_environment("cpu")
    versions = f"transformers {require_transformers().__version__}, llama-cpp-python {llama_version()}"
    options.out.unlink(missing_ok=True)
    append_json_line(options.out, {"kind": "head", "time": environment["time"], "versions": versions})
    with tempfile.TemporaryDirectory() as folder:
        models: list[Iterator[tuple[Row, Any, Any]]] = []
        if options.only in ("", "random"):
            models.append(random_models())
        if options.only != "random":
            models.append(
                trained_models(Path(folder), [options.only] if options.only in TOKENIZERS else TOKENIZERS)
            )
        for about, model, data in (one for group in models for one in group):
            print(about["model"], "random" if about["random"] else about["tokenizer"], flush=True)
            append_json_line(options.out, receipts(about, model, data))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
