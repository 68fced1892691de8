"""A forecast of what a run will need, as a short table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanokimi.report.units import count, gpu, milliseconds, seconds, short, size

if TYPE_CHECKING:
    from nanokimi.profiling.forecast import Forecast


def forecast_text(found: Forecast) -> str:
    """The table that `train --dry-run` prints."""
    train, cost = found.config.train, found.cost
    expected = " (expected; the budget is in seconds)" if train.max_seconds else ""
    tokens = found.steps * train.batch_size * train.context_length
    budget = f"{count(found.steps)} steps, {count(tokens)} tokens, {short(found.flops)} FLOPs{expected}"
    device = train.device if found.gpu is None else f"{train.device} ({gpu(found.gpu)})"
    names = {"validations": f"{count(found.validations)} validations", "test": "scoring the test part"}
    rows = [
        ("machine", f"{device}, {train.dtype}, {train.threads} CPU threads"),
        ("parameters", f"{count(cost.params_total)}, {count(cost.params_active)} active"),
        ("text", f"{count(found.train_tokens)} tokens, and {count(found.val_tokens)} for validation"),
        ("budget", budget),
        ("step", f"{milliseconds(found.step_seconds * 1e3)} (mean of {found.steps_timed})"),
        ("", ""),
        ("weights", size(found.weights_bytes)),
        ("gradients", size(found.gradient_bytes)),
        ("optimizer state", size(found.optimizer_bytes)),
        ("peak in training", f"{size(found.peak_memory_bytes)}, {memory_of(train.device)}"),
        ("peak in validation", size(found.validation_memory_bytes)),
        ("", ""),
        *((names.get(phase, phase), seconds(each)) for phase, each in found.seconds.items() if each),
        ("together", f"{seconds(sum(found.seconds.values()))}; stories, saving and measuring come on top"),
        ("", ""),
        ("disk", f"{size(found.disk_bytes)}, {size(found.free_disk_bytes)} free"),
    ]
    width = max(len(name) for name, _ in rows) + 2
    head = f"{found.config.title}, forecast from a dry run (nothing is kept but the tokens, in the cache)\n\n"
    return head + "\n".join(f"{name:{width}}{value}".rstrip() for name, value in rows) + "\n"


def memory_of(device: str) -> str:
    """What the figure for peak memory counts, as `runtime.device.peak_memory_bytes` finds it."""
    if device.startswith("cuda"):
        return "torch's own on the GPU (CUDA's libraries hold some hundreds of MB more)"
    return "in use after a step, as MPS keeps no peak" if device == "mps" else "all of the process"
