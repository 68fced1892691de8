"""The settings of an optimizer. All other settings are in `schema`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """One arm's optimizer and learning-rate schedule."""

    name: str = "adamw"
    """adamw; lion; muon, truemuon, shampoo or soap for hidden matrices and AdamW for the rest; muonclip, shampooclip:
    muon or shampoo, and QK-Clip after each step; torch:NAME or pytorch-optimizer:NAME, a class of that library; or
    FILE.py:NAME, a class of yours named with --plugin."""
    lr: float = 1e-3
    """Peak learning rate. Updates of muon, shampoo and soap have AdamW's size, so one rate serves both parts; lion
    wants a fifth to a third of it, truemuon 0.2 times the square root of the width as much."""
    adamw_lr: float | None = None
    """Peak rate of what is no hidden matrix (embeddings, head, norm gains, biases): the AdamW part beside another
    optimizer; with adamw itself, a rate of their own; None: lr."""
    weight_decay: float = 0.1
    """Decoupled weight decay, multiplied by the current rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment, also within shampoo and soap; lion's two rates."""
    eps: float = 1e-8
    """AdamW's epsilon, also within shampoo and soap."""
    momentum: float = 0.95
    """Muon's momentum, and that of a library's optimizer that has one."""
    nesterov: bool = True
    """Look one step ahead along the momentum. For the same optimizers as momentum."""
    ns_steps: int = 5
    """Muon: Newton-Schulz iterations."""
    ns_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Muon: dtype of the Newton-Schulz iteration; auto: the faster one on this device for the matrix's size."""
    router: Literal["muon", "adamw"] = "muon"
    """Which optimizer updates the router's matrix: adamw, or muon for the optimizer of the hidden matrices."""
    split_heads: bool = False
    """Whether each head's rows, in MLA's last projections or mha's queries, keys and values, are a separate matrix."""
    qk_clip_tau: float = 100.0
    """muonclip, shampooclip: the weights of a head whose largest attention logit is above this are scaled down."""
    qk_clip_logits: Literal["exact", "rms"] = "exact"
    """Where that logit comes from: exact, the step's own logits; rms, an estimate from the weights alone."""
    precondition_every: int = 10
    """shampoo, soap: steps between new inverse roots or eigenbases."""
    shampoo_beta: float = 0.95
    """shampoo, soap: decay rate of the averages of G G^T and G^T G."""
    handover_steps: int | None = None
    """shampoo: steps over which its updates pass linearly from Adam's own to purely preconditioned ones; None:
    preconditioned from the start, each matrix's update as long as Adam's."""
    options: dict[str, bool | int | float | list[float] | str] = field(default_factory=dict)
    """Keyword arguments of the class that torch:, pytorch-optimizer: or FILE.py: names, as {name: value}."""
    router_bias_update_speed: float = 1e-3
    """Step of the router's balancing bias (auxiliary-loss-free balancing, arXiv 2408.15664); 0: off."""
    grad_clip: float | None = 1.0
    """Largest gradient norm; None: no clipping."""
    schedule: Literal["wsd", "cosine", "constant"] = "cosine"
    """wsd: warm-up, stable, linear decay; cosine: warm-up, then cosine to min_lr_ratio."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    decay_fraction: float = 0.4
    """wsd: last part of the run, over which the rate falls linearly."""
    min_lr_ratio: float = 0.1
    """Rate at the end of the schedule over the peak rate."""

    @property
    def clips(self) -> bool:
        """Whether QK-Clip follows each step."""
        return self.name in ("muonclip", "shampooclip")

    @property
    def third_party(self) -> bool:
        """Whether the optimizer is a class of a library or of the user's own file."""
        return ":" in self.name
