"""A lower bound on how far above the entropy a model's loss must be if its windows do not hold whole tales.

Let a model be told everything about a story except the facts that its window does not show and that the scored part
needs: a name, say, that was last said before the window and is said again in it. Every such fact is uniform over the
words that could stand there instead, so it costs log(how many), on top of what the story itself costs. A model that
is told less cannot be expected to do better. Not counted are punctuation, plots and places in them that have to be
guessed, and facts that only a pronoun shows. (One step is assumed and not proved: that the scored text, with
everything that is told, always shows which word is meant. The text of a tale does.)

    python benchmarks/tales_floor.py [FOLDER_OF_PREPARED_TALES CONTEXT]
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from nanokimi.config import DatasetConfig
from nanokimi.data.batches import Windows, scored_windows
from nanokimi.data.store import PreparedData, open_prepared, prepare
from nanokimi.data.summary import bytes_of_ids
from nanokimi.tales.parser import Reader
from nanokimi.tales.sampler import lexicons, program
from nanokimi.tales.world import Bind, Entity, Lexicon, Slot, Text, World

SHARED = ("he", "him", "his", "himself", "was", "child", "hers")
"""Forms that many entities have: they show a sex and no more, and every candidate has the same."""
Fact = tuple[float, np.ndarray]
"""log(candidates), and from where to where in the text the fact is shown, (mentions, 2)."""


class Mentions(Reader):
    """Reads a story and notes where each entity is named."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.spans: dict[Entity, list[tuple[int, int]]] = {}
        self.drawn_from: dict[Entity, Lexicon] = {}

    def note(self, world: World, entity: Entity, form: str, start: int, stop: int) -> None:
        if form in SHARED:
            return
        named = [entity]
        if entity not in self.drawn_from:  # two characters named as one
            names = entity.forms[""].split(" and ")
            named = [one for one in world.used if one.forms[""] in names]
        for one in named:
            self.spans.setdefault(one, []).append((start, stop))

    def say(self, text: Text, world: World) -> None:
        place = self.position
        for item in text.items:
            words = world.words[item.key] if isinstance(item, Slot) else item
            if isinstance(item, Slot) and item.role in world.cast:
                self.note(world, world.cast[item.role], item.form, place, place + len(words))
            place += len(words)
        super().say(text, world)

    def introduce(self, bind: Bind, world: World) -> Entity:
        start = self.position
        entity = super().introduce(bind, world)
        self.drawn_from[entity] = bind.lexicon
        self.note(world, entity, bind.form, start, self.position)
        return entity


def groups_of() -> dict[Entity, set[str]]:
    """The word groups of each entity: entities with the same groups are equally likely everywhere."""
    groups: dict[Entity, set[str]] = {}
    for name, lexicon in lexicons().items():
        for entity in lexicon.entities:
            groups.setdefault(entity, set()).add(name)
    return groups


def facts_of(text: str, groups: dict[Entity, set[str]]) -> list[Fact]:
    """The facts of a story."""
    reader, world = Mentions(text), World()
    program().perform(world, reader)
    facts = []
    for entity, spans in reader.spans.items():
        others = sum(
            other not in world.used
            and groups[other] == groups[entity]
            and all(other.forms.get(form) == entity.forms.get(form) for form in SHARED)
            for other in reader.drawn_from[entity].entities
        )
        facts.append((math.log(1 + others), np.array(spans)))
    return facts


def least_extra_nats(data: PreparedData, windows: Windows) -> float:
    """The cost of facts that windows do not show, over the whole text."""
    offsets, groups = data.val_doc_offsets.astype(np.int64), groups_of()
    sizes = bytes_of_ids(data.tokenizer)[data.val_ids]  # the tales are ASCII
    facts, ends = [], []
    for start, stop in zip(offsets[:-1], offsets[1:], strict=True):
        text = data.tokenizer.decode(data.val_ids[start : stop - 1].tolist())
        facts.append(facts_of(text, groups))
        ends.append(np.cumsum([0, *sizes[start:stop]]) - (sizes[start : stop - 1].sum() - len(text)))
    extra = 0.0
    for start, scored, stop in zip(windows.starts, windows.scored, windows.stops, strict=True):
        document = int(np.searchsorted(offsets, start, side="right")) - 1
        begin = offsets[document]
        if start > begin:
            place = ends[document]
            stop = min(stop, offsets[document + 1])
            extra += hidden(
                facts[document], place[start - 1 - begin], place[scored - begin], place[stop - begin]
            )
    return extra


def hidden(facts: Iterable[Fact], read: int, scored: int, stop: int) -> float:
    """The cost of facts told before character `read`, not between there and `scored`, and again before `stop`."""
    cost = 0.0
    for nats, spans in facts:
        told = (spans[:, 0] < read).any()
        shown = ((spans[:, 1] > read) & (spans[:, 0] < scored)).any()
        needed = ((spans[:, 0] >= scored) & (spans[:, 1] <= stop)).any()
        cost += nats if told and needed and not shown else 0.0
    return cost


def report(name: str, data: PreparedData, context: int) -> None:
    """Print the bounds for both kinds of windows."""
    assert data.val_doc_nats is not None, "the probabilities of tales are known"
    tokens, floor = len(data.val_ids), float(data.val_doc_nats.sum())
    for how, offsets in (("cut anywhere", None), ("from beginnings", data.val_doc_offsets)):
        extra = least_extra_nats(data, scored_windows(tokens, offsets, context))
        print(
            f"{name}, context {context}, {how}: floor {floor / tokens:.4f}, "
            f"attainable at least {(floor + extra) / tokens:.4f} nats per token ({1 + extra / floor:.3f} times)"
        )


def main() -> None:
    """Of the folder given, or of the text of the presets tales and ladder-tales."""
    if len(sys.argv) == 3:
        report(sys.argv[1], open_prepared(Path(sys.argv[1])), int(sys.argv[2]))
        return
    for vocab_size, characters, fraction, context in (
        (2048, 12_000_000, 0.01, 256),
        (1024, 6_000_000, 0.015, 128),
    ):
        dataset = DatasetConfig(
            path="tales", tokenizer="bpe", vocab_size=vocab_size, characters=characters, val_fraction=fraction
        )
        with tempfile.TemporaryDirectory() as folder:
            report(f"tales, bpe {vocab_size}", prepare(dataset, Path(folder) / "data", context), context)


if __name__ == "__main__":
    main()
