"""The model card and the documentation page of the models that ship, from what `pretrained.py` measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nanokimi.runtime.files import read_json

SHIPPED_FILE = "shipped.json"
SHOWN_STORIES = 2
"""Of each model and text: the first ones, with the first seeds."""
FEWEST_PLACES = 10
"""Kinds of facts with fewer places in the stories that were read are not shown."""
CARD = """---
license: mit
tags:
- nanokimi
---

# tales-1m: {names}

Two small language models that ship with nanokimi, trained on its built-in story worlds: half of the text is long
stories (`tales`), half is short ones (`tales-short`). They write children's stories of those worlds and know nothing
else. The training text, the stories and the weights are ours, under the MIT licence. `nanokimi sample tales-1m` writes
with both; `nanokimi.load("tales-1m")` loads one.

{tables}

All rows but "before rounding" and the audit are of the weights as shipped (bf16, computed in fp32), on the whole test
part. The stories continue the first sentences of unseen tales (temperature and top-p of config.yaml) and were judged
by the world's own parser; intervals are Wilson's, 95%. Both models have the same optimizer settings, untuned at this
size and trained with one seed: the tables do not say which architecture is better. The models were trained in two
stages of 4,000 and 3,000 steps: the loss rises after step 4,000, because the learning rate does. The report of the run
is report.html. Its last stories, their judgement and its questions were made again, with the end-of-text that stands
before each story; the stories of earlier steps lack it. The models come from two comparisons that were put into one
folder afterwards, while other work ran on the machine: the report's commands are not those of `make pretrained`, and
its times say nothing of speed. Of each training text, only the last documents are in data/; `make pretrained` repeats
everything.
"""
PAGE = """# The models that ship

`nanokimi/pretrained/tales-1m` holds a NanoKimi and a NanoGPT with Muon that were trained on both story worlds
([tales.md](tales.md)): half of the text is long stories, `tales`, half is short ones, `tales-short`. A shipped model's
name stands for its folder wherever a command reads a run (`report` writes into one):

```sh
nanokimi sample tales-1m
nanokimi evaluate tales-1m
```

```python
import nanokimi as nk

model, tokenizer = nk.load("tales-1m")
print(nk.complete(model, tokenizer, "Una had just turned nine")[0].text)
```

