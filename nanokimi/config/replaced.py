"""Settings that an arm does not inherit, because only a part that it replaces reads them.

A setting without effect is an error. Without this module, an arm that removes the experts of the arm it is made from
would have to reset each of their settings. Settings that the arm itself names are not reset, so they are still refused.
"""

from __future__ import annotations

from typing import Any

from nanokimi.config.parsing import plain
from nanokimi.config.rules import OF_THIRD_PARTY, OPTIMIZERS
from nanokimi.config.rules_variant import is_plugin
from nanokimi.config.schema import Family, VariantFamily
from nanokimi.config.schema_optim import OptimConfig
from nanokimi.config.variant_parts import ATTENTIONS, ignored_by


def defaults_of_replaced(arm: Family, said: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The defaults of settings that have no effect once `said` has changed `arm`: {"model": {...}, "optim": {...}}."""
    model, optim = said.get("model", {}), said.get("optim", {})
    forgotten = of_optimizer(arm.optim, optim)
    found: dict[str, dict[str, Any]] = {}
    if isinstance(arm, VariantFamily):
        names = of_parts(arm, model)
        found["model"] = defaults(arm.model, names)
        if model.get("experts") == "none":
            forgotten |= {"router", "router_bias_update_speed"}
        attention = ATTENTIONS.get(model.get("attention", "mha"))
        if attention is None or not attention.split_heads:
            forgotten.add("split_heads")
    return found | {"optim": defaults(arm.optim, forgotten)}


def of_parts(arm: VariantFamily, said: dict[str, Any]) -> set[str]:
    """Settings of a variant's model that the parts replacing its own do not read."""
    names: set[str] = set()
    for part, before in (("attention", arm.model.attention), ("experts", arm.model.experts)):
        chosen = str(said.get(part, before))
        if chosen != before:
            names |= {*ignored_by(part, chosen)}
    experts = str(said.get("experts", "none"))
    dense_layers = said.get("first_k_dense_replace", arm.model.first_k_dense_replace)
    if experts not in ("none", arm.model.experts) and not is_plugin(experts) and not dense_layers:
        names.add("intermediate_size")
    if said.get("positions", "rope") != "rope":
        names.add("rope_theta")
    if said.get("initialization") in ("torch", "xavier"):
        names.add("initializer_range")
    return names


def of_optimizer(before: OptimConfig, said: dict[str, Any]) -> set[str]:
    """Settings that an optimizer replacing another one does not read."""
    names: set[str] = set()
    name = str(said.get("name", before.name))
    if name != before.name:
        read = OF_THIRD_PARTY if ":" in name else OPTIMIZERS.get(name, ())
        names |= {key for settings in (OF_THIRD_PARTY, *OPTIMIZERS.values()) for key in settings} - set(read)
    if said.get("schedule", "wsd") != "wsd":
        names.add("decay_fraction")
    return names


def defaults(group: object, names: set[str]) -> dict[str, Any]:
    """The defaults of the named settings of a group."""
    untouched = type(group)()
    return {name: plain(getattr(untouched, name)) for name in sorted(names)}
