"""Optimizers of libraries by name, and plugged ones: what is passed on, what is refused, and that each resumes."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import pytest
import torch
from conftest import TINY_GPT, TINY_KIMI
from torch import nn

from nanokimi.config import OptimConfig
from nanokimi.errors import UserError
from nanokimi.model.build import build_model
from nanokimi.optim import named
from nanokimi.optim.build import build_optimizer
from nanokimi.optim.named import class_arguments, find_class, require_optimizer
from nanokimi.optim.third_party_state import pack, unpack_
from nanokimi.runtime.plugins import load_plugin


def complaint(optim: OptimConfig) -> str:
    with pytest.raises(UserError) as caught:
        require_optimizer(optim)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- finding


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("torch:nadm", ["torch has no optimizer nadm", "nearest is torch:NAdam"]),
        ("torch:adamw", ["nearest is torch:AdamW"]),
        ("torch:Optimizer", ["no optimizer Optimizer"]),
        ("torch:lr_scheduler", ["no optimizer lr_scheduler"]),
        ("torch:zzz", ["there are ASGD, Adadelta"]),
        ("torch:LBFGS", ["closure"]),
        ("torch:SparseAdam", ["does not support dense gradients"]),
        ("torch:Muon", ["only supports 2D parameters"]),
        ("mine.py:Mine", ["--plugin path/to/mine.py:Mine"]),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(name: str, parts: list[str]) -> None:
    message = complaint(OptimConfig(name=name, weight_decay=0.0))
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("Lionn", "nearest is pytorch-optimizer:Lion"),
        ("SophiaH", "does not require grad"),
        ("ScheduleFreeAdamW", "train() and eval()"),
        ("AliG", "no lr"),
        ("Ranger21", "num_iterations"),
        ("LOMO", "cannot train a model here"),
    ],
)
def test_what_the_library_has_but_no_step_here_can_use(name: str, part: str) -> None:
    pytest.importorskip("pytorch_optimizer")
    assert part in complaint(OptimConfig(name=f"pytorch-optimizer:{name}", weight_decay=0.0))


def test_a_missing_library_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(named, "import_module", missing)
    assert "pip install -c constraints.txt -e '.[optimizers]'" in complaint(
        OptimConfig(name="pytorch-optimizer:Lion")
    )


FIRST_ORDER = ["ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam"]


@pytest.mark.parametrize("name", [*FIRST_ORDER, "RMSprop", "Rprop", "SGD"])
def test_torchs_first_order_optimizers_train_a_model(name: str) -> None:
    decoupled = name in ("Adafactor", "Adam", "AdamW", "NAdam", "RAdam")
    optim = OptimConfig(name=f"torch:{name}", lr=1e-3, weight_decay=0.1 if decoupled else 0.0)
    model = build_model(TINY_KIMI, 0)
    optimizer = build_optimizer(model, optim, 2)
    assert type(optimizer) is getattr(torch.optim, name)
    ids = torch.arange(32)[None]
    model(ids).logits_BTW.square().mean().backward()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# ---- arguments


def test_settings_reach_the_class() -> None:
    optim = OptimConfig(
        name="torch:NAdam",
        lr=3e-3,
        betas=(0.7, 0.8),
        eps=1e-6,
        weight_decay=0.3,
        options={"momentum_decay": 0.01},
    )
    optimizer = build_optimizer(build_model(TINY_GPT, 0), optim, 2)
    decayed, kept = optimizer.param_groups
    for group in (decayed, kept):
        assert (group["lr"], group["peak_lr"], group["betas"]) == (3e-3, 3e-3, (0.7, 0.8))
        assert (group["eps"], group["momentum_decay"]) == (1e-6, 0.01)
        assert group["decoupled_weight_decay"] is True
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert all(p.dim() < 2 for p in kept["params"]) and all(p.dim() >= 2 for p in decayed["params"])
    sgd = build_optimizer(
        build_model(TINY_GPT, 0),
        OptimConfig(
            name="torch:SGD", momentum=0.6, nesterov=False, weight_decay=0.0, options={"dampening": 0.2}
        ),
        2,
    )
    group = sgd.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["dampening"]) == (0.6, False, 0.2)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (
            dict(name="torch:SGD", options={"dampning": 1.0}),
            ["optim.options.dampning", "nearest is dampening"],
        ),
        (dict(name="torch:SGD", options={"lr": 1.0}), ["optim.options.lr", "momentum, dampening"]),
        (dict(name="torch:SGD", weight_decay=0.0, betas=(0.5, 0.6)), ["optim.betas has no effect"]),
        (dict(name="torch:SGD", weight_decay=0.0, eps=1e-3), ["optim.eps has no effect"]),
        (dict(name="torch:NAdam", momentum=0.5), ["optim.momentum has no effect"]),
        (dict(name="torch:NAdam", eps=1e-3, options={"eps": 1e-4}), ["optim.eps and optim.options.eps"]),
        (dict(name="torch:SGD"), ["no decoupled weight decay", "set it to 0", "options.weight_decay"]),
        (dict(name="torch:Rprop"), ["no decoupled weight decay", "set it to 0"]),
        (
            dict(name="torch:SGD", weight_decay=0.0, options={"dampening": "much"}),
            ["cannot train a model here"],
        ),
        (dict(name="torch:NAdam", lr=1e30), ["not finite"]),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], parts: list[str]) -> None:
    message = complaint(OptimConfig(**settings))
    assert all(part in message for part in parts), message


def test_an_arms_own_defaults_are_no_wish_of_the_users() -> None:
    """NanoGPT's betas are not those of OptimConfig."""
    require_optimizer(OptimConfig(name="torch:SGD", betas=(0.9, 0.99), weight_decay=0.0))


