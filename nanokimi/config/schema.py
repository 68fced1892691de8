"""Every setting of a run: its type, default and meaning (a variant's in `schema_variant`; limits are in `rules`).

A configuration describes the model families (NanoKimi, NanoGPT, a variant composed at will, a class of the user's), the
arms that are made of them, and everything that arms share: the text, the batches, the budget. An arm is a name, a model
and an optimizer with its schedule. `compare` trains all arms, `train` one. `arms` turns each into a configuration.
The names are those of Hugging Face's DeepSeek-V3 and Llama configurations, for all models. `None` means "off" or, where
the text says so, "chosen for you". `rules.resolve` replaces the chosen ones by values, so that the file saved with a
run repeats it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from nanokimi.config.schema_compare import CompareConfig as CompareConfig
from nanokimi.config.schema_compare import SpreadConfig as SpreadConfig
from nanokimi.config.schema_optim import OptimConfig
from nanokimi.config.schema_sample import SampleConfig as SampleConfig
from nanokimi.config.schema_variant import VariantConfig as VariantConfig

ModelName = Literal["nanokimi", "nanogpt", "variant", "module"]
FAMILIES: tuple[ModelName, ...] = ("nanokimi", "nanogpt", "variant", "module")
DISPLAY_NAMES: dict[str, str] = {
    "nanokimi": "NanoKimi",
    "nanogpt": "NanoGPT",
    "variant": "Variant",
    "module": "Module",
}


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """The text and how it is cut into tokens."""

    path: str = ""
    """The text (short option: --data). A name: tales, tales:SEED, tales-short, tales-short:SEED, tinystories,
    tinystories-v2, hf:owner/name[:split]; or a path: a text (.txt, .md, source code), .jsonl or .ndjson, .json, .csv,
    .tsv, all also .gz or .zst; .parquet; a folder of them; a nanoGPT folder (train.bin, val.bin). Empty: none yet."""
    sources: tuple[dict[str, Any], ...] = ()
    """Several texts in place of `path`, such as languages, each scored on its own: [{name: english, path: en.txt,
    weight: 2, text_column: text}, ...]. The weights (1 if left out) say how the training tokens are shared out."""
    tokenizer: str = "char"
    """char and byte need no training; bpe and unigram are SentencePiece models trained on the training split; or a path
    to a tokenizer.json or to a SentencePiece .model of 2 to 262,144 pieces, or another run's data/tokenizer.json."""
    vocab_size: int = 1024
    """Pieces of a bpe or unigram tokenizer (at least 300: 256 of them are the byte fallback)."""
    split: Literal["three", "nanogpt"] = "three"
    """three: training, validation (settings are chosen on it) and test (it is reported). nanogpt, of a single text or a
    nanoGPT folder: the first 90% to train, and the last 10% both for validation and test, which every output says."""
    val_fraction: float = 0.1
    """Kept for validation: this part of the documents, chosen by their content; of a single text, the part before the
    test part."""
    test_fraction: float | None = None
    """Kept for test, likewise; of a single text, its end. None: as much as for validation."""
    text_column: str = "text"
    """The column of a .jsonl, .json, .csv, .tsv, .parquet or Hub data set that holds the text."""
    fraction: float = 1.0
    """Use only this part of the documents, chosen by their content."""
    streaming: bool = False
    """Read a Hub data set over the network once, and keep no copy of it beside the tokens."""
    characters: int | None = None
    """How much of tales to write; None: 20 million characters."""
    workers: int | None = None
    """Processes that encode; None: one per core that this process may use, but one for little text."""
    cache: str | None = None
    """Folder of prepared data; None: $NANOKIMI_CACHE, or ~/.cache/nanokimi."""


