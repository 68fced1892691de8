"""nanokimi: Kimi K2's ideas at nano scale, trained beside NanoGPT and honestly compared.

The public names are imported on first use, so that `import nanokimi` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanokimi.api import Loaded, audit, complete, evaluate, inspect, load
    from nanokimi.compare.from_python import compare
    from nanokimi.compare.plot import plot
    from nanokimi.config import GPTConfig, KimiConfig, RunConfig
    from nanokimi.errors import UserError
    from nanokimi.generation.engine import generate
    from nanokimi.generation.text import Completion
    from nanokimi.inside.inspection import Inspection
    from nanokimi.kernels.accelerate import accelerate_
    from nanokimi.kernels.muon import Muon, MuonClip
    from nanokimi.model.gpt import NanoGPT
    from nanokimi.model.kimi import NanoKimi
    from nanokimi.optim.groups import muon_groups
    from nanokimi.optim.muon import newton_schulz
    from nanokimi.optim.qk_clip import qk_clip_

__version__ = "0.1.0"

_HOMES = {
    "load": "api",
    "complete": "api",
    "evaluate": "api",
    "audit": "api",
    "inspect": "api",
    "Inspection": "inside.inspection",
    "compare": "compare.from_python",
    "plot": "compare.plot",
    "Loaded": "api",
    "Completion": "generation.text",
    "GPTConfig": "config",
    "KimiConfig": "config",
    "RunConfig": "config",
    "UserError": "errors",
    "generate": "generation.engine",
    "NanoGPT": "model.gpt",
    "NanoKimi": "model.kimi",
    "muon_groups": "optim.groups",
    "accelerate_": "kernels.accelerate",
    "Muon": "kernels.muon",
    "newton_schulz": "optim.muon",
    "MuonClip": "kernels.muon",
    "qk_clip_": "optim.qk_clip",
}

__all__ = [
    "Completion",
    "GPTConfig",
    "Inspection",
    "KimiConfig",
    "Loaded",
    "Muon",
    "MuonClip",
    "NanoGPT",
    "NanoKimi",
    "RunConfig",
    "UserError",
    "accelerate_",
    "audit",
    "compare",
    "complete",
    "evaluate",
    "generate",
    "inspect",
    "load",
    "muon_groups",
    "newton_schulz",
    "plot",
    "qk_clip_",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nanokimi' has no attribute '{name}'")
    return getattr(import_module(f"nanokimi.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
