"""Every setting of the composable model: its type, default and meaning (see `schema`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class VariantConfig:
    """A decoder composed of parts: NanoGPT with the defaults, NanoKimi with all of Kimi K2's parts.

    Changing a setting that the chosen parts do not read is an error.
    """

    vocab_size: int | None = None
    """None: the tokenizer's."""
    hidden_size: int = 128
    """Width of the residual stream (D)."""
    num_hidden_layers: int = 4
    """Blocks."""
    num_attention_heads: int = 4
    """Attention heads (H)."""
    head_dim: int | None = None
    """mha, gqa, latent: width of a head; None: hidden_size / num_attention_heads."""
    max_position_embeddings: int | None = None
    """Longest sequence; None: train.context_length."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """The norm before each attention, each feed-forward layer and the head."""
    norm_eps: float = 1e-5
    """Epsilon of every norm."""
    bias: bool = False
    """Biases in LayerNorms, in the projections of mha, gqa and latent, and in dense gelu, relu and relu2 layers."""
    qkv_bias: bool | None = None
    """mha, gqa, latent: biases of queries, keys and values; None: as bias."""
    lm_head_bias: bool = False
    """A bias for each token of the vocabulary, added to the logits."""
    dropout: float = 0.0
    """Dropout after the embedding, on both residual branches, and on the attention weights of mha and gqa."""
    positions: Literal["learned", "rope"] = "learned"
    """learned: a vector of each position is added to the embedding; rope: queries and keys rotate (mha, gqa, mla)."""
    rope_theta: float = 50000.0
    """rope: base of the rotary frequencies."""
    attention: str = "mha"
    """mha; gqa: heads share keys and values; mla: Kimi K2's; latent: learned queries pool the past into num_latents
    vectors, which is all that a token reads; or FILE.py:NAME, a class of yours named with --plugin."""
    num_key_value_heads: int | None = None
    """gqa: heads of keys and values; None: half of num_attention_heads, at least 1."""
    q_lora_rank: int | None = None
    """mla: width of the compressed query (Q); None: queries come straight from the residual stream."""
    kv_lora_rank: int = 64
    """mla: width of the compressed keys and values (C)."""
    qk_nope_head_dim: int = 32
    """mla: query and key dimensions per head without position (N)."""
    qk_rope_head_dim: int = 16
    """mla: query and key dimensions with rotary position; the key's are shared by all heads (R)."""
    v_head_dim: int = 32
    """mla: value dimensions per head (V)."""
    num_latents: int = 16
    """latent: vectors that the past is pooled into; what decoding keeps does not grow beyond them."""
    feed_forward: Literal["gelu", "relu", "relu2", "swiglu"] = "gelu"
    """Form of dense layers and of each expert: two matrices around exact GELU, ReLU or squared ReLU, or SwiGLU."""
    intermediate_size: int | None = None
    """Width of dense layers; None: four times hidden_size, for swiglu 8/3 of it, rounded up to a multiple of 8."""
    experts: str = "none"
    """none; soft: every expert, weighted by a softmax; topk: the K best of a softmax; sigmoid-bias: Kimi K2's;
    expert_choice: experts choose tokens and see later ones: LEAKS, to show that the audit says so; or FILE.py:NAME."""
    moe_intermediate_size: int = 128
    """Width of one expert (F)."""
    n_routed_experts: int = 8
    """Experts to choose from (E)."""
    n_shared_experts: int = 0
    """Experts that see every token, built as one layer of that many widths."""
    num_experts_per_tok: int = 2
    """topk, sigmoid-bias: experts chosen for each token (K)."""
    first_k_dense_replace: int = 0
    """Leading layers with a dense feed-forward instead of experts."""
    norm_topk_prob: bool = True
    """topk, sigmoid-bias: divide the chosen gates by their sum."""
    routed_scaling_factor: float | None = None
    """Multiplies the gates; None: for sigmoid-bias chosen from E and K so that the routed output has a dense layer's
    size, else 1."""
    aux_loss_alpha: float = 0.0
    """Weight of the balance loss; sigmoid-bias: DeepSeek-V3's over each sequence; topk: Switch's over the batch
    (arXiv 2101.03961); 0: off."""
    capacity_factor: float = 2.0
    """expert_choice: experts that a token gets on average."""
    tie_word_embeddings: bool = True
    """Whether the head's matrix is the embedding's."""
    initialization: Literal["gpt2", "flat", "torch", "xavier"] = "gpt2"
    """gpt2: normal, with residual outputs' standard deviation divided by sqrt(2 * layers); flat: one for every matrix;
    torch: as in nn.Linear and nn.Embedding, with experts and routers as an nn.Linear; xavier: every matrix uniform by
    Glorot's formula, the rest as torch."""
    initializer_range: float = 0.02
    """gpt2, flat: standard deviation of the initial weights."""
