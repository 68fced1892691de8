"""First-order optimizers of torch.optim and of pytorch-optimizer by name, and a user's own class.

Such a class is tested before it trains anything. Steps on a few small parameters show whether it works with a plain
`step()`, uses the gradient, and resumes exactly from its state.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from nanokimi.config import GPTFamily, KimiFamily, OptimConfig
from nanokimi.errors import UserError
from nanokimi.optim.third_party_state import pack, unpack_
from nanokimi.runtime.extras import how_to_install
from nanokimi.runtime.plugins import load_plugin
from nanokimi.runtime.text import one_line

# torch's optimizers whose weight decay is added to the gradient.
COUPLED = ("SGD", "RMSprop", "Adagrad", "Adadelta", "ASGD", "Adamax")
DECOUPLING = ("decoupled_weight_decay", "weight_decouple")  # names of the option in libraries
SHARED = ("betas", "eps", "momentum", "nesterov")  # settings of OptimConfig, for classes that have them
TRIAL_STEPS = 11  # taken twice, because some do something else every tenth step

Optimizer = type[torch.optim.Optimizer]
Groups = list[dict[str, Any]]


def build_third_party(groups: Groups, optim: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer that `optim` names, after a test. A group without `weight_decay` gets that of `optim`.

    Raises UserError if the class does not exist, does not take a setting, or cannot train a model here.
    """
    cls = find_class(optim.name)
    closure = inspect.signature(cls.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UserError(
            f"optim.name {optim.name} computes the loss several times within a step (a closure), but here a step "
            "computes it once"
        )
    arguments = class_arguments(cls, optim)

    def make(members: Groups) -> torch.optim.Optimizer:
        if "weight_decay" not in arguments:
            members = [{key: group[key] for key in group if key != "weight_decay"} for group in members]
        return cls(members, **arguments)

    try_out(make, optim)
    return make(groups)


def require_optimizer(optim: OptimConfig) -> None:
    """Raise the UserError that `build_third_party` would raise, before anything else is done."""
    if optim.third_party:
        build_third_party([{"params": [nn.Parameter(torch.zeros(2, 2))]}], optim)


def find_class(name: str) -> Optimizer:
    """The class with a name such as torch:NAdam. Raises UserError with the nearest name if there is none."""
    library, _, wanted = name.rpartition(":")
    if library.endswith(".py"):
        found = load_plugin(name)
        if not _is_optimizer(found):
            raise UserError(f"optim.name {name}: the class is not a torch.optim.Optimizer")
        return found
    known = {n: c for n, c in vars(library_module(library)).items() if _is_optimizer(c)}
    if wanted not in known:
        lower = {n.lower(): n for n in known}
        close = difflib.get_close_matches(wanted.lower(), lower, n=1)
        hint = f"there are {', '.join(sorted(known))}"
        if close:
            hint = f"the nearest is {library}:{lower[close[0]]}"
        raise UserError(f"optim.name is {name}: {library} has no optimizer {wanted}; {hint}")
    return known[wanted]


def library_module(library: str) -> Any:
    """torch.optim or pytorch_optimizer. Raises UserError if the latter is not installed."""
    if library == "torch":
        return torch.optim
    try:
        return import_module("pytorch_optimizer")
    except ImportError:
        raise UserError(
            f"optimizers named pytorch-optimizer:NAME need that library: {how_to_install('optimizers')}"
        ) from None


def _is_optimizer(value: Any) -> bool:
    return (
        isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
        and not inspect.isabstract(value)
    )


def class_arguments(cls: Optimizer, optim: OptimConfig) -> dict[str, Any]:
    """Keyword arguments for the class: the rate, those settings of OptimConfig that it has, and `options`.

    Raises UserError for an unknown option, and for a changed setting that the class does not have.
    """
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    options = dict(optim.options)
    for name in options:
        if name in ("self", "params", "lr") or name not in known:
            others = [key for key in known if key not in ("self", "params", "lr")]
            close = difflib.get_close_matches(name, others, n=1)
            hint = f"the nearest is {close[0]}" if close else f"it takes {', '.join(others)}"
            raise UserError(f"optim.options.{name}: {optim.name} has no such option; {hint}")
    if "lr" not in known:
        raise UserError(f"optim.name {optim.name}: the class takes no lr, which the schedule would set")
    arguments: dict[str, Any] = {"lr": optim.lr}
    for name in SHARED:
        value = getattr(optim, name)
        if name in options:
            if _is_changed(name, value):
                raise UserError(f"optim.{name} and optim.options.{name} are both given: leave one out")
        elif name in known and _alike(known[name], value):
            arguments[name] = value
        elif _is_changed(name, value):
            raise UserError(f"optim.{name} has no effect with {optim.name}: leave it out")
    return arguments | decay_arguments(cls, optim, known) | options


def decay_arguments(cls: Optimizer, optim: OptimConfig, known: dict[str, Any]) -> dict[str, Any]:
    """Decoupled weight decay. Raises UserError if it is wanted and the class has none."""
    if "weight_decay" in optim.options:
        return {}
    switches = {name: True for name in DECOUPLING if name in known and name not in optim.options}
    coupled = cls.__name__ in COUPLED and cls.__module__.startswith("torch.optim")
    if "weight_decay" in known and not coupled:
        return {"weight_decay": optim.weight_decay} | switches
    if optim.weight_decay != 0:
        other = "; for decay added to the gradient, also set options.weight_decay" if coupled else ""
        raise UserError(
            f"optim.weight_decay is {optim.weight_decay}: {optim.name} has no decoupled weight decay; set it to 0"
            + other
        )
    return {}


def _alike(default: Any, value: Any) -> bool:
    """Whether a default of the class is of the same kind as the setting."""
    if isinstance(value, tuple):
        return isinstance(default, tuple | list) and len(default) == len(value)
    if isinstance(value, bool):
        return isinstance(default, bool)
    return isinstance(default, int | float) and not isinstance(default, bool)


def _is_changed(name: str, value: Any) -> bool:
    """Whether a setting differs from the defaults of all arms, so that the user must have set it."""
    return all(
        value != getattr(defaults, name)
        for defaults in (OptimConfig(), KimiFamily().optim, GPTFamily().optim)
    )


def try_out(make: Callable[[Groups], torch.optim.Optimizer], optim: OptimConfig) -> None:
    """Test the optimizer on a matrix, a stack and a vector. Raises UserError if it cannot be used here."""
    with torch.random.fork_rng(devices=[]):
        try:
            problem = _trial(make, frozenset(optim.options))
        except Exception as error:  # third-party code may raise anything
            problem = f"{type(error).__name__}: {one_line(error)}".rstrip(": ")
    if problem is not None:
        raise UserError(f"optim.name {optim.name} cannot train a model here: {problem}")


def _trial(make: Callable[[Groups], torch.optim.Optimizer], options: frozenset[str]) -> str | None:
    whole, groups = _trial_parameters()
    optimizer = make(groups)
    if callable(getattr(optimizer, "eval", None)) and callable(getattr(optimizer, "train", None)):
        return (
            "it uses different weights in evaluation (train() and eval()), and nanokimi would not switch them"
        )
    _take_steps(optimizer, whole, range(TRIAL_STEPS))
    tensors, tree = pack(optimizer)
    middle = [p.detach().clone() for p in whole]
    _take_steps(optimizer, whole, range(TRIAL_STEPS, 2 * TRIAL_STEPS))
    if not all(p.isfinite().all() for p in whole):
        return "its first steps end in numbers that are not finite"

    other, other_groups = _trial_parameters()
    _take_steps(make(other_groups), other, range(1000, 1000 + 2 * TRIAL_STEPS))
    if any(torch.equal(a, b) for a, b in zip(whole, other, strict=True)):
        return "it ignores the gradient: two different ones move some parameter alike"

    resumed, resumed_groups = _trial_parameters(middle)
    optimizer = make(resumed_groups)
    unpack_(optimizer, tensors, tree, options)
    _take_steps(optimizer, resumed, range(TRIAL_STEPS, 2 * TRIAL_STEPS))
    if not all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True)):
        return "its state_dict() does not hold all of its state, so a resumed run would differ"
    return None


def _trial_parameters(values: Iterable[torch.Tensor] | None = None) -> tuple[list[nn.Parameter], Groups]:
    """Parameters, and two groups of them as a model would have."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 4), (2, 4, 3), (5,))
    # Small, because the first steps of some optimizers would be lost in the rounding of numbers near 1.
    start = values or [1e-3 * torch.randn(shape, generator=generator) for shape in shapes]
    matrix, stack, vector = (nn.Parameter(value.clone()) for value in start)
    groups: Groups = [{"params": [matrix, stack]}, {"params": [vector], "weight_decay": 0.0}]
    return [matrix, stack, vector], groups


def _take_steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: range) -> None:
    """Steps with gradients and random numbers that depend on the number of the step alone."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        torch.manual_seed(step)
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
