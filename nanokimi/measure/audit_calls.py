"""How the audit calls a module: always a fresh copy, with the same seeds, in any mode, in fp32 or float64.

Whatever a call changes (counters, caches, running statistics, random generators) is discarded with the copy, so two
calls differ by their ids alone. If two calls with equal ids differ, the module is not deterministic.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from nanokimi.measure.audit_double import Precision
from nanokimi.measure.audit_draws import Draws

Call = Callable[[nn.Module, torch.Tensor], object]

ZERO_FILL = 0.02
"""Standard deviation of the numbers that replace all-zero parameters, as in GPT-2's initialisation."""


@dataclass(frozen=True)
class Mode:
    """The mode in which a module is called."""

    training: bool
    gradients: str
    """One of inference_mode, no_grad and gradients on."""

    def __str__(self) -> str:
        return f"{'training' if self.training else 'evaluation'} mode, {self.gradients}"

    def context(self) -> AbstractContextManager[object]:
        """The gradients' part of the mode."""
        if self.gradients == "inference_mode":
            return torch.inference_mode()
        return torch.set_grad_enabled(self.gradients == "gradients on")


class Clones(TorchFunctionMode):
    """Lets a module use tensors made in inference mode: a function that caches its result keeps them for every mode."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a function with clones of such tensors."""
        args, kwargs = tree_map_only(
            torch.Tensor, lambda one: one.clone() if one.is_inference() else one, (args, kwargs or {})
        )
        return func(*args, **kwargs)


def is_ours(module: nn.Module) -> bool:
    """Whether all classes of a module are torch's or ours, which keep their state in parameters and buffers."""
    classes = {type(part).__module__.partition(".")[0] for part in module.modules()}
    return classes <= {"torch", "nanokimi"}


@dataclass
class Copy:
    """A copy of a module of known classes, restored before each call because copying takes longer than a call."""

    module: nn.Module
    tensors: list[torch.Tensor]
    """Its parameters and buffers."""
    originals: list[torch.Tensor]
    parts: list[nn.Module]

    @classmethod
    def of(cls, module: nn.Module, dtype: torch.dtype) -> Copy:
        """A copy of `module` in `dtype`."""
        copied = copy_in(module, dtype)
        return cls(copied, tensors_of(copied), tensors_of(module), list(copied.modules()))

    @torch.no_grad()
    def restored(self, training: bool) -> nn.Module:
        """The copy, with the parameters and buffers of the original."""
        for tensor, original in zip(self.tensors, self.originals, strict=True):
            tensor.copy_(original)
        for part in self.parts:
            if part.training != training:
                part.training = training
        return self.module


def tensors_of(module: nn.Module) -> list[torch.Tensor]:
    """A module's parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


@dataclass
class Subject:
    """A module that is audited. Only copies of it are called."""

    module: nn.Module
    call: Call
    seed: int
    calls: int = 0
    tokens: int = 0
    copies: dict[torch.dtype, Copy] = field(default_factory=dict)
    clones: bool = False
    """Whether the module uses tensors made in inference mode outside of it, too."""

    @property
    def device(self) -> torch.device:
        """The device of its parameters."""
        return device_of(self.module)

    def copy(self, dtype: torch.dtype, training: bool) -> nn.Module:
        """A copy without any trace of an earlier call."""
        if dtype in self.copies:
            return self.copies[dtype].restored(training)
        if not is_ours(self.module):
            return copy_in(self.module, dtype).train(training)
        self.copies[dtype] = Copy.of(self.module, dtype)
        return self.copies[dtype].restored(training)

    def logits(
        self,
        ids_BT: torch.Tensor,
        mode: Mode,
        *,
        draw: int = 0,
        before: Sequence[torch.Tensor] = (),
        dtype: torch.dtype = torch.float32,
        jitter: tuple[float, int] | None = None,
        filled: bool = False,
        in_turn: bool = False,
        precision: Precision | None = None,
        draws: Draws | None = None,
    ) -> torch.Tensor:
        """The logits (B, T, W) of a fresh copy for `ids_BT`, after calls with each of `before`.

        With `in_turn`, each row is a call of its own.

        `draw` is added to the seed. `jitter` is the relative size of random changes of all parameters, and their seed.
        With `filled`, parameters that are all zero are replaced by small numbers. `precision` watches the calls;
        `draws` notes or replaces torch's random numbers.
        """
        copied = self.copy(dtype, mode.training)
        if filled:
            fill_zeros_(copied, self.seed)
        if jitter is not None:
            jitter_(copied, *jitter)
        with mode.context():
            device = device_of(copied)
            asked = ids_BT.split(1) if in_turn else (ids_BT,)
            found = []
            for number, ids in enumerate((*before, *asked)):
                seed_everything(self.seed + draw, self.device)
                self.calls += 1
                self.tokens += ids.numel()
                # a copy, because a module that changes its ids in place would change the audit's
                own_ids = ids.to(device, copy=True)
                with ExitStack() as around:
                    for watcher in (precision, draws):
                        if watcher is not None:
                            around.enter_context(watcher.context())
                    if self.clones and mode.gradients != "inference_mode":
                        around.enter_context(Clones())
                    output = self.call(copied, own_ids)
                if number >= len(before):
                    logits_BTW = find_logits(output, ids).detach()
                    # a module may reuse the memory of its output at the next call
                    found.append(logits_BTW.clone() if in_turn else logits_BTW)
        return torch.cat(found) if in_turn else found[0]


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's parameters."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def copy_in(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A fresh copy in `dtype`, on the module's device, or on the CPU where that device has no float64 (MPS)."""
    copied = fresh_copy(module)
    if dtype == torch.float64 and device_of(module).type == "mps":
        copied = copied.cpu()
    # to(dtype) would make complex numbers real
    copied = copied.double() if dtype == torch.float64 else copied.float()
    for tensor in tensors_of(copied):
        if tensor.is_complex():
            tensor.data = tensor.data.to(dtype.to_complex())
    return copied


