"""Print stories, or count: python -m nanokimi.tales [--seed 0] [--stories 3] [--stats]."""

from __future__ import annotations

import argparse
import math
import re
import time
from collections import Counter

from nanokimi.tales import END_OF_TEXT, generate_text, probes, tell
from nanokimi.tales.sampler import rules

PROBED_STORIES = 300


def floor(seed: int, count: int) -> tuple[float, float, float, float]:
    """Return the floor in bits per character and per word, each with its standard error over `count` stories."""
    stories = [tell(seed, index) for index in range(count)]
    bits = [-story.log_probability / math.log(2) for story in stories]
    separator = len(END_OF_TEXT) + 1  # has probability 1, but its characters count as text
    characters = [len(story.text) + separator for story in stories]
    return (*_ratio(bits, characters), *_ratio(bits, [len(story.text.split()) for story in stories]))


def _ratio(bits: list[float], sizes: list[int]) -> tuple[float, float]:
    """Return sum(bits) / sum(sizes) and the standard error of this ratio over stories (delta method)."""
    ratio = sum(bits) / sum(sizes)
    squares = sum((one - ratio * size) ** 2 for one, size in zip(bits, sizes, strict=True))
    return ratio, math.sqrt(squares) / sum(sizes)


def print_statistics(seed: int, count: int) -> None:
    """Print what docs/tales.md reports."""
    tell(seed, 0)  # the rules are read on first use
    start = time.process_time()
    text = generate_text(seed, characters=5_000_000)
    seconds = time.process_time() - start
    stories = [tell(seed, index).text for index in range(count)]
    lengths = sorted(len(story.split()) for story in stories)
    words = Counter(word for story in stories for word in re.findall(r"[a-z']+", story.lower()))
    per_character, error, per_word, word_error = floor(seed, count)
    print(f"stories            {count}, seed {seed}")
    print(f"plots              {len(rules()['plot'].options)} and {len(rules()['fable'].options)} fables")
    print(f"different words    {len(words)}")
    print(
        f"words per story    {sum(lengths) / count:.1f} ({lengths[0]} to {lengths[-1]}), median {lengths[count // 2]}"
    )
    print(f"characters         {sum(map(len, stories)) / count:.1f} per story")
    print(f"different stories  {len(set(stories))}")
    print(
        f"floor              {per_character:.5f} +- {error:.5f} bits per character (separators are text, too)"
    )
    print(f"floor              {per_word:.4f} +- {word_error:.4f} bits per word")
    print(f"speed              {len(text) / seconds / 1e6:.1f} MB a second of processor time")
    distances = [probe.distance_words for index in range(PROBED_STORIES) for probe in probes(seed, index)]
    edges = (0, 15, 35, 75, 150, 400)
    counts = [
        sum(low <= one < high for one in distances) for low, high in zip(edges, edges[1:], strict=False)
    ]
    print(f"probes             {counts} in {PROBED_STORIES} stories, by distance in words {edges}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m nanokimi.tales", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stories", type=int, default=None, help="how many (3, or 2000 with --stats)")
    parser.add_argument("--start", type=int, default=0, help="the first story to print")
    parser.add_argument("--stats", action="store_true", help="count instead of printing stories")
    arguments = parser.parse_args()
    if arguments.stats:
        print_statistics(arguments.seed, arguments.stories or 2000)
    else:
        stop = arguments.start + (arguments.stories or 3)
        texts = [tell(arguments.seed, index).text for index in range(arguments.start, stop)]
        print(f"{END_OF_TEXT}\n".join(texts), end="")


if __name__ == "__main__":
    main()
