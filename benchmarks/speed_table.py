"""The table of speeds against peers, from the benchmarks' recorded rows (docs/results/benchmarks.jsonl)."""

from __future__ import annotations

from statistics import median

from recorded import RESULTS, Row

from nanokimi.measure.stats import paired_t
from nanokimi.runtime.files import read_json_lines

MEMORY = "peak memory above idle"
DEEPSEEK = "transformers DeepseekV3, fused AdamW, bf16"

Shown = tuple[list[tuple[str, str, str, str]], list[Row]]
"""Lines of the table of speeds, and the recorded rows that they come from."""


def speed_table() -> str:
    """Each speed from the last recorded row of its benchmark that has the wanted options."""
    parts = (training_speeds(), decoding_speeds(), training_memory(), times_to_loss())
    lines = ["| ours | peer | quantity | ours divided by the peer's |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(shown) + " |" for cells, _ in parts for shown in cells]
    return "\n".join([*lines, "", measured_on([row for _, rows in parts for row in rows])])


def rows_of(benchmark: str, **wanted: str) -> list[Row]:
    """The recorded rows of a benchmark whose options contain what is wanted, oldest first."""
    return [
        row
        for row in read_json_lines(RESULTS / "benchmarks.jsonl")
        if row["benchmark"] == benchmark
        and all(wanted[key] in str(row["options"].get(key)) for key in wanted)
    ]


def training_speeds() -> Shown:
    """NanoGPT's and NanoKimi's training steps."""
    gpt, kimi = rows_of("train_gpt")[-1], rows_of("train_kimi")[-1]
    both, theirs = kimi["ratio_alike"]["both"], gpt["over_transformers"]
    plain, gpt2 = "NanoGPT training, bf16", "transformers GPT2LMHeadModel, bf16"
    cells = [
        (plain, "nanoGPT's own train.py (fp32)", "tokens/s", f"{gpt['ratio']['median']:.1f}"),
        (plain, gpt2, "tokens/s", f"{theirs['median']:.1f}"),
        ("NanoKimi training, MuonClip, bf16", DEEPSEEK, "tokens/s", f"{kimi['ratio']['median']:.1f}"),
        ("the same, torch.compile on both sides", "the same", "tokens/s", f"{both['median']:.1f}"),
    ]
    return cells, [gpt, kimi]


def decoding_speeds() -> Shown:
    """Decoding with a cache. NanoKimi's varies by a fifth: the median of the runs on its last day is taken."""
    kimi, gpt = rows_of("decode"), rows_of("sample_gpt")[-1]
    kimi = [row for row in kimi if row["time"][:10] == kimi[-1]["time"][:10]]
    decode = median(row["ratio"]["median"] for row in kimi)
    cached = gpt["contexts"]["256"]["arms"]["transformers"]["ours_over_it"]["median"]
    generate = "transformers generate, with its cache"
    cells = [
        ("NanoKimi decoding 256 tokens, batch 1", generate, "tokens/s", f"{decode:.0f}"),
        ("NanoGPT decoding 256 tokens, batch 1", generate, "tokens/s", f"{cached:.1f}"),
    ]
    return cells, [*kimi, gpt]


def training_memory() -> Shown:
    """Peak memory with the same optimizer on both sides."""
    memory = rows_of("memory")[-1]

    def over(dtype: str) -> str:
        ours, theirs = (memory["arms"][f"{side}-{dtype}"]["ratio"] for side in ("ours", "transformers"))
        return f"{ours['median'] / theirs['median']:.2f}"

    cells = [
        ("NanoKimi (27M) training with AdamW, bf16", DEEPSEEK, MEMORY, over("bf16")),
        ("the same, fp32", "the same, fp32", MEMORY, over("fp32")),
    ]
    return cells, [memory]


def times_to_loss() -> Shown:
    """Time and tokens to a validation loss."""
    fast, race = (rows_of("time_to_loss", config=name)[-1] for name in ("shakespeare-fast", "nanokimi.yaml"))
    time, tokens = (fast["ratios"][what]["median"] for what in ("time", "tokens"))
    seeds = f"median of {len(fast['runs'])} seeds, of which {fast['missed']} missed the loss"
    muon = [1 / run["ratios"]["time_muon"] for run in race["runs"]]
    slower = paired_t(muon, [0.0] * len(muon))
    raced = f"{slower.mean:.2f} ({slower.low:.2f} to {slower.high:.2f})"
    race_seeds = f"NanoKimi (`benchmarks/race/`), mean of {len(muon)} seeds"
    recipe, to_loss = "nanoGPT's CPU recipe", "time to a validation loss of 1.886"
    cells = [
        (f"NanoKimi (`shakespeare-fast`), {seeds}", recipe, to_loss, f"1/{time:.0f}"),
        ("the same", recipe, "tokens to that loss", f"1/{tokens:.0f}"),
        (race_seeds, "NanoGPT with Muon", "time to that loss", raced),
    ]
    return cells, [fast, race]


def measured_on(rows: list[Row]) -> str:
    """When and where the rows were measured."""
    days = ", ".join(sorted({row["time"][:10] for row in rows}))
    machines = ", ".join(sorted({f"{row['cores']} cores of an {row['processor']}" for row in rows}))
    return (
        f"Measured on {days}, {machines}. Both sides of a row take turns; ratios of tokens/s and memory are medians "
        "over rounds."
    )
