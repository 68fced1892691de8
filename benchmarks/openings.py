"""What the end-of-text before a story is worth to a model of tales that reads or writes one.

    python benchmarks/openings.py tales-1m
    python benchmarks/openings.py tales-1m --world tales-short

Each run of the folder reads unseen stories with end-of-text before them, as in training, and without: the mean nats of
their tokens after the first (a mean over stories) and the difference with its 95% t interval over stories. Then it
continues PROMPT both ways, with as many seeds, and the texts are counted that name its hero again.
"""

from __future__ import annotations

import argparse
from math import sqrt
from statistics import mean, stdev

import torch
import torch.nn.functional as F

from nanokimi import tales
from nanokimi.generation.text import TextSettings, complete
from nanokimi.measure.stats import t_quantile
from nanokimi.measure.story_world import QUESTION_SEED, world_of
from nanokimi.train.run_folder import Run, first_seeds, open_run, run_path

HERO = "Niklas"
PROMPT = f"{HERO} had just turned ten"
NEW_TOKENS = 100


@torch.inference_mode()
def story_nats(run: Run, text: str, before: list[int]) -> float:
    """Mean nats of the tokens of a text after its first, with some ids before it."""
    tokens = run.data.tokenizer.encode(text).tolist()[: run.config.train.context_length - 1]
    ids = torch.tensor(before + tokens)
    logits_TW = run.model(ids[None, :-1]).logits_BTW[0].float()
    return float(F.cross_entropy(logits_TW, ids[1:], reduction="none")[len(before) :].mean())


def named_again(run: Run, seeds: int) -> int:
    """How many continuations of PROMPT name its hero."""
    settings = TextSettings(max_new_tokens=NEW_TOKENS, num_samples=seeds)
    return sum(HERO in one.text for one in complete(run.model, run.data.tokenizer, PROMPT, settings))


def main() -> None:
    """Print some lines for each run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="a run's or comparison's folder, or the name of shipped weights")
    parser.add_argument(
        "--stories", type=int, default=100, help="stories read, and texts written (at least 2)"
    )
    parser.add_argument(
        "--world", choices=tales.WORLDS, help="default: the first that the run was trained on"
    )
    options = parser.parse_args()
    for folder in first_seeds(run_path(options.folder)):
        run = open_run(folder, "cpu")
        run.model.eval()
        world, tokenizer = options.world or world_of(run.data.metadata), run.data.tokenizer
        start = tokenizer.start_id
        if start is None:
            parser.error(f"{folder} was trained on a single text: no end-of-text stands before it")
        texts = [tales.tell(QUESTION_SEED, number, world).text for number in range(options.stories)]
        without, with_ = ([story_nats(run, text, before) for text in texts] for before in ([], [start]))
        saved = [a - b for a, b in zip(without, with_, strict=True)]
        half = t_quantile(0.975, len(saved) - 1) * stdev(saved) / sqrt(len(saved))
        print(f"{run.config.title}, {len(texts)} stories of {world}")
        print(f"nats per token    without {mean(without):.4f}, with {mean(with_):.4f}")
        print(f"saved             {mean(saved):.4f} ({mean(saved) - half:.4f} to {mean(saved) + half:.4f})")
        again = named_again(run, len(texts))
        tokenizer.start_id = None
        print(
            f"hero named again  without {named_again(run, len(texts))}, with {again} of {len(texts)}\n",
            flush=True,
        )


if __name__ == "__main__":
    main()
