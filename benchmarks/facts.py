"""What a model of tales knows of the facts of a story, by kind of fact: the nats of a word that was told before.

    python benchmarks/facts.py tales-1m
    python benchmarks/facts.py tales-1m --world tales-short
    python benchmarks/facts.py runs/mine --checkpoint last --stories 100

For each run of the folder, unseen stories are read up to a place where one word follows from a fact told earlier. For
each kind of fact it prints how many such places there were, the mean nats of the right word, and how often it was
likelier than each of up to five wrong ones.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np

from nanokimi import tales
from nanokimi.measure.story_world import QUESTION_SEED, continuation_nats, world_of
from nanokimi.train.run_folder import Run, first_seeds, open_run, run_path


def facts_known(run: Run, world: str, stories: int) -> dict[str, list[tuple[float, bool]]]:
    """For each kind of fact: the nats of the right word, and whether it was the likeliest, at every place."""
    context = run.config.train.context_length
    found = defaultdict(list)
    for number in range(stories):
        for probe in tales.probes(QUESTION_SEED, number, world):
            choices = [probe.answer, *probe.alternatives]
            nats = continuation_nats(run.model, run.data.tokenizer, context, probe.prefix, choices)
            found[probe.kind].append((nats[0], nats[0] < min(nats[1:])))
    return found


def main() -> None:
    """Print a table for each run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="a run's or comparison's folder, or the name of shipped weights")
    parser.add_argument("--checkpoint", default="final")
    parser.add_argument("--stories", type=int, default=100)
    parser.add_argument(
        "--world", choices=tales.WORLDS, help="default: the first that the run was trained on"
    )
    options = parser.parse_args()
    for folder in first_seeds(run_path(options.folder)):
        run = open_run(folder, "cpu", options.checkpoint)
        world = options.world or world_of(run.data.metadata)
        print(f"{run.config.title}, {options.stories} stories of {world}\n\nkind        places  nats   right")
        known = facts_known(run, world, options.stories)
        for kind, places in sorted(known.items(), key=lambda item: -len(item[1])):
            nats, right = np.mean(places, axis=0)
            print(f"{kind:<10} {len(places):>7}  {nats:.2f}  {right:>5.0%}", flush=True)
        print()


if __name__ == "__main__":
    main()
