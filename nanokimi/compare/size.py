"""The size of a model that gives it as many parameters as another: `solve_size` and what it stands on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from nanokimi.measure.cost import model_cost

TOLERANCE = 0.02
"""Relative gap up to which two arms count as matched."""
WIDTH_STEP = 4
"""Feed-forward widths are multiples of this."""
FREE_WIDTH = 0.25
"""The share by which a feed-forward width may change before the hidden size changes instead."""


@dataclass(frozen=True)
class Solved:
    """A model whose size was solved for."""

    model: Any
    changes: dict[str, int]
    """What was changed, by the name of the setting."""
    value: float
    gap: float
    """Difference from the target, relative to it."""


def parameters(quantity: str, context_length: int) -> Callable[[Any], float]:
    """The function that counts active_params or total_params, as `quantity` says, of a resolved model configuration."""
    active = quantity == "active_params"

    def count(model: Any) -> float:
        cost = model_cost(model, context_length)
        return float(cost.params_active if active else cost.params_total)

    return count


def solve_width(model: Any, quantity: Callable[[Any], float], target: float) -> Solved:
    """Change the width of the feed-forward layers until `quantity` of the model is as near to `target` as possible.

    In a mixture of experts the experts' width changes, and dense layers get the width of all experts that one token
    uses together. After that the dense layers' width alone closes what remains of the gap, within FREE_WIDTH.
    """
    mixture = is_mixture(model)
    dense = not mixture or model.first_k_dense_replace > 0
    met = experts_met(model) if mixture else 1
    if not dense and hasattr(model, "experts"):
        model = replace(model, intermediate_size=None)  # no layer uses it

    def sized(width: int) -> Any:
        if not mixture:
            return replace(model, intermediate_size=width)
        beside = {"intermediate_size": width * met} if dense else {}
        return replace(model, moe_intermediate_size=width, **beside)

    # A class of the user's may read no width: no width would then meet the target.
    if quantity(sized(WIDTH_STEP)) == quantity(sized(2 * WIDTH_STEP)):
        return Solved(model, {}, quantity(model), quantity(model) / target - 1)
    best = sized(nearest(lambda width: quantity(sized(width)), target))
    if mixture and dense:
        even = best.intermediate_size

        def tuned(width: int) -> Any:
            return replace(best, intermediate_size=width)

        width = nearest(lambda width: quantity(tuned(width)), target)
        if abs(width - even) <= FREE_WIDTH * even:
            best = tuned(width)
    names = ["moe_intermediate_size"] if mixture else []
    names += ["intermediate_size"] if dense else []
    value = quantity(best)
    return Solved(best, {name: getattr(best, name) for name in names}, value, value / target - 1)


def experts_met(model: Any) -> int:
    """Experts that compute for one token."""
    routed = {"soft": model.n_routed_experts, "expert_choice": round(getattr(model, "capacity_factor", 0))}
    return int(routed.get(getattr(model, "experts", ""), model.num_experts_per_tok) + model.n_shared_experts)


def is_mixture(model: Any) -> bool:
    """Whether some of the model's layers have experts."""
    if getattr(model, "experts", "sigmoid-bias") == "none" or not hasattr(model, "n_routed_experts"):
        return False
    return bool(model.first_k_dense_replace < model.num_hidden_layers)


def nearest(quantity: Callable[[int], float], target: float) -> int:
    """The multiple of WIDTH_STEP at which a growing quantity comes nearest to the target."""
    low, high = 1, 2
    while quantity(high * WIDTH_STEP) < target and high < 1 << 20:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if quantity(middle * WIDTH_STEP) < target else (low, middle)
    return WIDTH_STEP * min((low, high), key=lambda n: abs(quantity(n * WIDTH_STEP) - target))


def solve_size(model: Any, quantity: Callable[[Any], float], target: float) -> Solved:
    """Change the baseline's size: its feed-forward width if a small change is enough, else hidden size and width."""
    width = model.moe_intermediate_size if is_mixture(model) else natural_width(model)
    found = solve_width(model, quantity, target)
    # A class of the user's may read no width, and then none is solved for.
    solved = found.changes.get("moe_intermediate_size" if is_mixture(model) else "intermediate_size", width)
    if abs(found.gap) <= TOLERANCE and abs(solved - width) <= FREE_WIDTH * width:
        return found
    unit = 2 * model.num_attention_heads
    candidates = [with_hidden_size(model, hidden) for hidden in range(unit, 16 * model.hidden_size, unit)]
    best = min(candidates, key=lambda one: abs(quantity(one) - target))
    found = solve_width(best, quantity, target)
    return replace(found, changes={"hidden_size": best.hidden_size, **found.changes})


def natural_width(model: Any) -> int:
    """The width of a dense feed-forward layer, as configured or by default."""
    if model.intermediate_size is not None:
        return int(model.intermediate_size)
    gated = getattr(model, "feed_forward", "gelu") == "swiglu"
    return -(-8 * model.hidden_size // 24) * 8 if gated else 4 * model.hidden_size


def with_hidden_size(model: Any, hidden: int) -> Any:
    """The model with another hidden size and feed-forward widths in proportion."""
    share = hidden / model.hidden_size

    def scaled(width: int) -> int:
        return max(WIDTH_STEP, WIDTH_STEP * round(width * share / WIDTH_STEP))

    changed = replace(model, hidden_size=hidden, intermediate_size=scaled(natural_width(model)))
    if is_mixture(model):
        changed = replace(changed, moe_intermediate_size=scaled(model.moe_intermediate_size))
    return changed
