"""Make the folder that ships from a comparison: bf16 weights, the scored text, the record and a model card.

    python benchmarks/pretrained.py runs/pretrained --out nanokimi/pretrained/tales-1m     (make pretrained)

The shipped folder is a comparison's: every command opens it. It is smaller in three respects. Matrices are bf16
(vectors stay fp32). Of each training text only the last documents are kept, so that nothing has to be generated again
before the first story. Of metrics.jsonl, every 20th training step is kept, with all evaluations. What the rounded
weights are worth is measured again, on the whole test part and on more stories than the run judged, for each text of
a mixture by itself, and stands in shipped.json and README.md.
"""

from __future__ import annotations

import argparse
import re
import shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from facts import facts_known
from pretrained_texts import SHIPPED_FILE, SHOWN_STORIES, write_texts

from nanokimi import tales
from nanokimi.api import scores_of
from nanokimi.data.store import PreparedData, open_prepared
from nanokimi.generation.story import story_ids
from nanokimi.measure.cost import model_cost
from nanokimi.measure.floor import floors, floors_by_source
from nanokimi.measure.story_world import QUESTION_SEED, first_sentence, judge_stories, recall, world_of
from nanokimi.report.page import write_report
from nanokimi.runtime.files import read_json, read_json_lines, write_json
from nanokimi.train.result import MAX_TALE_TOKENS
from nanokimi.train.run_folder import Run, first_seeds, open_run
from nanokimi.train.weights import WEIGHTS_FILE, read_tensors, save_tensors

TRAINING_DOCUMENTS = 200
STEPS_APART = {"train": 20, "attention": 100, "router": 100}
"""How far apart the records of metrics.jsonl are that are kept; those of other kinds all are."""
KEPT_OF_RUN = ("config.yaml", "environment.json", "result.json", "window_nats.npy")


def main() -> None:
    """Ship a comparison, measure what was shipped, and write its card."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("comparison", type=Path, help="the folder of a finished comparison")
    parser.add_argument("--out", type=Path, default=Path("nanokimi/pretrained/tales-1m"))
    parser.add_argument(
        "--stories",
        type=int,
        default=100,
        help="of each text: stories judged, stories read for facts, and questions of each distance",
    )
    options = parser.parse_args()
    folders = first_seeds(options.comparison)
    results = [options.comparison / "report.json", *(folder / "result.json" for folder in folders)]
    if not folders or not all(path.is_file() for path in results):
        parser.error(f"{options.comparison} is not a finished comparison")
    shutil.rmtree(options.out, ignore_errors=True)
    ship(options.comparison, folders, options.out)
    models = []
    for folder in folders:
        place = folder.relative_to(options.comparison)
        run = open_run(options.out / place)
        print(f"measuring {run.config.title} as shipped", flush=True)
        models.append({"folder": place.as_posix(), **measured(run, options.stories)})
    write_json(options.out / SHIPPED_FILE, {"models": models})
    write_texts(options.out, Path("docs/pretrained.md"))
    write_report(options.out)
    (options.out / "comparison.png").unlink()  # the report holds it


def ship(comparison: Path, runs: list[Path], out: Path) -> None:
    """Copy what the commands need of a comparison and of the runs of its first seed."""
    for folder in runs:
        place = out / folder.relative_to(comparison)
        place.mkdir(parents=True)
        for name in KEPT_OF_RUN:
            shutil.copyfile(folder / name, place / name)
        forget_folders(place / "environment.json")
        save_tensors(rounded(read_tensors(folder / WEIGHTS_FILE)), place / WEIGHTS_FILE)
        thin(folder / "metrics.jsonl", place / "metrics.jsonl")
        shutil.copytree(folder / "samples", place / "samples")
    for name in ("config.yaml", "environment.json"):
        shutil.copyfile(comparison / name, out / name)
    report = read_json(comparison / "report.json")
    report["data"]["store"] = ""  # a folder of the machine that trained
    write_json(out / "report.json", report)
    forget_folders(out / "environment.json")
    forget_folders(out / "report.json")
    ship_data(comparison / "data", out / "data")


def forget_folders(path: Path) -> None:
    """Leave the last name of every absolute path in the commands that a JSON file records."""
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"(?<=[ =])/[^\s\"]*/", "", text), encoding="utf-8")


def rounded(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Matrices in bf16. Vectors (norms, the experts' biases) are a thousandth of the bytes and stay as they are."""
    return {name: t.to(torch.bfloat16) if t.dim() > 1 else t for name, t in tensors.items()}


def thin(source: Path, target: Path) -> None:
    """Copy a run's metrics without most of the records of single steps."""
    with source.open(encoding="utf-8") as lines, target.open("w", encoding="utf-8") as out:
        for record, line in zip(read_json_lines(source), lines, strict=True):
            if record["step"] % STEPS_APART.get(record["kind"], 1) == 0:
                out.write(line)


