"""The validation score: every token once, in fp32, per token, per byte and per character, as counted by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_GPT, TINY_KIMI
from torch import nn

from nanokimi.config import DatasetConfig
from nanokimi.data.store import PreparedData, prepare
from nanokimi.data.tokenizers.own import ByteTokenizer
from nanokimi.measure.evaluate import SCORES, evaluate, token_nats
from nanokimi.model.build import build_model
from nanokimi.model.output import Output


class Bigram(nn.Module):
    """Logits that depend on the current token only, from a table: a model whose loss can be worked out by hand."""

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(vocab_size, vocab_size, generator=generator) * 2)
        self.batches: list[tuple[int, ...]] = []

    def forward(self, ids_BT: torch.Tensor) -> Output:
        self.batches.append(tuple(ids_BT.shape))
        return Output(self.table[ids_BT])


class Spy(Bigram):
    """Notes the mode, and whether autocast reaches the model."""

    def forward(self, ids_BT: torch.Tensor) -> Output:
        self.seen = (self.training, torch.is_autocast_enabled("cpu"), torch.is_grad_enabled())
        x_BTW = torch.matmul(self.table[ids_BT], torch.eye(self.table.shape[0]))
        self.dtype_seen = x_BTW.dtype
        return Output(x_BTW)


def data_of(train: list[int], val: list[int], val_bytes: int, val_chars: int, tmp: Path) -> PreparedData:
    """Prepared data with these ids; the rest does not matter to a score."""
    path = tmp / "filler.txt"
    path.write_text("abcdefghij" * 100)
    filler = prepare(DatasetConfig(path=str(path)), tmp / "data", context_length=4)
    metadata = filler.metadata | {"val_text_bytes": val_bytes, "val_text_chars": val_chars}
    return replace(
        filler,
        train_ids=np.array(train, dtype=np.uint16),
        val_ids=np.array(val, dtype=np.uint16),
        metadata=metadata,
    )


def naive_nats(table: np.ndarray, before: int, targets: list[int]) -> list[float]:
    """-log softmax(table[previous])[target] for each target, in float64, with nothing but loops."""
    nats = []
    for previous, target in zip([before, *targets[:-1]], targets, strict=True):
        row = [float(x) for x in table[previous]]
        nats.append(math.log(sum(math.exp(x) for x in row)) - row[target])
    return nats


VAL = [3, 1, 4, 1, 5, 2, 6, 5, 3, 5]


def test_loss_of_ten_tokens_equals_a_float64_computation_by_hand(tmp_path: Path) -> None:
    data = data_of([0, 2, 6], VAL, val_bytes=10, val_chars=10, tmp=tmp_path)
    model = Bigram(7)
    expected = naive_nats(model.table.detach().double().numpy(), before=6, targets=VAL)
    scored = evaluate(model, data, context_length=4, batch_size=2)
    assert scored.loss == pytest.approx(sum(expected) / 10, abs=1e-6)
    assert scored.perplexity == pytest.approx(math.exp(sum(expected) / 10), rel=1e-6)
    assert model.batches == [(2, 4), (1, 2)]  # 10 tokens: two whole windows, and the rest on its own
    windows = [sum(expected[0:4]), sum(expected[4:8]), sum(expected[8:10])]
    assert scored.window_nats.tolist() == pytest.approx(windows, abs=1e-5)
    # position 0 holds tokens 0, 4, 8; position 3 holds tokens 3, 7
    by_position = [np.mean(expected[i::4]) for i in range(4)]
    assert scored.loss_by_position == pytest.approx(by_position, abs=1e-6)
    assert scored.tokens_by_position == [3, 3, 2, 2]


def test_bits_are_counted_over_the_bytes_and_characters_of_the_raw_text(tmp_path: Path) -> None:
    """'na\u00efve \u2603' has 7 characters and 10 bytes (1+1+2+1+1+1+3), so 10 byte tokens."""
    text = "na\u00efve \u2603"
    ids = ByteTokenizer().encode(text).tolist()
    assert (len(text), len(ids)) == (7, 10)
    data = data_of([65, 66], ids, val_bytes=10, val_chars=7, tmp=tmp_path)
    model = Bigram(256)
    total = sum(naive_nats(model.table.detach().double().numpy(), before=66, targets=ids))
    scored = evaluate(model, data, context_length=4, batch_size=64)
    assert scored.bits_per_byte == pytest.approx(total / math.log(2) / 10, rel=1e-6)
    assert scored.bits_per_char == pytest.approx(total / math.log(2) / 7, rel=1e-6)
    assert scored.loss == pytest.approx(total / 10, rel=1e-6)


def test_bits_of_a_uniform_model_do_not_depend_on_the_tokenizer(tmp_path: Path) -> None:
    """A uniform model over W ids spends log2(W) bits on each token; per byte that is what the text's metadata say."""
    text = "caf\u00e9 cr\u00e8me \u2603 " * 80
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    for name in ("char", "byte"):
        data = prepare(DatasetConfig(path=str(path), tokenizer=name), tmp_path / name, context_length=8)
        width = data.tokenizer.vocab_size
        model = Bigram(width)
        nn.init.zeros_(model.table)
        starts = {"val": int(len(text) * 0.8), "test": int(len(text) * 0.9)}
        for part, ids in (("val", data.val_ids), ("test", data.test_ids)):
            scored = evaluate(model, data, context_length=8, batch_size=3, part=part)
            part_text = text[starts[part] : starts[part] + len(text) // 10]
            bits = math.log2(width) * len(ids)
            assert scored.loss == pytest.approx(math.log(width), rel=1e-6)
            assert scored.bits_per_char == pytest.approx(bits / len(part_text), rel=1e-6)
            assert scored.bits_per_byte == pytest.approx(bits / len(part_text.encode()), rel=1e-6)


@pytest.fixture
def long_data(tmp_path: Path) -> PreparedData:
    ids = np.random.default_rng(0).integers(0, 61, size=203).tolist()
    return data_of(ids[:50], ids, val_bytes=203, val_chars=203, tmp=tmp_path)


@pytest.mark.parametrize("config", [TINY_KIMI, TINY_GPT], ids=["nanokimi", "nanogpt"])
def test_batch_size_changes_speed_only(config: object, long_data: PreparedData) -> None:
    model = build_model(config, seed=1)  # type: ignore[arg-type]
    scores = [evaluate(model, long_data, context_length=16, batch_size=n) for n in (1, 5, 12, 64)]
    for other in scores[1:]:
        assert other.loss == pytest.approx(scores[0].loss, abs=1e-6)
        assert np.allclose(other.window_nats, scores[0].window_nats, atol=1e-4)
        assert other.loss_by_position == pytest.approx(scores[0].loss_by_position, abs=1e-5)


def test_the_models_loss_equals_one_forward_pass_per_window(long_data: PreparedData) -> None:
    model = build_model(TINY_KIMI, seed=1).eval()
    ids = [int(long_data.train_ids[-1]), *long_data.val_ids.tolist()]
    total = 0.0
    with torch.no_grad():
        for start in range(0, 203, 16):
            window = ids[start : start + 17]
            logits = model(torch.tensor([window[:-1]])).logits_BTW[0].double()
            total -= float(logits.log_softmax(-1).gather(1, torch.tensor(window[1:])[:, None]).sum())
    scored = evaluate(model, long_data, context_length=16, batch_size=4)
    assert scored.loss == pytest.approx(total / 203, abs=1e-5)


@pytest.mark.parametrize("length", [1, 4, 8, 16, 50, 203, 500])
def test_each_token_is_a_target_exactly_once(length: int, long_data: PreparedData) -> None:
    """A uniform model's total is tokens * log W only if no token is left out or counted twice."""
    model = Bigram(61)
    nn.init.zeros_(model.table)
    scored = evaluate(model, long_data, context_length=length, batch_size=3)
    assert scored.window_nats.sum() == pytest.approx(203 * math.log(61), rel=1e-6)
    assert len(scored.window_nats) == math.ceil(203 / length)
    assert len(scored.loss_by_position) == len(scored.tokens_by_position) == min(length, 203)
    assert sum(scored.tokens_by_position) == 203


@pytest.mark.parametrize("length", [1, 16, 50, 149, 500])
def test_each_token_of_the_test_part_is_a_target_exactly_once(length: int, long_data: PreparedData) -> None:
    """And no other: the first is predicted from the last validation token, the last from its own predecessor."""
    test = np.random.default_rng(1).integers(0, 61, size=149)
    metadata = long_data.metadata | {"test_text_bytes": 149, "test_text_chars": 100}
    data = replace(long_data, test_ids=test.astype(np.uint16), metadata=metadata)
    model = Bigram(61)
    table = model.table.detach().double().numpy()
    total = sum(naive_nats(table, before=int(data.val_ids[-1]), targets=test.tolist()))
    scored = evaluate(model, data, context_length=length, batch_size=3, part="test")
    assert scored.window_nats.sum() == pytest.approx(total, rel=1e-6)
    record = scored.record()
    assert record["test_loss"] == pytest.approx(total / 149, rel=1e-6)
    assert record["test_bits_per_char"] == pytest.approx(total / math.log(2) / 100, rel=1e-6)
    assert not [name for name in record if name.startswith("val")], "called by the part that was scored"


def test_window_nats_add_up_to_the_total(long_data: PreparedData) -> None:
    scored = evaluate(Bigram(61), long_data, context_length=16, batch_size=4)
    assert scored.window_nats.sum() == pytest.approx(scored.loss * 203, rel=1e-9)


def test_scores_are_fp32_even_inside_autocast(long_data: PreparedData) -> None:
    model = Spy(61)
    plain = evaluate(model, long_data, context_length=16, batch_size=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = evaluate(model, long_data, context_length=16, batch_size=4)
        assert model.seen == (False, False, False)  # evaluation mode, no autocast, no gradients
        assert model.dtype_seen == torch.float32
    assert cast.loss == plain.loss


def test_logits_in_half_precision_are_scored_in_fp32() -> None:
    """fp16 holds nothing above 65504: the sum inside the loss must not be taken in it."""

    class Half(nn.Module):
        def forward(self, ids_BT: torch.Tensor) -> Output:
            return Output(torch.full((*ids_BT.shape, 7), 60000.0, dtype=torch.float16))

    ids_BT = torch.zeros(1, 3, dtype=torch.long)
    nats_BT = token_nats(Half(), ids_BT, ids_BT)
    assert nats_BT.dtype == torch.float32 and nats_BT[0].tolist() == pytest.approx([math.log(7)] * 3)


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_restored(training: bool, long_data: PreparedData) -> None:
    model = build_model(replace(TINY_GPT, dropout=0.5), seed=1).train(training)
    first = evaluate(model, long_data, context_length=16, batch_size=4)
    assert model.training is training and all(m.training is training for m in model.modules())
    again = evaluate(model, long_data, context_length=16, batch_size=4)
    assert first.loss == again.loss, "no dropout"


def test_evaluation_leaves_the_random_state_and_the_weights_alone(long_data: PreparedData) -> None:
    model = build_model(TINY_KIMI, seed=1)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(model, long_data, context_length=16, batch_size=4)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_the_record_holds_plain_numbers_only(long_data: PreparedData) -> None:
    record = evaluate(Bigram(61), long_data, context_length=16, batch_size=4).record()
    assert set(record) == {f"val_{name}" for name in SCORES} | {"loss_by_position"}
    numbers = [record.pop("loss_by_position"), list(record.values())]
    assert all(type(number) is float for group in numbers for number in group)


def test_a_hopeless_model_has_a_finite_perplexity(tmp_path: Path) -> None:
    data = data_of([0, 1], [1, 1, 1, 1], val_bytes=4, val_chars=4, tmp=tmp_path)
    model = Bigram(2)
    with torch.no_grad():
        model.table.copy_(torch.tensor([[5000.0, 0.0], [5000.0, 0.0]]))
    scored = evaluate(model, data, context_length=4, batch_size=1)
    assert scored.loss == pytest.approx(5000.0) and math.isfinite(scored.perplexity)
