"""Statistics of the model between two evaluations: expert load, router entropy, attention logits, clipped heads."""

from __future__ import annotations

from typing import Any

import torch

from nanokimi.model.output import Output
from nanokimi.optim.qk_clip import Clipping
from nanokimi.optim.rms_logits import can_estimate, rms_logits


class Telemetry:
    """Sums over training steps. `drain` turns them into records and resets them."""

    _TENSORS = {
        "counts_LE": torch.float32,
        "entropy_L": torch.float32,
        "max_logits_LH": torch.float32,
        "heads_clipped": torch.int64,
    }

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Reset all sums."""
        self.passes = 0
        self.counts_LE: torch.Tensor | None = None
        self.entropy_L: torch.Tensor | None = None
        self.max_logits_LH: torch.Tensor | None = None
        self.heads_clipped = torch.zeros((), dtype=torch.int64)

    def state(self) -> dict[str, Any]:
        """The sums as JSON, for a checkpoint."""
        tensors = {name: getattr(self, name) for name in self._TENSORS}
        sums = {name: None if x is None else x.tolist() for name, x in tensors.items()}
        return {"passes": self.passes, **sums}

    def load(self, stored: dict[str, Any], model: torch.nn.Module) -> None:
        """Restore the sums that `state` returned. Raises ValueError if they do not fit the model."""
        config: Any = model.config
        routers = len(model.routers()) if hasattr(model, "routers") else 0  # type: ignore[operator]
        experts = getattr(config, "n_routed_experts", 0)
        shapes: dict[str, tuple[int, ...]] = {
            "counts_LE": (routers, experts),
            "entropy_L": (routers,),
            "max_logits_LH": (config.num_hidden_layers, config.num_attention_heads),
            "heads_clipped": (),
        }
        if type(stored["passes"]) is not int or stored["passes"] < 0:
            raise ValueError("telemetry of an impossible number of passes")
        device = next(model.parameters()).device
        loaded: dict[str, torch.Tensor | None] = {}
        for name, dtype in self._TENSORS.items():
            value = stored[name]
            where = "cpu" if name == "heads_clipped" else device
            loaded[name] = None if value is None else torch.tensor(value, dtype=dtype, device=where)
            tensor = loaded[name]
            if (tensor is None and name == "heads_clipped") or (
                tensor is not None and tensor.shape != shapes[name]
            ):
                raise ValueError(f"telemetry '{name}' is of another model")
        if (loaded["counts_LE"] is None) != (loaded["entropy_L"] is None) or (
            loaded["counts_LE"] is not None and stored["passes"] == 0
        ):
            raise ValueError("telemetry that does not fit together")
        self.passes = stored["passes"]
        for name, tensor in loaded.items():
            setattr(self, name, tensor)

    def add_forward(self, output: Output) -> None:
        """Count one forward pass."""
        if output.routing:
            counts_LE = torch.stack([r.counts_E for r in output.routing])
            entropy_L = torch.stack([r.entropy for r in output.routing])
            self.counts_LE = counts_LE if self.counts_LE is None else self.counts_LE + counts_LE
            self.entropy_L = entropy_L if self.entropy_L is None else self.entropy_L + entropy_L
            self.passes += 1
        if output.max_logits_LH is not None:
            before_LH, seen_LH = self.max_logits_LH, output.max_logits_LH
            # Of several processes they are on the host; a checkpoint's are on the device.
            self.max_logits_LH = (
                seen_LH if before_LH is None else before_LH.maximum(seen_LH.to(before_LH.device))
            )

    def add_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Count the heads that this step clipped."""
        if isinstance(optimizer, Clipping):
            self.heads_clipped = self.heads_clipped + optimizer.heads_clipped  # on the device: nothing waits

    def drain(self, model: torch.nn.Module, tau: float | None) -> list[dict[str, Any]]:
        """Records of kind "router" and "attention" from the sums, as far as there are any."""
        records: list[dict[str, Any]] = []
        if self.counts_LE is not None and self.entropy_L is not None:
            routers: list[Any] = model.routers()  # type: ignore[operator]  # a model with routing has them
            biases = [r.e_score_correction_bias for r in routers if hasattr(r, "e_score_correction_bias")]
            bias_LE = torch.stack(biases) if biases else None
            records.append(router_record(self.counts_LE, self.entropy_L / self.passes, bias_LE))
            first = model.config.num_hidden_layers - len(self.counts_LE)  # type: ignore[union-attr, operator]
            records[-1]["layers"] = list(range(first, first + len(self.counts_LE)))
        if self.max_logits_LH is not None:
            clips = int(self.heads_clipped)
            records.append(
                {"kind": "attention", "max_logits": _rounded(self.max_logits_LH), "clips": clips, "tau": tau}
            )
            if can_estimate(model):
                estimates_LH = rms_logits(model).to(self.max_logits_LH.device)
                records[-1] |= estimate_record(estimates_LH, self.max_logits_LH)
        self.clear()
        return records


def router_record(
    counts_LE: torch.Tensor, entropy_L: torch.Tensor, bias_LE: torch.Tensor | None
) -> dict[str, Any]:
    """Balance of the experts: shares of the load, coefficient of variation, maximum violation, dead experts.

    Maximum violation is the busiest expert's load over the mean load, minus 1 (arXiv 2408.15664, eq. 4).
    """
    counts_LE = counts_LE.cpu().double()  # in two steps: MPS has no float64
    mean_L1 = counts_LE.mean(dim=1, keepdim=True)
    return {
        "kind": "router",
        "load": _rounded(counts_LE / counts_LE.sum(dim=1, keepdim=True)),
        "load_cv": _rounded(counts_LE.std(dim=1, correction=0) / mean_L1[:, 0]),
        "max_violation": _rounded(counts_LE.amax(dim=1) / mean_L1[:, 0] - 1),
        "dead_experts": (counts_LE == 0).sum(dim=1).tolist(),
        "router_entropy": _rounded(entropy_L),
        **({} if bias_LE is None else {"bias": _rounded(bias_LE)}),
    }


def estimate_record(estimates_LH: torch.Tensor, exact_LH: torch.Tensor) -> dict[str, Any]:
    """The logits estimated from the weights and their ratio to the exact ones, which is 0 for logits below 0."""
    ratio_LH = torch.where(exact_LH > 0, estimates_LH / exact_LH, 0.0)
    return {"rms_logits": _rounded(estimates_LH), "rms_over_exact": _rounded(ratio_LH)}


def _rounded(x: torch.Tensor) -> Any:
    return [round(v, 5) for v in x.tolist()] if x.dim() == 1 else [_rounded(row) for row in x]
