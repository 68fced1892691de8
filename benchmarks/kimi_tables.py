"""The tables and numbers of docs/kimi-k2.md: K2's sizes beside ours, and what the ablation studies say of each idea."""

from __future__ import annotations

from collections.abc import Callable

from recorded import RESULTS
from study_tables import study_report

from nanokimi.config import KimiConfig
from nanokimi.config.files import load_config, preset_names
from nanokimi.config.rules import resolve
from nanokimi.measure.cost import model_cost

KIMI_K2 = KimiConfig(
    vocab_size=163840,
    hidden_size=7168,
    num_hidden_layers=61,
    num_attention_heads=64,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    intermediate_size=18432,
    moe_intermediate_size=2048,
    n_routed_experts=384,
    num_experts_per_tok=8,
    n_shared_experts=1,
    first_k_dense_replace=1,
    routed_scaling_factor=2.827,
    max_position_embeddings=131072,
)
"""As the published config.json has it (moonshotai/Kimi-K2-Instruct; arXiv 2507.20534), without YaRN."""
TEXTS = {"ladder-shakespeare": "tinyshakespeare", "ladder-tales": "short stories"}


def sizes_table() -> str:
    """A row for each quantity, a column for each model; parameters and cache from `measure.cost`."""
    presets = sorted((name for name in preset_names() if name.startswith("k2-")), key=size_of)
    models = {"Kimi K2": KIMI_K2, "NanoKimi (`tales`)": preset_model("tales")}
    models |= {f"`{name}`": preset_model(name) for name in presets}
    lines = ["| | " + " | ".join(models) + " |", "|---|" + "---|" * len(models)]
    for title, find in ROWS.items():
        lines.append(f"| {title} | " + " | ".join(find(model) for model in models.values()) + " |")
    return "\n".join(lines)


def preset_model(name: str) -> KimiConfig:
    """The NanoKimi of a preset, with the vocabulary that the preset asks for."""
    config = load_config(name)
    size = 256 if config.dataset.tokenizer == "byte" else config.dataset.vocab_size
    return resolve(config, vocab_size=size, device="cpu", dtype="fp32", threads=1).nanokimi.model


def size_of(preset: str) -> float:
    """The parameters that a preset is named after, such as 0.25e6 of k2-0.25m."""
    number = preset.removeprefix("k2-")
    return float(number[:-1]) * {"m": 1e6, "b": 1e9}[number[-1]]


def parameters(count: int) -> str:
    """A number of parameters, to three digits."""
    for unit, letter in ((1e9, "B"), (1e6, "M")):
        if count >= unit:
            return f"{count / unit:.0f}{letter}" if count >= 100 * unit else f"{count / unit:.3g}{letter}"
    return f"{count / 1e3:.3g}k"


def kept(model: KimiConfig) -> int:
    """Numbers that MLA caches per token and layer."""
    return model_cost(model, 1).cache_numbers_per_token // model.num_hidden_layers


def kept_by_heads(model: KimiConfig) -> int:
    """Numbers that plain attention with as many heads of the same sizes would cache."""
    return model.num_attention_heads * (model.qk_nope_head_dim + model.v_head_dim)


ROWS: dict[str, Callable[[KimiConfig], str]] = {
    "parameters": lambda m: parameters(model_cost(m, 1).params_total),
    "active for a token": lambda m: parameters(model_cost(m, 1).params_active),
    "layers (of which dense)": lambda m: f"{m.num_hidden_layers} ({m.first_k_dense_replace})",
    "width": lambda m: f"{m.hidden_size:,}",
    "heads": lambda m: str(m.num_attention_heads),
    "head: no position, rotary, value": lambda m: (
        f"{m.qk_nope_head_dim}, {m.qk_rope_head_dim}, {m.v_head_dim}"
    ),
    "query latent": lambda m: "none" if m.q_lora_rank is None else f"{m.q_lora_rank:,}",
    "key-value latent": lambda m: str(m.kv_lora_rank),
    "cached per token and layer": lambda m: str(kept(m)),
    "plain attention would cache": lambda m: f"{kept_by_heads(m):,} ({kept_by_heads(m) / kept(m):.1f} times)",
    "experts: chosen of all, shared": lambda m: (
        f"{m.num_experts_per_tok} of {m.n_routed_experts}, {m.n_shared_experts}"
    ),
    "width of an expert": lambda m: f"{m.moe_intermediate_size:,}",
    "width of the dense layer": lambda m: f"{m.intermediate_size:,}",
    "dense layer / width": lambda m: f"{m.intermediate_size / m.hidden_size:.2f}",
    "vocabulary": lambda m: f"{m.vocab_size:,}",
}


def worth_table(effects: dict[str, str]) -> str:
    """Effects of both ablation studies, by what they are called here, with the interval that decides."""
    lines = ["| | text | difference (nats per token) | 95% interval | verdict |", "|---|---|---|---|---|"]
    for label, name in effects.items():
        for study, text in TEXTS.items():
            found = study_report(RESULTS / f"{study}.jsonl")["effects"]
            (effect,) = [one for one in found if one["name"] == name]
            low, high = effect["ci95"]
            cells = (label, text, f"{effect['mean']:+.3f}", f"{low:+.3f} to {high:+.3f}")
            lines.append("| " + " | ".join([*cells, verdict_of(effect["words"])]) + " |")
    return "\n".join(lines)


def verdict_of(words: str) -> str:
    """Without the number, which stands in its own column."""
    return words.partition(" by ")[0]


KIMI_TABLES: dict[str, Callable[[], str]] = {
    "sizes": sizes_table,
    "worth-mla": lambda: worth_table({"MLA added": "+ MLA", "NanoKimi without MLA": "without MLA"}),
    "worth-experts": lambda: worth_table(
        {
            "experts added": "+ MoE",
            "shared expert added": "+ shared expert",
            "NanoKimi without a shared expert": "without shared expert",
            "NanoKimi without experts": "without MoE and shared expert and balancing",
        }
    ),
    "worth-balancing": lambda: worth_table(
        {"balancing added": "+ balancing", "NanoKimi without balancing": "without balancing"}
    ),
    "worth-muon": lambda: worth_table(
        {
            "NanoGPT, Muon instead of AdamW": "optimizer, for NanoGPT",
            "NanoKimi, Muon instead of AdamW": "optimizer, for NanoKimi",
        }
    ),
    "worth-qk-clip": lambda: worth_table(
        {"QK-Clip added": "+ QK-Clip", "NanoKimi without QK-Clip": "without QK-Clip"}
    ),
    "worth-all": lambda: worth_table(
        {
            "NanoKimi instead of NanoGPT": "all components together",
            "the architecture alone, with AdamW": "architecture, with AdamW",
            "the architecture alone, with Muon": "architecture, with Muon",
        }
    ),
}
KIMI_NUMBERS: dict[str, Callable[[], str]] = {
    "k2-kept": lambda: str(kept(KIMI_K2)),
    "k2-kept-by-heads": lambda: f"{kept_by_heads(KIMI_K2):,}",
    "k2-saving": lambda: f"{kept_by_heads(KIMI_K2) / kept(KIMI_K2):.0f}",
    "tales-kept": lambda: str(kept(preset_model("tales"))),
    "tales-kept-by-heads": lambda: str(kept_by_heads(preset_model("tales"))),
    "tales-saving": lambda: f"{kept_by_heads(preset_model('tales')) / kept(preset_model('tales')):.0f}",
    "k2-total": lambda: parameters(model_cost(KIMI_K2, 1).params_total),
    "k2-active": lambda: parameters(model_cost(KIMI_K2, 1).params_active),
}
