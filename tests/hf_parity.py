"""Hugging Face models with the weights of ours: an independent implementation to compare logits and gradients with.

Two correct implementations differ by their rounding, which is another on every processor: a bound on that difference
is a guess. So both also run wholly in float64, where they agree to many digits or compute different things, and that
tells how far each one's fp32 is off.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, GPT2Config, GPT2LMHeadModel

from nanokimi.config import KimiConfig
from nanokimi.interop.deepseek import EXPERT, deepseek_config, to_deepseek
from nanokimi.interop.gpt2 import CONV1D, gpt2_config, to_gpt2
from nanokimi.model.gpt import NanoGPT
from nanokimi.model.kimi import NanoKimi

Tensors = dict[str, torch.Tensor]
Model = TypeVar("Model", NanoKimi, NanoGPT)
EPS = torch.finfo(torch.float32).eps
SAME = 1e-10
"""Relative difference in float64 below which two implementations compute the same: 500,000 of its roundings."""
SLACK = 8.0
"""Times the reference's own rounding error. Either is random: over the 24 models of test_kimi.py, each under five
roundings (rounding.py), every tensor of ours was at most 3.3 times as far off as theirs, in the median 0.94 times."""
ALWAYS_ALLOWED = 16 * EPS
"""Errors that are always granted: a tensor of few numbers may be hit exactly by chance, never reliably."""


def stock_config(config: KimiConfig) -> DeepseekV3Config:
    """What DeepseekV3ForCausalLM is made from to be a NanoKimi."""
    return DeepseekV3Config(**deepseek_config(config), bos_token_id=None, eos_token_id=None)


def deepseek_reference(model: NanoKimi) -> DeepseekV3ForCausalLM:
    """DeepseekV3ForCausalLM with the weights of `model`; every tensor of either side has its counterpart."""
    reference = DeepseekV3ForCausalLM(stock_config(model.config))
    reference.set_experts_implementation("eager")
    reference.load_state_dict(fused(to_deepseek(model.state_dict(), model.config)))
    return reference.train(model.training)


def fused(tensors: Tensors) -> Tensors:
    """The tensors of a folder with the experts stacked, gate and up in one, as transformers 5 holds them in memory."""
    weights, stacks = {}, {}
    for name, tensor in tensors.items():
        if found := EXPERT.fullmatch(name):
            stacks.setdefault(found[1], {}).setdefault(found[3], []).append(tensor)
        else:
            weights[name] = tensor
    for stem, by_name in stacks.items():
        gate, up, down = (torch.stack(by_name[name]) for name in ("gate_proj", "up_proj", "down_proj"))
        weights[stem + "gate_up_proj"], weights[stem + "down_proj"] = torch.cat((gate, up), dim=1), down
    return weights


def deepseek_gradients(reference: DeepseekV3ForCausalLM) -> Tensors:
    """The gradients under our parameter names."""
    gradients = {}
    for name, parameter in reference.named_parameters():
        if parameter.numel() == 0:
            continue
        if name.endswith("gate_up_proj"):
            stem = name.removesuffix("gate_up_proj")
            gradients[stem + "gate_proj"], gradients[stem + "up_proj"] = parameter.grad.chunk(2, dim=1)
        else:
            gradients[name] = parameter.grad
    return gradients


def gpt2_reference(model: NanoGPT) -> GPT2LMHeadModel:
    """GPT2LMHeadModel with the weights of `model`; biases that ours lacks are zero."""
    special = {"bos_token_id": None, "eos_token_id": None}
    reference = GPT2LMHeadModel(GPT2Config(**gpt2_config(model.config), **special))
    weights = to_gpt2(model.state_dict())
    reference.load_state_dict(weights | {"lm_head.weight": weights["transformer.wte.weight"]})
    return reference.train(model.training)


def gpt2_gradients(reference: GPT2LMHeadModel) -> Tensors:
    """The gradients under our parameter names, those of biases that ours may lack included."""
    return {
        name: parameter.grad.t() if name.endswith(CONV1D) else parameter.grad
        for name, parameter in reference.named_parameters()
    }


class InFloat64(TorchFunctionMode):
    """Within, whatever code asks for in fp32 or bf16, or leaves to the default, is float64 instead."""

    narrow = (torch.float32, torch.bfloat16)

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.Tensor.float, torch.Tensor.bfloat16):
            return args[0].double().clone()  # a copy, as the conversion makes, which its caller may overwrite
        wide = [torch.float64 if a in self.narrow else a for a in map(self.of_dtype, args)]
        args = tuple(w if w is not None else a for w, a in zip(wide, args, strict=True))
        kwargs = {
            k: torch.float64 if self.of_dtype(v) in self.narrow else v for k, v in (kwargs or {}).items()
        }
        return func(*args, **kwargs)

    @staticmethod
    def of_dtype(value: object) -> torch.dtype | None:
        """The value if it is a dtype."""
        return value if isinstance(value, torch.dtype) else None

    def __enter__(self) -> Any:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.set_default_dtype(self.before)


def same_function(ours: Tensors, theirs: Tensors, ours_exact: Tensors, theirs_exact: Tensors) -> None:
    """In float64 both agree; in fp32 our error against that is of the size of theirs.

    Tensors that are exactly zero on one side are so on all. All four have the same names.
    """
    assert ours.keys() == theirs.keys() == ours_exact.keys() == theirs_exact.keys()
    for name, exact in theirs_exact.items():
        if not exact.any():
            assert not ours[name].any() and not ours_exact[name].any(), name
            continue
        assert exact.dtype == ours_exact[name].dtype == torch.float64, name
        difference = relative_error(ours_exact[name], exact)
        assert difference <= SAME, f"{name}: {difference:.1e} in float64"
        rounds_no_worse(ours[name], theirs[name], exact, name)


def rounds_no_worse(
    found: torch.Tensor, reference: torch.Tensor, exact: torch.Tensor, name: str = "error"
) -> None:
    """In fp32, what was found is no farther from the exact values than a few times what a reference is."""
    assert exact.dtype == torch.float64
    mine, allowed = relative_error(found, exact), SLACK * relative_error(reference, exact) + ALWAYS_ALLOWED
    assert mine <= allowed, f"{name}: {mine:.1e}, where {allowed:.1e} is allowed"


def wide_copy(model: Model) -> Model:
    """The same model in float64 from the weights to the rotary tables; call it within InFloat64, too."""
    with InFloat64():
        copy = type(model)(model.config)
        copy.load_state_dict({name: tensor.double() for name, tensor in model.state_dict().items()})
    return copy.train(model.training)


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """||a - b|| / ||b||, in float64."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())
