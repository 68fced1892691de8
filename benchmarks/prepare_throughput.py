"""How fast a text becomes tokens, and in how much memory, beside the tokenizer library's own rate on one core.

    python benchmarks/prepare_throughput.py TEXT [--gb 2 [--documents]] [--workers N] [--tokenizer bpe] [--folder DIR]

TEXT is used unchanged. With --gb it is repeated to that size, every fifth word with a number so that no two copies
are equal; --documents then puts `<|endoftext|>` lines between its paragraphs, about one for every kilobyte. The rate
is that of everything from the file to the finished store except training the tokenizer, which is shown separately:
bytes / (seconds x workers). The library's is that of `SentencePieceProcessor.encode` on the first 20 MB of the same
text in one thread, lists of 10,000 lines, or of whole documents, whichever is faster; ids are discarded. Memory is
that of this process and all its workers, sampled every 200 ms: the sum of the proportional set sizes, in which shared
pages count once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from common import OtherLoad, finish

from nanokimi.config import DatasetConfig
from nanokimi.data import build
from nanokimi.data.build import METADATA_FILE, available_cores, prepare_store
from nanokimi.data.documents import END_OF_TEXT
from nanokimi.data.tokenizers import own as tokenizers
from nanokimi.data.tokenizers.own import SentencePieceTokenizer, WithEndOfText, load_tokenizer

STAGES = ("open_source", "read_source", "remove_overlap", "choose_tokenizer", "encode")


class PeakMemory:
    """The largest memory of this process and its descendants while the block runs."""

    def __enter__(self) -> PeakMemory:
        self.peak, self.seen, self.running = 0, 0, True
        self.before = psutil.Process().memory_full_info().pss
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *ignored: object) -> None:
        self.running = False
        self.thread.join()

    def watch(self) -> None:
        me = psutil.Process()
        while self.running:
            total, processes = 0, [me, *me.children(recursive=True)]
            for process in processes:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    pass
            self.peak, self.seen = max(self.peak, total), max(self.seen, len(processes))
            time.sleep(0.2)


def make_text(source: Path, size: int, documents: bool, path: Path) -> None:
    """Write about `size` bytes to `path`; every copy of the text differs from the others by numbers."""
    lines = source.read_text(encoding="utf-8").splitlines()
    written = copy = 0
    with open(path, "w", encoding="utf-8") as file:
        while written < size:
            since = 0
            for number, line in enumerate(lines):
                # Every fifth word is numbered, so that no two documents share a run of five words.
                words = line.split(" ")
                words[::5] = [f"{word}{copy}" for word in words[::5]] if copy else words[::5]
                text = " ".join(words) + "\n"
                since += len(text)
                if documents and since > 1000:
                    text, since = f"{text}<|endoftext|>\n", 0
                written += file.write(text)
                if written >= size and number % 50 == 0:
                    break
            copy += 1


def library_rates(store: Path, path: Path, size: int) -> dict[str, float]:
    """MB/s of the library alone on one core, by the unit it encodes at a time; ids are discarded."""
    tokenizer = load_tokenizer(store)
    inner = tokenizer.inner if isinstance(tokenizer, WithEndOfText) else tokenizer
    assert isinstance(inner, SentencePieceTokenizer), "the rate is that of SentencePiece"
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read(size)
    rates = {}
    for name, separator in (("lines", "\n"), ("documents", f"\n{END_OF_TEXT}\n")):
        units = text.split(separator)
        started = time.perf_counter()
        for start in range(0, len(units), 10_000):
            inner.processor.encode(units[start : start + 10_000], num_threads=1)
        rates[name] = len(text.encode()) / (time.perf_counter() - started) / 1e6
    return rates


def timed_stages() -> dict[str, float]:
    """Seconds by stage of the following builds: the stages' functions are replaced by timed ones."""
    seconds = dict.fromkeys(STAGES, 0.0)

    def timed(name: str, stage: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return stage(*arguments, **named)
            finally:
                seconds[name] += time.perf_counter() - started

        return run

    for name in STAGES:
        setattr(build, name, timed(name, getattr(build, name)))
    tokenizers._training_sentences = timed_sentences(seconds)
    return seconds


def timed_sentences(seconds: dict[str, float]) -> Callable[..., Iterator[str]]:
    """The sentences that the tokenizer is trained on, with the time to find them, which is ours, added up."""
    find, seconds["choose_sentences"] = tokenizers._training_sentences, 0.0

    def run(*arguments: Any) -> Iterator[str]:
        sentences = find(*arguments)
        while True:
            started = time.perf_counter()
            sentence = next(sentences, None)
            seconds["choose_sentences"] += time.perf_counter() - started
            if sentence is None:
                return
            yield sentence

    return run


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("text", type=Path)
    parser.add_argument("--gb", type=float, default=None, help="repeat the text to this size")
    parser.add_argument("--documents", action="store_true")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--tokenizer", default="bpe", choices=("bpe", "unigram"))
    parser.add_argument("--vocab_size", type=int, default=4096)
    parser.add_argument(
        "--folder", type=Path, default=None, help="for the text and the cache (default: a temporary one)"
    )
    parser.add_argument("--library_mb", type=float, default=20, help="text for the library's own rate")
    parser.add_argument("--out", type=Path, default=None, help="append the JSON line to this file, too")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    folder = Path(tempfile.mkdtemp(prefix="prepare-throughput-", dir=options.folder))
    try:
        path = options.text
        if options.gb is not None:
            path = folder / "text.txt"
            make_text(options.text, int(options.gb * 1e9), options.documents, path)
        dataset = DatasetConfig(
            path=str(path),
            tokenizer=options.tokenizer,
            vocab_size=options.vocab_size,
            workers=options.workers,
            cache=str(folder / "cache"),
        )
        stages = timed_stages()
        with OtherLoad() as load, PeakMemory() as memory:
            started = time.perf_counter()
            store = prepare_store(dataset)
            seconds = time.perf_counter() - started
        size = path.stat().st_size
        metadata = json.loads((store / METADATA_FILE).read_text())
        library = library_rates(store, path, int(options.library_mb * 1e6))
    finally:
        shutil.rmtree(folder)
    workers = options.workers or available_cores()
    tokens = sum(metadata[f"{part}_tokens"] for part in ("train", "val", "test"))
    training = stages["choose_tokenizer"] - stages["choose_sentences"]
    preparing = seconds - training
    speed, best = size / preparing / workers / 1e6, max(library.values())
    print(f"{size / 1e9:.2f} GB, {metadata['documents']:,} documents, {tokens:,} tokens")
    print(f"prepared in {preparing:.1f} s, and a tokenizer trained in {training:.1f} s")
    parts = ", ".join(f"{name} {value * workers / size * 1e9:.0f}" for name, value in stages.items())
    print(f"nanoseconds of a core for a byte: {parts}")
    print(
        f"{memory.seen} processes, peak {memory.peak / 1e6:.0f} MB in all, {memory.before / 1e6:.0f} before"
    )
    print(
        f"{speed:.2f} MB/s per core ({workers}); {options.tokenizer} alone {library}: {speed / best:.0%} of it"
    )
    record = {
        "benchmark": "prepare_throughput",
        **{
            "share": speed / best,
            "mb_per_s_per_core": speed,
            "library_mb_per_s": library,
            "workers": workers,
        },
        **{"bytes": size, "documents": metadata["documents"], "tokens": tokens, "seconds": preparing},
        **{
            "stage_seconds": stages,
            "peak_bytes": memory.peak,
            "bytes_before": memory.before,
            "other_cores": load.cores,
        },
    }
    finish(options, record)


if __name__ == "__main__":
    main()