`make pretrained` repeats them: it trains both in two stages, an hour or more per model and stage, ships the result
and writes this page. The first stage is 4,000 steps of `nanokimi compare --config tales-1m`, at whose end the
learning rate is zero; the second goes on to step 7,000 with the rate that a run of 7,000 steps has from there, seven
tenths of the peak and falling. (The second stage was added because NanoKimi was still learning when the first one
ended. Ours come from two comparisons with these settings, one for each model, and were put into one folder
afterwards. So the commands that the report names are not those of `make pretrained`, and the one under "Repeat it"
trains in one stage. The machine did other work at the same time: the report's times say nothing of speed.)

{tables}

All rows but "before rounding" and the audit are of the weights as shipped: matrices in bf16, computed in fp32. A
story is *complete and right* if the world's parser can follow it to its last full stop, with no fact contradicted;
the stories continue first sentences of tales that no training text contains. Intervals are Wilson's, 95%. Both models
have the same optimizer settings, untuned at this size, and one seed each, so the tables do not say which architecture
is better; for that, see [results.md](results.md).

## What they know of a story

At places where a word follows from a fact that was told before, the right word costs so many nats, and is likelier
than each of up to five wrong ones so often (the kinds with 10 places or more; one seed of each model;
`python benchmarks/facts.py tales-1m --world tales`, and `tales-short`):

{facts}

## What it took

The first weights that shipped had read long stories only, for 8,000 steps of half the batch (61 million tokens): of 100
stories, NanoGPT with Muon told 14 right and NanoKimi none. (All stories of this section were judged without the
end-of-text before a story, see [corrections.md](corrections.md#stories-began-where-no-story-begins).) NanoKimi repeated
names and hardly any other fact: a colour that was told before cost it 3.3 nats, as much as guessing. Each of
these was tried on long stories, once and with one seed, and changed nothing by the end, or by the step at which the
training was stopped:

- Two more layers, a latent of 96 numbers and 10,000 steps.
- A head that is tied to the embedding, as NanoGPT's is (stopped after 6,000 steps), and the same with Muon for the rows
  of each head alone, as GLM-5 and Kimi K3 have it (`--nanokimi.optim.split_heads true`, all 8,000 steps).
- Smaller residual outputs at the start, as NanoGPT has them (`--nanokimi.model.rescale_prenorm_residual true`, stopped
  after 2,800 steps with the tied head and 4,100 without).
- Batches twice as large for half as many steps, with Muon's momentum 0.97 instead of 0.9 and a latent of 128 numbers
  instead of 64.

Short stories, as half of the text, and patience changed it. NanoGPT with Muon knew the colours of short stories after
2,100 steps; it had found one head, in its last layer, that gives 0.94 to 0.97 of its weight to the word told before,
of whatever kind. NanoKimi finds other heads for other kinds, and finds them later: with the tied head the colours of
short stories cost 3.0 nats after 2,250 steps and 0.0 after 4,000, when the rate had fallen, and the numbers 1.6 nats
after 4,000 steps and 0.0 after 5,200, in the second stage. (On the same mixture with a head of its own, colours still
cost NanoKimi 2.8 nats when that training was stopped, after 3,327 of 4,000 steps; so it is not known whether the tied
head matters.) All this was measured once, on checkpoints that were not kept. What NanoKimi still does not know is in
the tables: objects, times, foods, wishes and places of long stories, places and times of short ones.

## {count} stories

The first stories that were judged, with the first seeds, not chosen by taste. The beginning in italics was given.
*Not a tale* means that the parser knows no such sentence in that place: an ending about a riddle that was never told
is sound English, and not a tale.

{stories}
"""


def write_texts(folder: Path, page: Path) -> None:
    """Write the model card of the folder and the page of docs/ from what was measured."""
    models = read_json(folder / SHIPPED_FILE)["models"]
    (folder / "README.md").write_text(card(models), encoding="utf-8")
    page.write_text(docs_page(models), encoding="utf-8")


def card(models: list[dict[str, Any]]) -> str:
    """The model card."""
    return CARD.format(tables=tables(models), names=" and ".join(model["name"] for model in models))


def docs_page(models: list[dict[str, Any]]) -> str:
    """docs/pretrained.md."""
    shown = [
        (text, model, number)
        for text in models[0]["texts"]
        for number in range(SHOWN_STORIES)
        for model in models
    ]
    stories = []
    for text, model, number in shown:
        one = model["texts"][text]["stories"][number]
        seed = model["seed"] + number
        stories.append(f"**{model['name']}, `{text}`, seed {seed}** ({said_of(one)}).\n\n{quoted(one)}")
    return PAGE.format(
        tables=tables(models), facts=facts_tables(models), stories="\n\n".join(stories), count=len(shown)
    )


def tables(models: list[dict[str, Any]]) -> str:
    """Both models beside each other, in Markdown: what they cost, then how good they are at each text."""
    costs = {
        "parameters (active)": [f"{m['parameters']:,} ({m['active_parameters']:,})" for m in models],
        "weights (MB)": [f"{m['bytes'] / 1e6:.2f}" for m in models],
        "steps, tokens read": [f"{m['steps']:,}, {m['tokens']:,}" for m in models],
        "test loss, all texts (nats per token)": [f"{m['test_loss']:.4f}" for m in models],
        "causality audit": [m["audit"].lower() for m in models],
    }
    names = [m["name"] for m in models]
    parts = [in_markdown("", names, costs)]
    for text in models[0]["texts"]:
        found = [m["texts"][text] for m in models]
        parts += [in_markdown(f"`{text}`", names, losses(found) | stories_told(found))]
    return "\n\n".join(parts)


def losses(found: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Rows: each model's loss on one text, beside the floor."""
    return {
        "test loss (nats per token)": [f"{one['loss']:.4f}" for one in found],
        "... before rounding to bf16": [f"{one['before']:.4f}" for one in found],
        "entropy floor": [f"{one['floor']:.4f}" for one in found],
        "above the floor": [f"{one['loss'] - one['floor']:.4f}" for one in found],
        "bits per byte": [f"{one['bits_per_byte']:.4f}" for one in found],
    }


def stories_told(found: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Rows: what the parser says of each model's stories, and how many facts of others' stories it knows."""
    return {
        "stories: complete and right": [share(one["judged"]["perfect"]) for one in found],
        "characters before the first error": [
            f"{one['judged']['right_before_first_error']:.0%}" for one in found
        ],
        **{
            f"a fact told {distance} words before (guessing: {asked['guessing']:.0%})": [
                share(one["recall"][distance]) for one in found
            ]
            for distance, asked in found[0]["recall"].items()
        },
    }


def facts_tables(models: list[dict[str, Any]]) -> str:
    """For each text: what the right word costs at places where it follows from a fact, by kind of fact."""
    parts = []
    for text, first in models[0]["texts"].items():
        kinds = sorted(first["facts"], key=lambda kind: -first["facts"][kind][0])
        rows = {
            f"{kind} ({first['facts'][kind][0]:.0f} places)": [
                f"{nats:.2f} ({right:.0%})"
                for _, nats, right in (m["texts"][text]["facts"][kind] for m in models)
            ]
            for kind in kinds
            if first["facts"][kind][0] >= FEWEST_PLACES
        }
        parts.append(in_markdown(f"`{text}`", [m["name"] for m in models], rows))
    return "\n\n".join(parts)


def in_markdown(corner: str, names: list[str], rows: dict[str, list[str]]) -> str:
    """A table with a column for each model."""
    head = [f"| {corner} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    return "\n".join(head + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()])


def share(found: dict[str, Any]) -> str:
    """A proportion with its interval."""
    right = round(found["share"] * found["total"])
    return f"{right} of {found['total']} ({found['low']:.0%} to {found['high']:.0%})"


def said_of(one: dict[str, Any]) -> str:
    """What the parser says of a story."""
    if one["grammatical"] and one["consistent"] and one["complete"]:
        return "complete and right"
    if one["grammatical"] and one["consistent"]:
        return "right as far as it goes, but incomplete"
    return (
        f"{'inconsistent' if one['grammatical'] else 'not a tale'} from character {one['characters_ok']:,} on"
    )


def quoted(one: dict[str, Any]) -> str:
    """A story as a block quote; the opening, which was given, is in italics."""
    paragraphs = one["text"].removeprefix(one["opening"]).rstrip("\n").split("\n\n")
    paragraphs[0] = f"*{one['opening']}*{paragraphs[0]}"
    return "\n>\n".join(f"> {paragraph}" for paragraph in paragraphs)