def fresh_copy(module: nn.Module) -> nn.Module:
    """A deep copy. Tensors with an autograd history, which some modules keep, are copied without it.

    Raises ValueError if the module holds what cannot be copied, such as a lock.
    """
    memo: dict[int, object] = {}
    for part in module.modules():
        for tensor in tensors_in(list(vars(part).values())):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    try:
        return copy.deepcopy(module, memo)
    except (TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the module cannot be copied, and only copies are audited: {reason}") from None


def tensors_in(values: Iterable[object], depth: int = 4) -> Iterator[torch.Tensor]:
    """The tensors among `values`, and in lists, tuples and dictionaries there, `depth` of them inside each other."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif depth and isinstance(value, dict | list | tuple):
            yield from tensors_in(value.values() if isinstance(value, dict) else value, depth - 1)


@torch.no_grad()
def jitter_(module: nn.Module, size: float, seed: int) -> None:
    """Change every parameter by a random share of about `size`."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device, parameter.dtype)
            parameter.mul_(1 + size * noise)


def zero_parameters(module: nn.Module) -> int:
    """How many trainable tensors hold nothing but zeros."""
    return sum(is_zero(parameter) for parameter in module.parameters())


def partly_zero_parameters(module: nn.Module) -> int:
    """How many trainable tensors hold zeros and other numbers."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return sum(not is_zero(one) and bool((one.detach() == 0).any()) for one in trained)


def is_zero(parameter: nn.Parameter) -> bool:
    """Whether a trainable tensor holds nothing but zeros."""
    trained = parameter.requires_grad and parameter.numel() > 0  # integers cannot be
    return trained and not bool(parameter.detach().any())


@torch.no_grad()
def fill_zeros_(module: nn.Module, seed: int) -> None:
    """Replace parameters that are all zero by small random numbers."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if is_zero(parameter):
            single = torch.complex64 if parameter.is_complex() else torch.float32
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=single) * ZERO_FILL)


def seed_everything(seed: int, device: torch.device) -> None:
    """Seed torch's, numpy's and Python's global generators."""
    if device.type == "cpu":  # torch.manual_seed asks for every other device, too, which takes longer
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def random_states_kept(device: torch.device) -> Iterator[None]:
    """Restore every global generator afterwards."""
    python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(of_numpy)


def default_call(module: nn.Module) -> Call:
    """Call with ids alone, or also with the next tokens as `targets`, so that a module that reads them is detected.

    A row's last target is the next row's first token, which no model may know either.
    """
    if "targets" in inspect.signature(module.forward).parameters:
        return lambda m, ids_BT: m(ids_BT, targets=ids_BT.flatten().roll(-1).view_as(ids_BT))
    return lambda m, ids_BT: m(ids_BT)


def find_logits(output: object, ids_BT: torch.Tensor) -> torch.Tensor:
    """The logits in a module's output. Raises ValueError if they do not have the shape (B, T, W)."""
    if isinstance(output, dict):
        output = output.get("logits", output.get("logits_BTW"))
    for name in ("logits_BTW", "logits"):
        output = getattr(output, name, output)
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, torch.Tensor) or output.dim() != 3 or output.shape[:2] != ids_BT.shape:
        found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(
            f"the module returned {found} for ids of shape {tuple(ids_BT.shape)}: expected (B, T, W)"
        )
    return output
