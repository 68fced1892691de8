"""The model card and the documentation page of the models that ship, from what `pretrained.py` measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nanokimi.runtime.files import read_json

SHIPPED_FILE = "shipped.json"
SHOWN_STORIES = 4
"""Of each model: the first ones, with the first seeds."""
JUDGED = {
    "grammatical": "grammatical",
    "consistent": "grammatical and consistent",
    "perfect": "complete and right",
}
CARD = """---
license: mit
tags:
- nanokimi
---

# tales-1m: {names}

Two small language models that ship with nanokimi, trained on its built-in story world `tales`. They write children's
stories of that world and know nothing else. The training text, the stories and the weights are ours, under the MIT
licence. `nanokimi sample tales-1m` writes with both; `nanokimi.load("tales-1m")` loads one.

{table}

All rows but "before rounding" are of the weights as shipped (bf16, computed in fp32), on the whole test part. The
stories continue the first sentences of unseen tales (temperature and top-p of config.yaml) and were judged by the
world's own parser; intervals are Wilson's, 95%. Both models have the same optimizer settings, untuned at this size
and trained with one seed: the table does not say which architecture is better. The report of the run is report.html;
its times were taken while other work ran on the machine, and say nothing of speed.
Of the training text, only the last documents are in data/; `make pretrained` repeats everything.
"""
PAGE = """# The models that ship

`nanokimi/pretrained/tales-1m` holds a NanoKimi and a NanoGPT with Muon that were trained on the large story world
([tales.md](tales.md)). A shipped model's name stands for its folder wherever a command reads a
run (`report` writes into one):

```sh
nanokimi sample tales-1m
nanokimi evaluate tales-1m
```

```python
import nanokimi as nk

model, tokenizer = nk.load("tales-1m")
print(nk.complete(model, tokenizer, "Once upon a time")[0].text)
```

`make pretrained` repeats them: it trains both (`nanokimi compare --config tales-1m`, an hour or more per model),
ships the result and writes this page. (Ours were trained at the same time, on one thread each, on a machine that did
other work: the times in the report say nothing of speed.)

{table}

All rows but "before rounding" are of the weights as shipped: matrices in bf16, computed in fp32. A story is *complete
and right* if the world's parser can follow it to its last full stop, with no fact contradicted; the stories continue
first sentences of tales that no training text contains. Intervals are Wilson's, 95%. Both models have the same
optimizer settings, untuned at this size, and one seed each, so the table does not say which architecture is better;
for that, see [results.md](results.md).

NanoKimi's stories go wrong because it repeats names and hardly any other fact of a story. At places where a word
follows from a fact that was told before, the right word costs so many nats, and is likelier than each of up to five
wrong ones so often (`python benchmarks/facts.py tales-1m --stories 60`, the kinds with 30 places or more; AMD EPYC,
one seed of each model):

| | places | NanoKimi | NanoGPT with Muon |
|---|---|---|---|
| name | 568 | 0.01 (100%) | 0.01 (100%) |
| relative | 75 | 1.66 (56%) | 1.59 (53%) |
| colour | 68 | 3.32 (21%) | 0.17 (97%) |
| number | 41 | 2.38 (22%) | 2.06 (39%) |
| object | 34 | 2.67 (50%) | 0.43 (97%) |

Here, at the second "crimson", it is as unsure as somebody who guesses:

```sh
nanokimi inspect tales-1m --max_new_tokens 1 \\
  --prompt 'A small child held a crimson balloon. "There is another one," said Una, "but there is only one crimson'
```

Why it does not learn this is not known. Each of these was tried, once and with one seed, and a colour that was told
before still cost as much as guessing at the end, or when the training was stopped (which does not say that it would
not have been learnt later):

- Two more layers, a latent of 96 numbers and 10,000 steps (`make pretrained` at commit 0e5fc5a): 0.2252 nats per token
  on the test text, and again no story of 100 was right.
- A head that is tied to the embedding, as NanoGPT's is (`--nanokimi.model.tie_word_embeddings true`), stopped after
  6,000 of the 8,000 steps at 0.2537 nats on the validation text.
- The same head, with Muon for the rows of each head alone, as GLM-5 and Kimi K3 have it
  (`--nanokimi.optim.split_heads true`), to the end: 0.2276 nats on the validation text, as the shipped one's 0.2280.
  Muon for each head alone, without the tied head, was stopped after 2,500 steps.
