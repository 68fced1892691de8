"""How fast a text becomes tokens, and in how much memory, beside the tokenizer library's own rate on one core.

    python benchmarks/prepare_throughput.py TEXT --gb 2 [--documents] [--workers N] [--tokenizer bpe] [--folder DIR]

TEXT is repeated to the size that is asked for, with a number in each copy so that no two are equal; --documents puts
`<|endoftext|>` lines between its paragraphs, about one for every kilobyte. Memory is that of this process and all its
workers, sampled every 50 ms: the sum of the proportional set sizes, in which shared pages count once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import threading
import time
from pathlib import Path

import psutil

from nanokimi.config import DatasetConfig
from nanokimi.data.build import FACTS_FILE, prepare_store
from nanokimi.data.tokenizers import SentencePieceTokenizer, WithEndOfText, load_tokenizer


class PeakMemory:
    """The largest memory of this process and its descendants while the block runs."""

    def __enter__(self) -> PeakMemory:
        self.peak, self.seen, self.running = 0, 0, True
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
            time.sleep(0.05)


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


def library_rate(store: Path, path: Path, size: int = 20_000_000) -> float:
    """MB/s of the bare library on one core: lines of the same text, ids thrown away."""
    tokenizer = load_tokenizer(store)
    inner = tokenizer.inner if isinstance(tokenizer, WithEndOfText) else tokenizer
    assert isinstance(inner, SentencePieceTokenizer), "the rate is that of SentencePiece"
    with open(path, encoding="utf-8") as file:
        lines = file.read(size).splitlines()
    started = time.perf_counter()
    for start in range(0, len(lines), 10_000):
        inner.processor.encode(lines[start : start + 10_000], num_threads=1)
    return sum(len(line.encode()) + 1 for line in lines) / (time.perf_counter() - started) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--gb", type=float, default=0.2)
    parser.add_argument("--documents", action="store_true")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--tokenizer", default="bpe", choices=("bpe", "unigram"))
    parser.add_argument("--vocab_size", type=int, default=4096)
    parser.add_argument(
        "--folder", type=Path, default=None, help="for the text and the cache (default: a temporary one)"
    )
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="prepare-throughput-", dir=options.folder))
    try:
        path = folder / "text.txt"
        make_text(options.text, int(options.gb * 1e9), options.documents, path)
        dataset = DatasetConfig(
            path=str(path),
            tokenizer=options.tokenizer,
            vocab_size=options.vocab_size,
            workers=options.workers,
            cache=str(folder / "cache"),
        )
        with PeakMemory() as memory:
            started = time.perf_counter()
            store = prepare_store(dataset)
            seconds = time.perf_counter() - started
        size = path.stat().st_size
        facts = json.loads((store / FACTS_FILE).read_text())
        rate = library_rate(store, path)
    finally:
        shutil.rmtree(folder)
    tokens, speed = facts["train_tokens"] + facts["val_tokens"], size / seconds / 1e6
    processes = f"{memory.seen} processes, peak {memory.peak / 1e6:.0f} MB in all"
    record = {"bytes": size, "seconds": seconds, "peak_bytes": memory.peak, "library_mb_per_s": rate}
    print(f"{size / 1e9:.2f} GB, {facts['documents']:,} documents, {tokens:,} tokens")
    print(f"prepared in {seconds:.1f} s: {speed:.2f} MB/s, {processes}")
    print(f"{options.tokenizer} library alone: {rate:.2f} MB/s per core; ratio {speed / rate:.2f}")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