@dataclass(frozen=True, kw_only=True)
class YarnConfig:
    """RoPE stretched to a longer context by YaRN (arXiv 2309.00071), in DeepSeek-V3's form."""

    factor: float = 32.0
    """New context length over the original one."""
    original_max_position_embeddings: int = 4096
    """Context length before stretching."""
    beta_fast: float = 1.0
    """Rotations within the original context above which a frequency is left alone."""
    beta_slow: float = 1.0
    """Rotations within the original context below which a frequency is divided by the factor."""
    mscale: float = 1.0
    """Temperature of the rotary part (cos and sin)."""
    mscale_all_dim: float = 1.0
    """Temperature of the whole logit."""


@dataclass(frozen=True, kw_only=True)
class KimiConfig:
    """NanoKimi: Kimi K2's decoder (arXiv 2507.20534), which is DeepSeek-V3's (arXiv 2412.19437) with other sizes."""

    vocab_size: int | None = None
    """None: the tokenizer's."""
    hidden_size: int = 128
    """Width of the residual stream (D)."""
    num_hidden_layers: int = 4
    """Blocks."""
    num_attention_heads: int = 4
    """Heads of multi-head latent attention (H)."""
    q_lora_rank: int | None = None
    """Width of the compressed query (Q); None: queries come straight from the residual stream."""
    kv_lora_rank: int = 64
    """Width of the compressed keys and values, the part of the cache that grows with the model (C)."""
    qk_nope_head_dim: int = 32
    """Query and key dimensions per head without position (N)."""
    qk_rope_head_dim: int = 16
    """Query and key dimensions with rotary position; the key's are shared by all heads (R)."""
    v_head_dim: int = 32
    """Value dimensions per head (V)."""
    intermediate_size: int = 384
    """Width of the dense SwiGLU in the leading layers."""
    moe_intermediate_size: int = 128
    """Width of one expert's SwiGLU (F)."""
    n_routed_experts: int = 8
    """Experts to choose from (E)."""
    n_shared_experts: int = 1
    """Experts that see every token, built as one SwiGLU of that many widths; 0: none."""
    num_experts_per_tok: int = 2
    """Experts chosen for each token (K)."""
    first_k_dense_replace: int = 1
    """Leading layers with a dense SwiGLU instead of experts."""
    norm_topk_prob: bool = True
    """Divide the chosen gates by their sum."""
    routed_scaling_factor: float | None = None
    """Multiplies the gates; None: chosen from E and K so that the routed output has a dense layer's size."""
    aux_loss_alpha: float = 1e-4
    """Weight of the sequence-wise balance loss (DeepSeek-V3, eq. 17-20); 0: off."""
    rms_norm_eps: float = 1e-6
    """Epsilon of every RMSNorm."""
    latent_norm_eps: float | None = None
    """Epsilon of the RMSNorms of the latents (DeepSeek-V3: always 1e-6); None: as rms_norm_eps."""
    rope_theta: float = 50000.0
    """Base of the rotary frequencies."""
    rope_scaling: YarnConfig | None = None
    """YaRN, or None for plain RoPE."""
    max_position_embeddings: int | None = None
    """Longest sequence; None: train.context_length."""
    tie_word_embeddings: bool = False
    """Whether the head's matrix is the embedding's. Kimi K2 has two."""
    initializer_range: float = 0.05
    """Standard deviation of the initial weights; about 0.5 to 0.9 over the square root of hidden_size."""
    rescale_prenorm_residual: bool = False
    """Whether the initial weights of attention's and every feed-forward's output are divided by the root of their
    number in the residual stream, as in GPT-2 (and here NanoGPT). DeepSeek-V3's code has one size for all."""


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """NanoGPT: GPT-2 as nanoGPT builds it (learned positions, LayerNorm, GELU, tied head)."""

    vocab_size: int | None = None
    """None: the tokenizer's."""
    hidden_size: int = 128
    """Width of the residual stream (D)."""
    num_hidden_layers: int = 4
    """Blocks."""
    num_attention_heads: int = 4
    """Attention heads (H)."""
    intermediate_size: int | None = None
    """Width of the MLP; None: four times hidden_size."""
    activation_function: Literal["gelu", "gelu_new"] = "gelu"
    """Within the MLP: gelu is exact, as in nanoGPT; gelu_new is OpenAI's approximation by tanh."""
    max_position_embeddings: int | None = None
    """Learned positions; None: train.context_length."""
    dropout: float = 0.0
    """Dropout after the embedding, in attention and on both residual branches."""
    bias: bool = False
    """Biases in the linear layers and LayerNorms (GPT-2 has them, nanoGPT's recipes do not)."""
    layer_norm_epsilon: float = 1e-5
    """Epsilon of every LayerNorm."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights; residual outputs get it divided by sqrt(2 * layers)."""


