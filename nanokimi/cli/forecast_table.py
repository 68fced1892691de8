"""A forecast as text: what a run will need, in one short table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanokimi.report.units import count, milliseconds, seconds, size

if TYPE_CHECKING:
    from nanokimi.profiling.forecast import Forecast

SINGLE = {
    "starting": "start",
    "compiling": "compiling",
    "audit": "audit",
    "measuring": "measuring at the end",
    "test": "scoring the test part",
}


def forecast_text(found: Forecast) -> str:
    """The table that `train --dry-run` prints."""
    expected = " (expected; the budget is in seconds)" if found.steps_expected else ""
    free = f", {size(found.free_disk_bytes)} free" if found.free_disk_bytes is not None else ""
    rows = [
        ("machine", f"{found.device}, {found.dtype}, {found.threads} CPU threads"),
        ("parameters", f"{count(found.params_total)}, {count(found.params_active)} active"),
        ("text", f"{count(found.train_tokens)} tokens, and {count(found.val_tokens)} for validation"),
        ("budget", f"{count(found.steps)} steps, {count(found.tokens)} tokens{expected}"),
        ("step", f"{milliseconds(found.step_ms)} (mean of {found.steps_measured} after warm-up)"),
        ("", ""),
        ("weights", size(found.weights_bytes)),
        ("gradients", size(found.gradient_bytes)),
        ("optimizer state", size(found.optimizer_bytes)),
        ("peak in training", f"{size(found.peak_memory_bytes)}, all of the process"),
        ("peak in validation", size(found.validation_memory_bytes)),
        ("", ""),
        *((phase_name(name, phase.count), seconds(phase.seconds)) for name, phase in found.phases.items()),
        ("whole run", seconds(found.seconds)),
        ("", ""),
        ("disk", f"{size(found.disk_bytes)} (a checkpoint: {size(found.checkpoint_bytes)}){free}"),
    ]
    width = max(len(name) for name, _ in rows) + 2
    head = f"{found.name}, forecast from a dry run (nothing was trained; the tokens stay in the cache)\n\n"
    return head + "\n".join(f"{name:{width}}{value}".rstrip() for name, value in rows) + "\n"


def phase_name(name: str, number: float) -> str:
    """What a phase is called, with how often it comes."""
    return SINGLE.get(name) or f"{count(number)} {'steps' if name == 'training' else name}"
