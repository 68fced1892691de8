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
# Stored transposed.
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def deepseek_config(config: KimiConfig) -> DeepseekV3Config:
    """Our configuration in DeepSeek-V3's class, whose defaults (groups, multi-token prediction) are the big model's."""
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        yarn = config.rope_scaling
        rope |= {
            "rope_type": "yarn",
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_max_position_embeddings,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "mscale": yarn.mscale,
            "mscale_all_dim": yarn.mscale_all_dim,
        }
    return DeepseekV3Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        moe_intermediate_size=config.moe_intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_attention_heads,
        n_shared_experts=config.n_shared_experts,
        n_routed_experts=config.n_routed_experts,
        routed_scaling_factor=config.routed_scaling_factor,
        q_lora_rank=config.q_lora_rank,
        kv_lora_rank=config.kv_lora_rank,
        qk_nope_head_dim=config.qk_nope_head_dim,
        qk_rope_head_dim=config.qk_rope_head_dim,
        v_head_dim=config.v_head_dim,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=config.num_experts_per_tok,
        first_k_dense_replace=config.first_k_dense_replace,
        norm_topk_prob=config.norm_topk_prob,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=1e-6,
        rope_parameters=rope,
        rope_interleave=True,
        num_nextn_predict_layers=0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )


def deepseek_reference(model: NanoKimi) -> DeepseekV3ForCausalLM:
    """DeepseekV3ForCausalLM with the weights of `model`; every tensor of either side has its counterpart."""
    reference = DeepseekV3ForCausalLM(deepseek_config(model.config))
    reference.set_experts_implementation("eager")
    ours, weights = model.state_dict(), {}
    for name, tensor in ours.items():
        if name.endswith("experts.gate_proj"):
            stem = name.removesuffix("gate_proj")
            weights[stem + "gate_up_proj"] = torch.cat((tensor, ours[stem + "up_proj"]), dim=1)
        elif not name.endswith("experts.up_proj"):
            weights[name] = tensor
    if model.config.n_shared_experts == 0:  # theirs are matrices without a single number, ours are absent
        weights |= {n: t for n, t in reference.state_dict().items() if "shared_experts" in n}
    reference.load_state_dict(weights)
    return reference.train(model.training)


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
    config = model.config
    reference = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.max_position_embeddings,
            n_embd=config.hidden_size,
            n_layer=config.num_hidden_layers,
            n_head=config.num_attention_heads,
            n_inner=config.intermediate_size,
            activation_function="gelu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            layer_norm_epsilon=config.layer_norm_epsilon,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    ours = {n: t.t().contiguous() if n.endswith(CONV1D) else t for n, t in model.state_dict().items()}
    missing = {n: torch.zeros_like(t) for n, t in reference.state_dict().items() if n not in ours}
    assert all(name.endswith(".bias") for name in missing) and not (config.bias and missing)
    reference.load_state_dict(ours | missing)
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