@dataclass(frozen=True, kw_only=True)
class ModuleConfig:
    """A model of the user's: any torch module that maps token ids (B, T) to logits (B, T, W)."""

    source: str = ""
    """FILE.py:CLASS, named with --arm or --plugin. The class is called with those of vocab_size, context_length and
    the arguments below that its __init__ takes."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the class."""
    vocab_size: int | None = None
    """None: the tokenizer's."""
    max_position_embeddings: int | None = None
    """Longest sequence; None: train.context_length."""

    @property
    def num_hidden_layers(self) -> int:
        """0, because the layers of a user's class are unknown, so it has no cache and gives no attention logits."""
        return 0

    @property
    def num_attention_heads(self) -> int:
        """1, because the heads of a user's class are unknown, so its matrices are not split."""
        return 1


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What all arms share: batches, budget, precision, machine, and how often to evaluate and save."""

    context_length: int = 64
    """Tokens per training sequence, and per validation window (T)."""
    batch_size: int = 12
    """Sequences per optimizer step (B)."""
    micro_batch_size: int | None = None
    """Sequences per forward pass; gradients accumulate over batch_size / micro_batch_size passes. None: batch_size."""
    max_steps: int | None = None
    """Budget in optimizer steps. Name exactly one budget."""
    max_epochs: float | None = None
    """Budget in passes over the training tokens."""
    max_tokens: float | None = None
    """Budget in training tokens."""
    max_flops: float | None = None
    """Budget in training FLOPs by the formula of measure/cost.py."""
    max_seconds: float | None = None
    """Budget in seconds of training (evaluation, sampling and saving not counted)."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of matrix products (weights stay fp32); auto: bf16 on a GPU or CPU that multiplies in it, else fp32."""
    init_from: str | None = None
    """Folder of a run whose final weights training starts from; the model and the tokenizer must be that run's. The new
    run keeps a copy of them. None: random weights."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    threads: int | None = None
    """CPU threads; None: one per physical core this process may use."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""
    shard: int | None = None
    """Processes that share one copy of the weights (under torchrun): there are as many copies as the number of
    processes divided by it, which must be a whole number. 1: each process has all weights (DDP). None: all processes
    share one copy (FSDP)."""
    expert_parallel: int = 1
    """Processes that share the experts of a layer, of those that share a copy of the weights (under torchrun). Each
    holds n_routed_experts divided by it, which must be a whole number, and tokens travel to their experts and back. 1:
    each process gathers all experts, as it does all other weights."""
    compile: bool = False
    """Compile the training step's forward and backward passes with torch.compile. That takes up to a minute before the
    first step (not counted as training) and makes steps faster, except for NanoKimi in bf16 on a CPU, whose own kernels
    in C are as fast. On a CPU it needs a C++ compiler."""
    eval_every: int = 250
    """Steps between validations (and after the last)."""
    eval_batch_size: int | None = None
    """Windows per validation forward pass, which does not change the result; None: as many as hold 4,096 tokens."""
    telemetry_every: int | None = None
    """Steps between records of expert load and attention logits; None: a tenth of eval_every."""
    sample_every: int | None = None
    """Steps between sample stories; None: as eval_every."""
    save_every: int | None = None
    """Steps between checkpoints (and after the last, and at each new best validation); None: so often that at most 5%
    of the run or a minute is lost, whichever is less."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept, beside the one with the best validation loss."""
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """What to do after a loss or gradient that is not finite: stop with everything saved; skip the update; or go back
    to the newest checkpoint's weights and on to the next batch. Counted and reported. Short option: --on-nonfinite."""
    memory_limit_gb: float | None = None
    """On a CPU under Linux: memory that this process may use, in 10^9 bytes, without code that it loads later. Beyond
    it, the micro-batch is halved. None: no limit."""
    track: str = ""
    """Trackers that are told the run's numbers: csv, tensorboard, wandb (offline unless WANDB_MODE says otherwise),
    trackio; several with commas between. Empty: none. One that fails is left out, and the run goes on."""


