"""Whether a model trained on tales knows its world: its stories are judged, and it is asked for facts of a story.

Both use stories of a seed that no training set contains. Intervals are Wilson's for a proportion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nanokimi import tales
from nanokimi.data.tokenizers.opening import opening_ids
from nanokimi.data.tokenizers.own import Tokenizer

QUESTION_SEED = 2**40  # dataset seeds are small numbers
DISTANCES = {"20": (15, 35), "50": (35, 75), "100": (75, 150), "200": (150, 401)}
"""Words since the fact was told: about, from, and up to."""


@dataclass(frozen=True)
class Proportion:
    """A share of `total` trials, with its 95% interval."""

    share: float
    low: float
    high: float
    total: int


def world_of(metadata: Mapping[str, Any]) -> str:
    """The world of prepared tales (data.json), such as that of tales:3; of a mixture of worlds, the first one's."""
    sources = metadata.get("sources")
    path: str = sources[0]["path"] if sources else metadata["path"]
    return path.partition(":")[0]


def wilson(successes: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95% interval for a proportion (1927), which also works for few trials and for shares near 0 and 1."""
    if total == 0:
        return 0.0, 1.0
    share = successes / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * (share * (1 - share) / total + z**2 / (4 * total**2)) ** 0.5
    return max(middle - half, 0.0), min(middle + half, 1.0)


def proportion(right: Sequence[bool]) -> dict[str, Any]:
    """The share of right answers with its interval, and each answer, so that models can be compared by question."""
    successes, total = sum(right), len(right)
    found = Proportion(successes / max(total, 1), *wilson(successes, total), total)
    return {**asdict(found), "right": [int(one) for one in right]}


def judge_stories(
    write: Callable[[str, int], str], stories: int, world: str = tales.WORLDS[0]
) -> dict[str, Any]:
    """Judge a model's continuations of unseen stories.

    `write(opening, i)` returns the continuation up to end-of-text. The opening is a story's first sentence.
    """
    judged, examples = [], []
    for i in range(stories):
        opening = first_sentence(tales.tell(QUESTION_SEED, i, world).text)
        text = opening + write(opening, i)
        verdict = tales.judge(text, world)
        judged.append((verdict, len(text)))
        examples.append(
            {"text": text, "first_error": verdict.first_error, "characters_ok": verdict.characters_ok}
        )
    held = {  # if the grammar fails first, the facts are unknown
        "grammatical": [v.grammatical for v, _ in judged],
        "consistent": [v.grammatical and v.consistent for v, _ in judged],
        "complete": [v.complete for v, _ in judged],
        "perfect": [v.grammatical and v.consistent and v.complete for v, _ in judged],
    }
    shares = {name: proportion(verdicts) for name, verdicts in held.items()}
    right = sum(min(v.characters_ok / max(length, 1), 1.0) for v, length in judged) / stories
    return {**shares, "right_before_first_error": right, "examples": examples[:3]}


def first_sentence(text: str) -> str:
    """The text up to and including its first full stop, and the quotation mark that closes right after it.

    A tokenizer may have both as one piece: after the full stop alone a model could not close the quotation.
    """
    end = text.index(".") + 1
    return text[: end + text[end:].startswith('"')]


def recall(
    model: nn.Module,
    tokenizer: Tokenizer,
    context_length: int,
    questions: int,
    world: str = tales.WORLDS[0],
) -> dict[str, Any]:
    """Ask for facts told as many words before as DISTANCES says. The true word must be likelier than each wrong one.

    Returns for each distance that the world's stories have: the share of right answers with its interval, which
    answers were right, and the share that guessing would give.
    """
    results = {}
    for distance, probes in collect_probes(questions, world).items():
        right, chance = [], 0.0
        for probe in probes:
            choices = [probe.answer, *probe.alternatives]
            scores = continuation_nats(model, tokenizer, context_length, probe.prefix, choices)
            right.append(scores[0] < min(scores[1:]))  # a tie is no knowledge
            chance += 1 / len(choices)
        results[distance] = {**proportion(right), "guessing": chance / max(len(probes), 1)}
    return results


def collect_probes(questions: int, world: str = tales.WORLDS[0]) -> dict[str, list[tales.Probe]]:
    """`questions` probes for each distance. Kinds of facts take turns, so that names do not outnumber the others."""
    wanted: dict[str, dict[str, list[tales.Probe]]] = {distance: {} for distance in DISTANCES}
    for index in range(20 * questions):
        for probe in tales.probes(QUESTION_SEED + 1, index, world):
            for distance, (low, high) in DISTANCES.items():
                if low <= probe.distance_words < high:
                    wanted[distance].setdefault(probe.kind, []).append(probe)
        if all(sum(map(len, kinds.values())) >= 4 * questions for kinds in wanted.values()):
            break
    return {distance: list(take_turns(kinds, questions)) for distance, kinds in wanted.items() if kinds}


def take_turns(kinds: dict[str, list[tales.Probe]], questions: int) -> Iterator[tales.Probe]:
    """The first probe of each kind, then the second of each, and so on, up to `questions`."""
    given = 0
    for turn in count():
        round_ = [probes[turn] for _, probes in sorted(kinds.items()) if turn < len(probes)]
        if not round_:
            return
        for probe in round_:
            if given == questions:
                return
            given += 1
            yield probe


@torch.inference_mode()
def continuation_nats(
    model: nn.Module, tokenizer: Tokenizer, context_length: int, prefix: str, choices: list[str]
) -> list[float]:
    """Negative log-likelihood of each choice after `prefix`, the beginning of a document.

    The prefix is cut at its beginning if the context is short.

    A tokenizer may merge the end of the prefix with the choice, so all choices are scored from the first token in which
    any of them differs from the prefix.
    """
    device = next(model.parameters()).device
    known = opening_ids(tokenizer, prefix)
    texts = [opening_ids(tokenizer, prefix + choice) for choice in choices]
    start = min(shared_length(known, ids) for ids in texts)
    longest = max(len(ids) for ids in texts)
    begin = max(0, longest - 1 - context_length)
    was_training = model.training
    model.eval()
    rows = torch.zeros(len(texts), longest - begin, dtype=torch.long)
    for row, ids in zip(rows, texts, strict=True):
        row[: len(ids) - begin] = torch.tensor(ids[begin:])
    logits_BTW = model(rows[:, :-1].to(device)).logits_BTW.float()
    nats_BT = F.cross_entropy(logits_BTW.transpose(1, 2), rows[:, 1:].to(device), reduction="none").cpu()
    model.train(was_training)
    first = max(start - 1 - begin, 0)
    return [float(nats_BT[i, first : len(ids) - 1 - begin].sum()) for i, ids in enumerate(texts)]


def shared_length(one: list[int], other: list[int]) -> int:
    """The number of tokens that two sequences share from the start."""
    same = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        same += 1
    return same