def test_decay_is_decoupled_wherever_the_class_can() -> None:
    """A gradient of zero and a first step leave 1 - lr * decay of the weights, as AdamW does."""
    names = ["torch:Adam", "torch:NAdam", "torch:RAdam", "torch:AdamW", "torch:Adafactor"]
    for name in names:
        p = nn.Parameter(torch.ones(3, 3))
        optim = OptimConfig(name=name, lr=0.1, weight_decay=0.5)
        optimizer = named.build_third_party([{"params": [p]}], optim)
        p.grad = torch.zeros(3, 3)
        optimizer.step()
        torch.testing.assert_close(p.detach(), torch.full((3, 3), 0.95), msg=name)


# ---- a class of one's own


@pytest.fixture(autouse=True)
def plugged(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this file's classes had been named with --plugin my.py:NAME."""

    def load(name: str) -> type:
        return globals()[name.rpartition(":")[2]] if name.startswith("my.py:") else load_plugin(name)

    monkeypatch.setattr(named, "load_plugin", load)


class Mine(torch.optim.Optimizer):
    """Plain descent."""

    def __init__(self, params: Any, lr: float = 0.1, scale: float = 1.0) -> None:
        super().__init__(params, dict(lr=lr, scale=scale))

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(self.direction(p), alpha=group["lr"] * group["scale"])

    def direction(self, p: torch.Tensor) -> torch.Tensor:
        assert p.grad is not None
        return p.grad


class Deaf(Mine):
    """Seed 3's "Muon", in its essence: it moves, but not because of the gradient."""

    def direction(self, p: torch.Tensor) -> torch.Tensor:
        return p


class Forgetful(Mine):
    """Counts its steps outside of its state."""

    calls = 0

    def direction(self, p: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().direction(p) / self.calls


class Broken(Mine):
    def direction(self, p: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("line one\nline two")


def test_a_plugged_class_is_built_with_its_options() -> None:
    optim = OptimConfig(name="my.py:Mine", lr=0.5, weight_decay=0.0, options={"scale": 2.0})
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = named.build_third_party([{"params": [p], "weight_decay": 0.0}], optim)
    p.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(p, torch.zeros(2, 2))
    built = build_optimizer(build_model(TINY_GPT, 0), optim, 2)
    assert isinstance(built, Mine) and {g["peak_lr"] for g in built.param_groups} == {0.5}


@pytest.mark.parametrize(
    ("cls", "part"),
    [
        (Deaf, "ignores the gradient"),
        (Forgetful, "does not hold all of its state"),
        (Broken, "RuntimeError: line one line two"),
    ],
)
def test_a_plugged_class_that_is_no_optimizer_is_found_out(cls: type, part: str) -> None:
    assert part in complaint(OptimConfig(name=f"my.py:{cls.__name__}", weight_decay=0.0))


def test_a_class_that_is_no_optimizer_is_refused() -> None:
    assert "not a torch.optim.Optimizer" in complaint(OptimConfig(name="my.py:OptimConfig"))


def test_the_trial_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    require_optimizer(OptimConfig(name="torch:NAdam"))
    assert torch.equal(torch.rand(4), expected)


def test_own_optimizers_need_no_trial() -> None:
    require_optimizer(OptimConfig())
    assert find_class("torch:NAdam") is torch.optim.NAdam
    assert (
        class_arguments(torch.optim.SGD, OptimConfig(name="torch:SGD", weight_decay=0.0))["momentum"] == 0.95
    )


# ---- state


class Hoarder(Mine):
    """Keeps whatever libraries keep: lists, turned matrices, deques, text, infinities, counters in groups."""

    def direction(self, p: torch.Tensor) -> torch.Tensor:
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["list"] = [torch.zeros_like(p), None, ()]
            state["turned"] = torch.zeros_like(p).mT if p.dim() > 1 else torch.zeros_like(p)
            state["last"] = deque([1.0], maxlen=2)
            state["least"] = float("inf")
            state["word"], state["count"], state["half"] = "x", 0, torch.zeros(2, dtype=torch.bfloat16)
            state[0.9] = torch.zeros_like(p, dtype=torch.float64)
        state["count"] += 1
        state["list"][0] += p.grad
        state["turned"] += p.grad.mT if p.dim() > 1 else p.grad
        state["last"].append(float(p.grad.sum()))
        state["least"] = min(state["least"], float(p.grad.norm()))
        state["half"] += 0.3
        state[0.9] += 0.1 * p.grad
        group = self.param_groups[0]
        group["seen"] = group.get("seen", 0) + 1
        turned = state["turned"].mT if p.dim() > 1 else state["turned"]
        more = sum(state["last"]) + state["least"] + float(state["half"].sum()) + group["seen"]
        return state["list"][0] + turned + state[0.9].float() * more


def test_any_plain_state_survives_json() -> None:
    start = [torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.ones(5)]

    def fresh(values: list[torch.Tensor]) -> tuple[list[nn.Parameter], Hoarder]:
        parameters = [nn.Parameter(v.clone()) for v in values]
        return parameters, Hoarder(parameters, lr=1e-3)

    def go_on(parameters: list[nn.Parameter], optimizer: Hoarder, steps: range) -> None:
        for step in steps:
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()

    whole, optimizer = fresh(start)
    go_on(whole, optimizer, range(4))
    tensors, tree = pack(optimizer)
    tree = json.loads(json.dumps(tree, allow_nan=False))
    stopped = [p.detach().clone() for p in whole]
    go_on(whole, optimizer, range(4, 9))
    resumed, other = fresh(stopped)
    unpack_(other, tensors, tree, frozenset())
    state = other.state[resumed[0]]
    assert (
        type(state["last"]) is deque and state["last"].maxlen == 2 and state["half"].dtype == torch.bfloat16
    )
    assert state["turned"].stride() == (1, 4) and state["list"][1:] == [None, ()]
    go_on(resumed, other, range(4, 9))
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    require_optimizer(OptimConfig(name="my.py:Hoarder", weight_decay=0.0))


def test_resumed_groups_keep_what_is_configured_now() -> None:
    """Rates and options may have been changed with --allow-changes; counters are the stored ones."""
    p = nn.Parameter(torch.ones(3))
    old = Hoarder([p], lr=1.0, scale=3.0)
    p.grad = torch.ones(3)
    old.step()
    tensors, tree = pack(old)
    new = Hoarder([p], lr=0.1, scale=5.0)
    unpack_(new, tensors, tree, frozenset(["scale"]))
    group = new.param_groups[0]
    assert (group["lr"], group["scale"], group["seen"]) == (0.1, 5.0, 1)


def test_state_that_does_not_fit_is_refused() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = Hoarder([p])
    p.grad = torch.ones(3)
    optimizer.step()
    tensors, tree = pack(optimizer)
    other = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="1 parameter groups, not 2"):
        unpack_(Hoarder([{"params": [p]}, {"params": [other]}]), tensors, tree, frozenset())
    two = Hoarder([p, other])
    other.grad = torch.ones(3)
    two.step()
    tensors, tree = pack(two)
    with pytest.raises(ValueError, match="does not have"):
        unpack_(Hoarder([p]), tensors, tree, frozenset())
    with pytest.raises(KeyError):
        unpack_(Hoarder([p, other]), {}, tree, frozenset())
    optimizer.state[p]["thing"] = object()
    with pytest.raises(ValueError, match="of type object"):
        pack(optimizer)
