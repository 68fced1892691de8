"""The results of `nanokimi bench` as a short table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanokimi.report.units import count, gpu, milliseconds, percent, plain

if TYPE_CHECKING:
    from nanokimi.profiling.bench import Bench, ModelBench

PART_NAMES = {
    "data": "batch",
    "forward": "forward and loss",
    "backward": "backward",
    "clip": "gradient norm and clip",
    "newton_schulz": "optimizer: Newton-Schulz",
    "optimizer": "optimizer: the rest",
    "qk_clip": "QK-Clip",
    "rest": "rest",
}


def bench_text(found: Bench) -> str:
    """The machine's rates, each model's training step with its parts, and the time to decode one token."""
    columns = [rows_of(model) for model in found.models]
    lines = [["", *(model.name for model in found.models)]]
    lines += [[name, *(column[name] for column in columns)] for name in columns[0]]
    widths = [max(len(line[i]) for line in lines) + 2 for i in range(len(lines[0]))]
    text = ["".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return machine_text(found) + "\n".join(line.rstrip() for line in text) + "\n" + kernels_text(found)


def machine_text(found: Bench) -> str:
    """The head of the table: the device and what it can do at best."""
    products = ", ".join(
        f"{plain(rate / 1e9)} in {name}" for name, rate in found.rates.flops_per_second.items()
    )
    memory = plain(found.rates.read_bytes_per_second / 1e9)
    device = found.device if found.gpu is None else f"{found.device} ({gpu(found.gpu)})"
    return (
        f"{device}, {found.threads} CPU threads: {products} GFLOP/s of large products, {memory} GB/s read\n"
        f"training in {found.dtype}, random tokens; the mean over the steps nearest the median\n\n"
    )


def rows_of(model: ModelBench) -> dict[str, str]:
    """The cells of one model's column, by row."""
    step = model.parts.step_ms
    roofline = sum(model.roofline_ms.values())
    qk_logits = "in the compiled forward" if model.qk_logits_ms is None else milliseconds(model.qk_logits_ms)
    return {
        "optimizer": model.optimizer,
        "parameters": f"{count(model.params_total)}, {count(model.params_active)} active",
        "tokens per step": count(model.tokens_per_step),
        "tokens per second": count(model.tokens_per_step / step * 1e3),
        "step": f"{milliseconds(step)} (first {milliseconds(model.parts.first_step_ms)}; {model.parts.steps} timed)",
        **{
            f"  {name}": f"{milliseconds(model.parts.parts_ms[part])}, {percent(model.parts.parts_ms[part] / step)}"
            for part, name in PART_NAMES.items()
        },
        "of the forward: QK-Clip's logits": qk_logits,
        "roofline of a step": f"{milliseconds(roofline)}, 1/{plain(step / roofline)} of it",
        "prefill": milliseconds(model.prefill.median_ms),
        "decode, per token": milliseconds(model.decode.median_ms),
    }


def kernels_text(found: Bench) -> str:
    """Which implementation of each mechanism ran, and why."""
    chosen = dict.fromkeys(choice for model in found.models for choice in model.kernels)
    width = max(len(choice.mechanism) for choice in chosen) + 2
    lines = [f"{choice.mechanism.ljust(width)}{choice.form} ({choice.why})" for choice in chosen]
    no_c = [f"training kernels in C: not used, {found.why_no_c}"] if found.why_no_c else []
    return "\n".join(["", *lines, *no_c]) + "\n"