@dataclass(frozen=True, kw_only=True)
class KimiFamily:
    """NanoKimi and how it is optimised."""

    model: KimiConfig = field(default_factory=KimiConfig)
    """Architecture."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(name="muonclip", lr=5e-3, schedule="wsd", min_lr_ratio=0.0)
    )
    """Optimizer."""


@dataclass(frozen=True, kw_only=True)
class GPTFamily:
    """NanoGPT and how it is optimised."""

    model: GPTConfig = field(default_factory=GPTConfig)
    """Architecture."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(betas=(0.9, 0.99)))
    """Optimizer."""


@dataclass(frozen=True, kw_only=True)
class VariantFamily:
    """A variant and how it is optimised."""

    model: VariantConfig = field(default_factory=VariantConfig)
    """Architecture."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer."""


@dataclass(frozen=True, kw_only=True)
class ModuleFamily:
    """A model of the user's and how it is optimised."""

    model: ModuleConfig = field(default_factory=ModuleConfig)
    """Class and arguments."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer."""


ModelConfig = KimiConfig | GPTConfig | VariantConfig | ModuleConfig
Family = KimiFamily | GPTFamily | VariantFamily | ModuleFamily


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run computes."""

    model: ModelName = "nanokimi"
    """The family of the model that `train` trains."""
    name: str = ""
    """What the run is called in tables; empty: as its family."""
    seed: int = 1337
    """Initial weights, batches and samples follow from it."""
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    """Text and tokens."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Batches, budget, machine."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """Sample stories."""
    compare: CompareConfig = field(default_factory=CompareConfig)
    """Comparison."""
    nanokimi: KimiFamily = field(default_factory=KimiFamily)
    """The NanoKimi family."""
    nanogpt: GPTFamily = field(default_factory=GPTFamily)
    """The NanoGPT family."""
    variant: VariantFamily = field(default_factory=VariantFamily)
    """The family of variants, composed of parts."""
    module: ModuleFamily = field(default_factory=ModuleFamily)
    """The family of a class of yours."""
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The arms of a comparison, in the order of its tables: NAME: {from: FAMILY, FILE.py:CLASS or another arm, model:
    {...}, optim: {...}}, the last two holding what differs from it. Empty: NanoKimi and NanoGPT."""

    @property
    def family(self) -> Family:
        """The model and optimizer of the family that `model` names."""
        return self.families[self.model]

    @property
    def title(self) -> str:
        """What the run is called."""
        return self.name or DISPLAY_NAMES[self.model]

    @property
    def families(self) -> dict[ModelName, Family]:
        """Every family by its name."""
        return {
            "nanokimi": self.nanokimi,
            "nanogpt": self.nanogpt,
            "variant": self.variant,
            "module": self.module,
        }


TRACKERS = ("csv", "tensorboard", "wandb", "trackio")
BUDGETS = ("max_steps", "max_epochs", "max_tokens", "max_flops", "max_seconds")

FREE_WHEN_RESUMED = {
    "train.shard",
    "train.expert_parallel",
    "train.on_nonfinite",
    "train.memory_limit_gb",
    "train.track",
    "train.save_every",
    "train.keep_checkpoints",
    "dataset.cache",
    "dataset.workers",
}
"""Settings that may differ when a run is resumed, because they do not affect the numbers of a run without failures, or,
like the number of processes, only the last digits."""