- Smaller residual outputs at the start, as NanoGPT has them (`--nanokimi.model.rescale_prenorm_residual true`), with
  the tied head (stopped after 2,800 steps) and without it (after 4,100, at 0.2825 nats on the validation text).
- Batches twice as large for half as many steps, with Muon's momentum 0.97 instead of 0.9 and a latent of 128 numbers
  instead of 64, to the end: 0.2289 nats on the validation text.
- The same, on a text of which half are stories of the small world, `tales-short`, with NanoKimi's own head (stopped
  after 3,327 of 4,000 steps) and with one that is tied to the embedding (after 2,250). Of short stories both then
  know names, animals, pets, trades and objects for certain (0.02 nats or less), the second also most places, and of
  long ones names and relatives; but colours cost 2.8 to 3.0 nats still, and numbers one or more.

NanoGPT with Muon gains more from that text. After the same 4,000 steps (61 million tokens, half of them of long
stories) 11 of 20 long stories were complete and right, and every fact of a short story cost it 0.01 nats or less (one
seed). After 2,100 steps already it had found one head, in its last layer, that gives 0.94 to 0.97 of its weight to
the word told before, of whatever kind. NanoKimi has other heads for other kinds, and for colours none. A part of the
reason may be that colours and numbers are used alike: what tells two of them apart is a fifth of a token's vector in
the residual stream of NanoKimi after the first layer, a quarter in NanoGPT, and a half for animals. These models do
not ship yet.

## {count} stories

The first stories that were judged, with the first seeds, not chosen by taste. The beginning in italics was given.

{stories}
"""


def write_texts(folder: Path, page: Path) -> None:
    """Write the model card of the folder and the page of docs/ from what was measured."""
    models = read_json(folder / SHIPPED_FILE)["models"]
    (folder / "README.md").write_text(card(models), encoding="utf-8")
    page.write_text(docs_page(models), encoding="utf-8")


def card(models: list[dict[str, Any]]) -> str:
    """The model card."""
    return CARD.format(table=table(models), names=" and ".join(model["name"] for model in models))


def docs_page(models: list[dict[str, Any]]) -> str:
    """docs/pretrained.md."""
    shown = [
        f"**{model['name']}, seed {model['seed'] + number}** ({said_of(one)}).\n\n{quoted(one)}"
        for number in range(SHOWN_STORIES)
        for model, one in ((model, model["stories"][number]) for model in models)
    ]
    return PAGE.format(table=table(models), stories="\n\n".join(shown), count=len(shown))


def table(models: list[dict[str, Any]]) -> str:
    """Both models beside each other, in Markdown."""
    rows = {
        "parameters (active)": [f"{m['parameters']:,} ({m['active_parameters']:,})" for m in models],
        "weights (MB)": [f"{m['bytes'] / 1e6:.2f}" for m in models],
        "steps, tokens read": [f"{m['steps']:,}, {m['tokens']:,}" for m in models],
        "test loss (nats per token)": [f"{m['test_loss']:.4f}" for m in models],
        "... before rounding to bf16": [f"{m['test_loss_before_rounding']:.4f}" for m in models],
        "entropy floor": [f"{m['floor']:.4f}" for m in models],
        "above the floor": [f"{m['test_loss'] - m['floor']:.4f}" for m in models],
        "bits per byte": [f"{m['test_bits_per_byte']:.4f}" for m in models],
        **{f"stories: {words}": [share(m["judged"][name]) for m in models] for name, words in JUDGED.items()},
        "characters before the first error": [
            f"{m['judged']['right_before_first_error']:.0%}" for m in models
        ],
        **{
            f"a fact told {distance} words before (guessing: {guessing:.0%})": [
                share(m["recall"][distance]) for m in models
            ]
            for distance, guessing in (
                (name, found["guessing"]) for name, found in models[0]["recall"].items()
            )
        },
        "causality audit": [m["audit"].lower() for m in models],
    }
    head = [f"| | {' | '.join(m['name'] for m in models)} |", "|---" * (len(models) + 1) + "|"]
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
    paragraphs = one["text"].removeprefix(one["opening"]).strip("\n").split("\n\n")
    paragraphs[0] = f"*{one['opening']}*{paragraphs[0]}"
    return "\n>\n".join(f"> {paragraph}" for paragraph in paragraphs)