def ship_data(source: Path, target: Path) -> None:
    """Copy the tokenizer, the scored parts and each text's last training documents; data.json says what the run had."""
    data = open_prepared(source)
    target.mkdir()
    for path in source.glob("tokenizer*"):
        shutil.copyfile(path, target / path.name)
    documents = [one["train_documents"] for one in data.sources] or [len(data.train_doc_offsets) - 1]
    last = [kept_of_training(data, int(end)) for end in np.cumsum(documents)]
    kept = {name: sum(counts[name] for _, _, counts in last) for name in last[0][2]}
    lengths = np.concatenate([np.diff(ends) for _, ends, _ in last])
    write_part(
        target,
        "train",
        np.concatenate([ids for ids, _, _ in last]),
        np.concatenate([[0], np.cumsum(lengths)]),
        None,
    )
    write_part(target, "val", data.val_ids, data.val_doc_offsets, data.val_doc_nats)
    write_part(target, "test", data.test_ids, data.test_doc_offsets, data.test_doc_nats)
    metadata = data.metadata | kept | {"tokens_in_store": False, "store": ""}
    metadata["trained_on"] = {name: data.metadata[name] for name in kept}
    if data.sources:
        metadata["sources"] = [one | counts for one, (_, _, counts) in zip(data.sources, last, strict=True)]
        metadata["trained_on"]["sources"] = [{name: one[name] for name in kept} for one in data.sources]
    write_json(target / "data.json", metadata)


def kept_of_training(data: PreparedData, end: int) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """The last training documents before number `end`: their ids, where each begins and ends, and their sizes."""
    offsets = data.train_doc_offsets[end - TRAINING_DOCUMENTS : end + 1].astype(np.int64)
    ids = data.train_ids[offsets[0] : offsets[-1]]
    text = data.tokenizer.decode(ids)
    sizes = {
        "train_tokens": len(ids),
        "train_documents": TRAINING_DOCUMENTS,
        "train_text_chars": len(text),
        "train_text_bytes": len(text.encode()),
    }
    return ids, offsets - offsets[0], sizes


def write_part(folder: Path, part: str, ids: np.ndarray, starts: np.ndarray, nats: np.ndarray | None) -> None:
    """The files of a part, as `prepare` writes them."""
    (folder / f"{part}.bin").write_bytes(np.ascontiguousarray(ids).tobytes())
    (folder / f"{part}.idx").write_bytes(np.ascontiguousarray(starts, dtype="<u8").tobytes())
    if nats is not None:
        (folder / f"{part}.nats").write_bytes(np.ascontiguousarray(nats, dtype="<f8").tobytes())


def measured(run: Run, stories: int) -> dict[str, Any]:
    """What the shipped weights are worth, on each of their texts."""
    cost = model_cost(run.config.family.model, run.config.train.context_length)
    before, scores = read_json(run.folder / "result.json"), scores_of(run, "test")
    worlds = [(one["name"], one["path"].partition(":")[0]) for one in run.data.sources]
    return {
        "name": run.config.title,
        "seed": run.config.seed,
        "parameters": cost.params_total,
        "active_parameters": cost.params_active,
        "bytes": (run.folder / WEIGHTS_FILE).stat().st_size,
        **{name: before[name] for name in ("steps", "tokens", "train_seconds")},
        "audit": before["audit"]["verdict"],
        "test_loss": scores["test_loss"],
        "texts": {
            name: {**losses_of(run, name, scores, before), **told(run, world, stories)}
            for name, world in worlds or [(world_of(run.data.metadata),) * 2]
        },
    }


def losses_of(run: Run, name: str, scores: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The losses of one text, now and before rounding, and its entropy floor."""
    if not run.data.sources:
        floor = floors(run.data, run.config.train.context_length)["floor"]
        now, then = scores["test_loss"], before["test_loss"]
        return {"loss": now, "before": then, "bits_per_byte": scores["test_bits_per_byte"], "floor": floor}
    now, then = (found["test_sources"][name] for found in (scores, before))
    return {
        "loss": now["loss"],
        "before": then["loss"],
        "bits_per_byte": now["bits_per_byte"],
        "floor": floors_by_source(run.data)[name],
    }


def told(run: Run, world: str, stories: int) -> dict[str, Any]:
    """The stories that a model writes in a world, before the world's parser, and what it knows of those it reads."""
    context = run.config.train.context_length
    facts, judged = facts_known(run, world, stories), judge_stories(partial(story, run), stories, world)
    shown = [one["text"] for one in judged.pop("examples")[:SHOWN_STORIES]]
    return {
        "judged": judged,
        "recall": recall(run.model, run.data.tokenizer, context, stories, world),
        "facts": {kind: [len(places), *np.mean(places, axis=0).tolist()] for kind, places in facts.items()},
        "stories": [shown_story(text, number, world) for number, text in enumerate(shown)],
    }


def story(run: Run, opening: str, number: int) -> str:
    """The continuation of an opening, as the run's own judged stories are written."""
    sample = replace(run.config.sample, max_new_tokens=MAX_TALE_TOKENS)
    config = replace(run.config, seed=run.config.seed + number, sample=sample)
    return run.data.tokenizer.decode(list(story_ids(run.model, run.data.tokenizer, opening, config)))


def shown_story(text: str, number: int, world: str) -> dict[str, Any]:
    """One of the judged stories, and what the parser says of it."""
    opening = first_sentence(tales.tell(QUESTION_SEED, number, world).text)
    return {"opening": opening, "text": text, **asdict(tales.judge(text, world))}


if __name__ == "__main__":
    main()
