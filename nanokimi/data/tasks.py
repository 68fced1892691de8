"""The parts of a build that run in parallel: a task is a few numbers, and its result is small or on disk.

Workers are separate processes (`python -m nanokimi.data.worker`) that read tasks from standard input and write results
to standard output. They share no memory with the caller, and end when it does.
"""

from __future__ import annotations

import json
import queue
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nanokimi.data.corpus import Corpus
from nanokimi.data.encoding import Shard, encode_shard
from nanokimi.data.overlap import (
    BANDS,
    BandTable,
    SeenShingles,
    band_keys,
    near_duplicates,
    shingle_sets,
)
from nanokimi.data.tokenizers.own import Tokenizer, load_tokenizer
from nanokimi.errors import TrainingError, UserError
from nanokimi.runtime.processes import own_module, package_on_path

CORPUS, TOKENIZER, SHARDS = "corpus", "tokenizer", "shards"
BLOCK = 1 << 20

Task = dict[str, Any]
Idle = queue.Queue[subprocess.Popen[str]]


def perform(work: Path, task: Task) -> Any:
    """Do one task of the build in the folder `work`."""
    corpus = Corpus(work / CORPUS, task["metadata"])
    if task["kind"] == "encode":
        shard = Shard(**task["shard"])
        return encode_shard(corpus, _tokenizer(work / TOKENIZER), shard, work / SHARDS)
    batches = corpus.batches(task["part"], task["start"], task["stop"])
    if task["kind"] == "bands":
        with (
            open(work / CORPUS / f"bands-{task['part']}-{task['start']}", "wb") as bands,
            open(work / CORPUS / f"shingles-{task['part']}-{task['start']}", "wb") as hashes,
        ):
            for _, texts in batches:
                sets = shingle_sets(texts)
                bands.write(band_keys(sets.each()).tobytes())
                hashes.write(sets.hashes.tobytes())
        return None
    assert task["kind"] == "overlap"
    against = task["against"]
    table, seen = open_table(work / CORPUS, against)
    text_of = corpus.text_of(against)
    found = [near_duplicates(numbers, texts, table, text_of, seen) for numbers, texts in batches]
    return [number for some in found for number in some]


def build_table(folder: Path, against: Sequence[str], tasks: Sequence[Task]) -> None:
    """Sort the bands that the "bands" tasks wrote of the parts `against`, and gather their shingles."""
    names = [f"{task['part']}-{task['start']}" for part in against for task in tasks if task["part"] == part]
    parts = [np.fromfile(folder / f"bands-{name}", dtype=np.uint64) for name in names]
    table = BandTable.build(np.concatenate(parts).reshape(-1, BANDS))
    prefix = "-".join(against)
    table.keys.tofile(folder / f"{prefix}.keys")
    table.documents.tofile(folder / f"{prefix}.documents")
    paths = [folder / f"shingles-{name}" for name in names]
    count = sum(path.stat().st_size for path in paths) // 4
    SeenShingles.build(_hash_blocks(paths), count).bits.tofile(folder / f"{prefix}.bits")


def _hash_blocks(paths: list[Path]) -> Iterator[np.ndarray]:
    """The 32-bit numbers of some files."""
    for path in paths:
        with open(path, "rb") as file:
            while len(block := np.fromfile(file, dtype=np.uint32, count=BLOCK)):
                yield block


def open_table(folder: Path, against: Sequence[str]) -> tuple[BandTable, SeenShingles]:
    """Map what `build_table` wrote, so that all processes share its memory."""
    prefix = "-".join(against)
    keys = np.memmap(folder / f"{prefix}.keys", dtype=np.uint64, mode="r")
    documents = np.memmap(folder / f"{prefix}.documents", dtype=np.uint32, mode="r")
    bits = np.memmap(folder / f"{prefix}.bits", dtype=np.uint8, mode="r")
    return BandTable(keys, documents), SeenShingles(bits)


def run_tasks(work: Path, tasks: list[Task], workers: int, report: Callable[[int], None]) -> list[Any]:
    """The results of `tasks`, in their order; `report` receives the bytes that are done."""
    done = 0
    if min(workers, len(tasks)) <= 1:
        results = []
        for task in tasks:
            results.append(perform(work, task))
            report(done := done + task["bytes"])
        return results
    found: dict[int, Any] = {}
    with _workers(work, min(workers, len(tasks))) as processes, ThreadPoolExecutor(len(processes)) as threads:
        idle: Idle = queue.Queue()
        for process in processes:
            idle.put(process)
        waiting = {threads.submit(_ask, idle, task): place for place, task in enumerate(tasks)}
        try:
            for future in as_completed(waiting):
                found[waiting[future]] = future.result()
                report(done := done + tasks[waiting[future]]["bytes"])
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()
            raise
    return [found[place] for place in range(len(tasks))]


@contextmanager
def _workers(work: Path, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Start `count` workers, and end them when the block is left."""
    environment = {**package_on_path(), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = own_module("nanokimi.data.worker", str(work))
    processes = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, bufsize=1
        )
        for _ in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _ask(idle: Idle, task: Task) -> Any:
    """Have the next idle worker do a task."""
    process = idle.get()
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(task) + "\n")
        answer = process.stdout.readline()
    except (OSError, ValueError):
        answer = ""
    finally:
        idle.put(process)
    if not answer:
        code = process.wait()
        hint = " (out of memory?)" if code == -9 else ""
        raise TrainingError(
            f"a process that prepares the data ended with exit code {code}{hint}: the same command goes on "
            "from what is done"
        )
    reply = json.loads(answer)
    if "error" in reply:
        raise UserError(reply["error"])
    return reply["result"]


@cache
def _tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)
