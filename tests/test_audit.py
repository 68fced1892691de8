"""The audit catches models that read the answer, by whatever way, and passes models that do not."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_GPT, TINY_KIMI
from torch import nn

import nanokimi
from nanokimi.config import GPTConfig, KimiConfig
from nanokimi.measure.audit import AuditResult
from nanokimi.measure.audit_plan import make_plan
from nanokimi.model.build import build_model

VOCAB, CONTEXT = 16, 8


def audit(
    module: nn.Module, vocab_size: int = VOCAB, context: int = CONTEXT, **options: object
) -> AuditResult:
    return nanokimi.audit(module, vocab_size=vocab_size, context=context, **options)  # type: ignore[arg-type]


class Embedded(nn.Module):
    """A causal model of one token; subclasses add their own way of mixing. Logits have a size of about 1."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.wte = nn.Parameter(torch.randn(VOCAB, width, generator=generator))
        self.head = nn.Parameter(torch.randn(width, VOCAB, generator=generator) / width**0.5)

    def mix(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        return self.mix(self.wte[ids_BT]) @ self.head


class Attention(Embedded):
    """Attention whose causal mask can be left out, or be off by one."""

    def __init__(self, diagonal: int | None = 0) -> None:
        super().__init__()
        self.diagonal = diagonal

    def mix(self, x_BTD: torch.Tensor) -> torch.Tensor:
        logits_BTS = x_BTD @ x_BTD.transpose(1, 2) / 12**0.5
        if self.diagonal is not None:
            T = x_BTD.shape[1]
            visible_TS = torch.ones(T, T, dtype=torch.bool).tril(self.diagonal)
            logits_BTS = logits_BTS.masked_fill(~visible_TS, -math.inf)
        return x_BTD + logits_BTS.softmax(dim=-1) @ x_BTD


class Averaged(Embedded):
    """Causal attention, and then the mean over all positions is added ("latent attention" in some repositories)."""

    def mix(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + x_BTD.mean(dim=1, keepdim=True)


class ExpertChoice(Embedded):
    """Each expert takes its favourite tokens of the whole flattened batch (Zhou et al., arXiv 2202.09368)."""

    def mix(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_MD = x_BTD.flatten(0, 1)
        scores_ME = x_MD[:, :4].softmax(dim=-1)
        gates_KE, chosen_KE = scores_ME.topk(x_MD.shape[0] // 4, dim=0)
        y_MD = torch.zeros_like(x_MD)
        for expert in range(4):
            y_MD[chosen_KE[:, expert]] += gates_KE[:, expert, None] * x_MD[chosen_KE[:, expert]].roll(
                expert, 1
            )
        return x_BTD + y_MD.view_as(x_BTD)


class Capacity(Embedded):
    """Token choice with room for few tokens per expert; who comes first in the batch is served, the rest dropped."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def mix(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_MD = x_BTD.flatten(0, 1)
        chosen_M = x_MD[:, :2].argmax(dim=-1)
        place_M = F.one_hot(chosen_M, 2).cumsum(0).gather(1, chosen_M[:, None])[:, 0]
        served_M1 = (place_M <= self.capacity).to(x_MD.dtype)[:, None]
        return x_BTD + (x_MD.tanh() * served_M1).view_as(x_BTD)


class NextToken(Embedded):
    """The embedding of the next token is added, `size` large, at chosen positions and in a chosen mode."""

    def __init__(self, size: float = 1.0, position: int | None = None, mode: str = "both") -> None:
        super().__init__()
        self.size, self.position, self.mode = size, position, mode

    def mix(self, x_BTD: torch.Tensor) -> torch.Tensor:
        if self.mode not in ("both", "training" if self.training else "evaluation"):
            return x_BTD
        leak_BTD = torch.zeros_like(x_BTD)
        leak_BTD[:, :-1] = self.size * x_BTD[:, 1:]
        if self.position is not None:
            kept_T1 = (torch.arange(x_BTD.shape[1]) == self.position).to(x_BTD.dtype)[:, None]
            leak_BTD = leak_BTD * kept_T1
        return x_BTD + leak_BTD


class BatchMean(Embedded):
    """Each position is centred over the rows of the batch."""

    def mix(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD - 0.5 * x_BTD.mean(dim=0, keepdim=True)


class Normed(Embedded):
    """BatchNorm with statistics of its own for each position: time does not mix, rows do, and only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(CONTEXT * 12)

    def mix(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + self.norm(x_BTD.flatten(1)).view_as(x_BTD)


# ---- leaks


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Attention(diagonal=None), "sees tokens from position"),
        (Attention(diagonal=1), "sees tokens from position"),
        (Averaged(), "sees tokens from position"),
        (ExpertChoice(), "sees"),
        (Capacity(6), "sees"),
        (NextToken(), "sees tokens from position"),
        (NextToken(size=1e-3), "sees tokens from position"),
        (NextToken(mode="training"), "(training mode, "),
        (NextToken(mode="evaluation"), "(evaluation mode, "),
        (BatchMean(), "sees other rows of the batch"),
        (Normed(), "sees other rows of the batch (training mode, "),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_leak_is_caught_and_named(module: nn.Module, words: str) -> None:
    result = audit(module)
    assert not result.causal
    assert result.where is not None and words in result.where, result.where
    assert result.max_leak > result.tolerance


@pytest.mark.parametrize("position", range(CONTEXT - 1))
def test_a_leak_at_one_position_only_is_caught_there(position: int) -> None:
    result = audit(NextToken(size=0.1, position=position))
    assert not result.causal
    assert result.where is not None
    assert result.where.startswith(f"position {position} of row")
    assert f"sees tokens from position {position + 1} on" in result.where


def test_the_same_modules_without_their_leak_pass() -> None:
    """What the tests above find is the leak, not the way in which the modules are written."""
    for module in (
        Embedded(),
        Attention(diagonal=0),
        NextToken(size=0.0),
    ):
        result = audit(module)
        assert result.causal and result.where is None, result
    assert not audit(NextToken(size=0.01, position=CONTEXT - 2)).causal
    assert audit(NextToken(size=0.01, position=CONTEXT - 1)).causal  # the last position has no next token


def test_a_leak_that_reaches_far_only_is_caught() -> None:
    """Position 0 sees the last token and nothing in between."""

    class Far(Embedded):
        def mix(self, x_BTD: torch.Tensor) -> torch.Tensor:
            first_BTD = torch.zeros_like(x_BTD)
            first_BTD[:, 0] = 0.1 * x_BTD[:, -1]
            return x_BTD + first_BTD

    result = audit(Far())
    assert not result.causal and result.where is not None and result.where.startswith("position 0 of row")


def test_a_leak_into_one_logit_of_many_is_caught() -> None:
    class One(Embedded):
        def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
            logits_BTW = super().forward(ids_BT)
            logits_BTW[:, :-1, 5] += 1e-3 * ids_BT[:, 1:]
            return logits_BTW

    assert not audit(One()).causal


def test_max_leak_is_the_absolute_size_of_the_movement() -> None:
    """The leak adds `size` times 0 or 1, so the largest movement of a logit is `size`, whatever the logits' scale."""

    class Known(Embedded):
        def __init__(self, size: float, scale: float) -> None:
            super().__init__()
            self.size, self.scale = size, scale

        def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
            logits_BTW = self.scale * super().forward(ids_BT)
            logits_BTW[:, :-1, 0] += self.size * (ids_BT[:, 1:] % 2)
            return logits_BTW

    for size, scale in ((0.25, 1.0), (0.25, 100.0), (40.0, 1.0)):
        assert audit(Known(size, scale)).max_leak == pytest.approx(size, rel=1e-3)


def test_a_leak_of_nan_counts_as_infinite() -> None:
    class Poison(Embedded):
        def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
            logits_BTW = super().forward(ids_BT)
            logits_BTW[:, 0] = torch.where(ids_BT[:, -1:] == 13, math.nan, logits_BTW[:, 0])
            return logits_BTW

    result = audit(Poison())
    assert result.verdict == "LEAKING" and math.isinf(result.max_leak)


def test_a_masked_vocabulary_is_no_leak_and_hides_none() -> None:
    """Logits of minus infinity (padding of the vocabulary) are equal to themselves."""

    class Padded(Embedded):
        def __init__(self, leak: float) -> None:
            super().__init__()
            self.leak = leak

        def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
            logits_BTW = super().forward(ids_BT)
            logits_BTW[:, :-1, 0] += self.leak * ids_BT[:, 1:]
            return F.pad(logits_BTW, (0, 4), value=-math.inf)

    assert audit(Padded(0.0)).causal
    assert not audit(Padded(0.01)).causal


# ---- honest models


class NanoGPTStyle(nn.Module):
    """nanoGPT's contract: `forward(idx, targets=None)` returns (logits, loss), without targets of the last position."""

    def __init__(self, dropout: float = 0.2, causal: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.wpe = nn.Embedding(VOCAB, 16), nn.Embedding(CONTEXT, 16)
        self.attn = nn.MultiheadAttention(16, 2, dropout=dropout, batch_first=True)
        self.drop, self.norm = nn.Dropout(dropout), nn.LayerNorm(16)
        self.lm_head = nn.Linear(16, VOCAB)
        self.causal = causal

    def forward(
        self, idx: torch.Tensor, targets: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        T = idx.shape[1]
        x = self.drop(self.wte(idx) + self.wpe(torch.arange(T)))
        hidden = torch.ones(T, T, dtype=torch.bool).triu(1) if self.causal else None
        y, _ = self.attn(self.norm(x), self.norm(x), self.norm(x), attn_mask=hidden, need_weights=False)
        x = x + self.drop(y)
        if targets is None:
            return self.lm_head(x[:, [-1]]), None
        logits = self.lm_head(x)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def test_a_nanogpt_like_module_with_dropout_passes_and_its_leak_is_caught() -> None:
    """And the result is the same every time."""
    module = NanoGPTStyle()
    torch.manual_seed(1)
    first = audit(module)
    torch.manual_seed(2)
    assert first.causal and audit(module) == first
    assert not audit(NanoGPTStyle(causal=False)).causal


@pytest.mark.parametrize("config", [TINY_KIMI, replace(TINY_GPT, dropout=0.2)], ids=["nanokimi", "nanogpt"])
def test_our_models_pass_after_a_few_training_steps(config: KimiConfig | GPTConfig) -> None:
    model = build_model(config, seed=5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        ids_BT = torch.randint(61, (4, 25), generator=generator)
        logits_BTW = model(ids_BT[:, :-1]).logits_BTW
        F.cross_entropy(logits_BTW.flatten(0, 1), ids_BT[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    result = audit(model, vocab_size=61, context=24)
    assert result.causal, result


def test_no_false_alarm_for_fresh_models() -> None:
    """A router's near-tie may tip when other rows change the order of rounding: that is no leak."""
    for config, seed in ((TINY_KIMI, 0), (TINY_KIMI, 1), (replace(TINY_GPT, dropout=0.2), 5)):
        result = audit(build_model(config, seed), vocab_size=61, context=16, seed=seed)
        assert result.causal, (seed, result)


def test_rounding_is_told_from_a_leak_of_its_size_in_float64() -> None:
    """Rounding that depends on the rest of the batch moves fp32 logits; a leak as small moves float64 ones too."""

    class Rounding(Embedded):
        def mix(self, x_BTD: torch.Tensor) -> torch.Tensor:
            big = x_BTD.mean() * 1e4
            return x_BTD + ((x_BTD + big) - big)

    class Leak(Embedded):
        def mix(self, x_BTD: torch.Tensor) -> torch.Tensor:
            return x_BTD + 1e-5 * x_BTD.sum()

    for module, causal in ((Rounding(), True), (Leak(), False)):
        result = audit(module)
        assert result.max_leak > result.tolerance, "the module must look suspicious in fp32"
        assert result.causal is causal


def test_a_leak_smaller_than_rounding_is_caught_in_float64_or_else_said_to_be_possible() -> None:
    """Training may open a gate that begins at 1e-6, as LayerScale does."""

    class Gated(Embedded):
        refuses = False

        def mix(self, x_BTD: torch.Tensor) -> torch.Tensor:
            if self.refuses and x_BTD.dtype == torch.float64:
                raise ValueError("single precision, please")
            return x_BTD + 1e-6 * x_BTD.mean(dim=1, keepdim=True)

    found = audit(Gated())
    assert found.verdict == "LEAKING" and "float64 shows it" in str(found.where)
    assert found.max_leak < found.tolerance, "fp32 alone would not tell"
    refusing = Gated()
    refusing.refuses = True
    result = audit(refusing)
    assert result.causal and any("single precision, please" in words for words in result.not_excluded)


def test_nanokimi_without_its_mask_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(TINY_KIMI, seed=0)  # test_no_false_alarm_for_fresh_models passes it
    honest = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v, **rest: honest(q, k, v, scale=rest["scale"])
    )
    assert not audit(model, vocab_size=61, context=12).causal


# ---- the contract


def test_module_mode_buffers_and_random_state_are_left_as_they_were() -> None:
    module = nn.Sequential(Normed(), nn.Dropout(0.5))
    module[1].eval()  # a mixed mode, to be left mixed
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(11)
    np.random.seed(12)
    random.seed(13)
    state, of_numpy, python = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[union-attr]
    audit(module)
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python
    assert (np.random.get_state()[1] == of_numpy).all()  # type: ignore[index]
    assert [m.training for m in module] == [True, False]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert module[0].wte.dtype == torch.float32


def test_cuts_are_all_positions_or_as_many_as_allowed() -> None:
    for context, most, cuts in ((8, 256, 7), (2, 256, 1), (30, 5, 5), (30, 1, 1)):
        assert len(make_plan(VOCAB, context, 8, most, 0, None).cuts) == cuts
    result = audit(Embedded(), context=30, max_cuts=5)
    assert (result.cuts, result.context_length) == (5, 30)


@pytest.mark.parametrize("chunk", [64, 512])
def test_a_leak_across_the_edges_of_chunks_is_caught_though_few_positions_have_a_cut(chunk: int) -> None:
    """The last token of each chunk sees the first one of the next chunk."""

    class Chunked(Embedded):
        def mix(self, x_BTD: torch.Tensor) -> torch.Tensor:
            last_T1 = (torch.arange(x_BTD.shape[1]) % chunk == chunk - 1)[:, None]
            return x_BTD + last_T1 * F.pad(x_BTD[:, 1:], (0, 0, 0, 1))

    found = audit(Chunked(), context=1024, batch_size=2)
    assert found.verdict == "LEAKING" and "2 rows of 1024" in str(found.where), found


def test_outputs_of_every_documented_form_are_read() -> None:
    class Wrapped(Embedded):
        def __init__(self, form: str) -> None:
            super().__init__()
            self.form = form

        def forward(self, ids_BT: torch.Tensor) -> object:
            logits = super().forward(ids_BT)
            loss = torch.zeros(())
            return {
                "tuple": (logits, loss),
                "list": [logits, loss],
                "dict": {"loss": loss, "logits": logits},
            }[self.form]

    assert all(audit(Wrapped(form)).causal for form in ("tuple", "list", "dict"))
    own = audit(Embedded(), call=lambda module, ids: (module(ids), "ignored"))
    assert own.causal


class Shaped(Embedded):
    def __init__(self, change: str) -> None:
        super().__init__()
        self.change = change

    def forward(self, ids_BT: torch.Tensor) -> object:
        logits = super().forward(ids_BT)
        return {
            "last position": logits[:, -1:],
            "two axes": logits[..., 0],
            "text": "logits",
            "nothing": None,
            "NaN": logits * math.nan,
        }[self.change]


@pytest.mark.parametrize("change", ["last position", "two axes", "text", "nothing", "NaN"])
def test_an_output_that_is_no_logits_is_a_value_error(change: str) -> None:
    with pytest.raises(ValueError, match="NaN" if change == "NaN" else "expected \\(B, T, W\\)"):
        audit(Shaped(change))


@pytest.mark.parametrize("sizes", [{"batch_size": 0}, {"context": 1}, {"vocab_size": 1}])
def test_sizes_too_small_to_test_anything_are_a_value_error(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        audit(Embedded(), **sizes)  # type: ignore[arg-type]


def test_where_one_row_at_a_time_is_evaluated_two_are_audited() -> None:
    assert make_plan(16, 8, 1, 8, 0, None).rows == 2
    assert audit(Embedded(), batch_size=1).causal


# ---- real text, and what is not excluded


class Wordy(nn.Module):
    """500 ids; the next token is told after one pair of neighbours."""

    def __init__(self, pair: tuple[int, int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.pair = nn.Embedding(500, 500), pair

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        next_BT = F.pad(ids_BT[:, 1:], (0, 1), value=-1)
        seen_BT = (ids_BT == self.pair[0]) & (next_BT == self.pair[1])
        return self.wte(ids_BT) + seen_BT[..., None]


def test_a_pair_of_neighbours_in_a_large_vocabulary_is_caught_if_the_text_holds_it() -> None:
    windows = torch.randint(500, (8, 40), generator=torch.Generator().manual_seed(5))
    pair = (int(windows[3, 17]), int(windows[3, 18]))
    caught = nanokimi.audit(Wordy(pair), vocab_size=500, context=8, windows=windows[:, 14:22])
    assert caught.verdict == "LEAKING"
    passed = nanokimi.audit(Wordy((-1, -1)), vocab_size=500, context=8, windows=windows)
    assert passed.causal and any("pairs of the windows" in words for words in passed.not_excluded)


def test_what_is_not_excluded_is_said() -> None:
    small = audit(Embedded()).not_excluded
    assert any("an earlier call in another mode" in words for words in small)
    assert any("no windows were given" in words for words in small)
    assert not any("cuts were tried" in words or "lengths were tried" in words for words in small)
    large = audit(Embedded(), context=90, max_cuts=5, windows=torch.zeros(2, 90)).not_excluded
    assert any("5 of 89 cuts" in words for words in large) and any("lengths" in words for words in large)
    assert not any("no windows" in words for words in large)
    still = Embedded()
    with torch.no_grad():
        still.head.zero_()
    assert any("parameters that are all zero" in words for words in audit(still).not_excluded)
    assert audit(NextToken()).not_excluded == ()


def test_it_is_said_that_a_module_reads_how_long_its_window_is() -> None:
    """No token tells it, but where a document is shorter than the context, the length tells where it ends."""

    class FromTheEnd(Embedded):
        """Adds to the logits of the last position of a window."""

        def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
            logits_BTW = super().forward(ids_BT)
            logits_BTW[:, -1, 0] += 1.0
            return logits_BTW

    def is_said(module: nn.Module) -> bool:
        result = audit(module)
        assert result.causal
        return any("window's length" in words for words in result.not_excluded)

    assert is_said(FromTheEnd())
    assert not any(map(is_said, (Embedded(), Attention(), NanoGPTStyle(), build_model(TINY_KIMI, seed=0))))


def test_shapes_that_a_module_refuses_are_said() -> None:
    class Fixed(Embedded):
        def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
            if ids_BT.shape[1] != CONTEXT:
                raise ValueError("eight tokens, please")
            return super().forward(ids_BT)

    result = audit(Fixed())
    assert result.causal and any("eight tokens, please" in words for words in result.not_excluded)


@pytest.mark.parametrize("windows", [[[0, VOCAB]], [[-1, 3]]])
def test_windows_of_other_ids_are_a_value_error(windows: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="windows hold ids outside 0 to 15"):
        audit(Embedded(), windows=windows)


def test_the_forecast_of_passes_is_the_number_made() -> None:
    from nanokimi.measure.audit import audit_passes

    module = Attention()
    assert len(audit_passes(module, VOCAB, CONTEXT)) == audit(module).passes
