"""`nanokimi judge`: stories of trained models, rated by a model behind an OpenAI-compatible address."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanokimi.cli.options import require_targets, take_options
from nanokimi.errors import UserError
from nanokimi.pretrained import run_path
from nanokimi.runtime.text import visible, visible_line

if TYPE_CHECKING:
    from nanokimi.data.store import PreparedData
    from nanokimi.judge.judging import Question, Story
    from nanokimi.train.run_folder import Run

COUNTS = {"prompts": 8, "seeds": 2, "rounds": 2, "at_once": 4}
LARGEST = 1000
JUDGE_FILE = "judge.json"


def run_judge(arguments: list[str]) -> int:
    """`nanokimi judge`."""
    words: dict[str, Callable[[str], object]] = dict.fromkeys(
        ("url", "model", "key", "kind", "prompt", "out", "checkpoint", "device"), str
    )
    counts: dict[str, Callable[[str], object]] = dict.fromkeys(COUNTS, int)
    sampling: dict[str, Callable[[str], object]] = {"temperature": float, "max_new_tokens": int, "seed": int}
    options, rest = take_options(arguments, {**words, **counts, **sampling, "no_pairs": bool})
    require_targets(rest, "run folder")
    if not rest:
        raise UserError("name one run or several")
    number = {name: int(str(options.get(name, default))) for name, default in COUNTS.items()}
    for name, value in number.items():
        if not 1 <= value <= LARGEST:
            raise UserError(f"--{name} is {value}: it must be 1 to {LARGEST}")
    if "prompt" in options and "prompts" in options:
        raise UserError("--prompt is the one prompt: leave out --prompts")

    from nanokimi.judge.judging import ask_all, plan, verdict
    from nanokimi.runtime import files

    if "out" in options and (Path(str(options["out"])) / JUDGE_FILE).exists():
        raise UserError(f"{options['out']} already holds {JUDGE_FILE}: choose another --out")
    endpoint = endpoint_of(options)
    runs = opened_runs(rest, options)
    stories = write_stories(runs, options, number)
    questions = plan(stories, number["rounds"], "no_pairs" not in options, int(str(options.get("seed", 0))))
    out = Path(str(options.get("out") or files.default_run_folder("judge", "stories")))
    missing = files.first_missing(out)
    files.create_run_folder(out)
    print(f"{len(questions)} questions to {endpoint.model} at {endpoint.url}", file=sys.stderr)
    number["prompts"] = len({story.prompt for story in stories})  # the text may have fewer beginnings
    asked = {"url": endpoint.url, "model": endpoint.model, "kind": endpoint.kind, **number}
    try:
        ask_all(questions, endpoint.ask, number["at_once"])
    finally:  # also what was answered before an error or Ctrl-C has cost something
        done = [question for question in questions if question.answer is not None]
        if done:
            found = verdict(done, list(runs))
            whole = len(done) == len(questions)
            content = {"whole": whole, "judge": asked, **found, "answers": [answered(q) for q in done]}
            files.write_json(out / JUDGE_FILE, content)
        elif missing is not None:
            files.remove_what_was_made(out, missing)
    print(visible(table_of(found)))
    print(visible(found["sentence"]))
    print(out / JUDGE_FILE)
    return 0


def endpoint_of(options: dict[str, object]) -> Any:
    """The judge, from the options or the environment. Raises UserError if it is not named."""
    from nanokimi.judge.endpoint import Endpoint

    url = str(options.get("url") or os.environ.get("OPENAI_BASE_URL", ""))
    model, kind = str(options.get("model", "")), str(options.get("kind", "chat"))
    if not url.startswith(("http://", "https://")):
        raise UserError(
            "judge needs --url http(s)://.../v1 (or OPENAI_BASE_URL), the address of the judging model"
        )
    if not model:
        raise UserError("judge needs --model NAME, the judging model at that address")
    if kind not in ("chat", "completions"):
        raise UserError(f"--kind is {kind}: expected chat or completions")
    key = str(options.get("key") or os.environ.get("OPENAI_API_KEY", ""))
    if not key.isascii() or not key.isprintable():
        raise UserError("the API key holds characters that a key cannot have: check it")
    return Endpoint(url, model, key, kind)


def opened_runs(folders: Sequence[str], options: dict[str, object]) -> dict[str, Run]:
    """The runs by the names of their arms; two of one name are told apart by their folders."""
    from nanokimi.train.run_folder import first_seeds, open_run

    device = str(options["device"]) if "device" in options else None
    found: dict[str, Run] = {}
    for folder in folders:
        for path in first_seeds(run_path(folder)):
            run = open_run(path, device, str(options.get("checkpoint", "final")))
            name = run.config.title if run.config.title not in found else f"{run.config.title} ({path})"
            if name in found:
                raise UserError(f"{path} is named twice: name each run once")
            found[name] = run
    return found


def write_stories(runs: dict[str, Run], options: dict[str, object], number: dict[str, int]) -> list[Story]:
    """A story of each arm for each prompt and seed, with the run's sampling but for what the options say."""
    from nanokimi.config.rules import validate
    from nanokimi.generation.story import text_settings
    from nanokimi.generation.text import complete
    from nanokimi.judge.judging import Story

    prompts = [str(options["prompt"])] if "prompt" in options else []
    prompts = prompts or openings(next(iter(runs.values())).data, number["prompts"])
    changes: dict[str, Any] = {k: options[k] for k in ("temperature", "max_new_tokens") if k in options}
    stories = []
    for arm, run in runs.items():
        config = replace(run.config, seed=int(str(options.get("seed", 0))))
        config = validate(replace(config, sample=replace(config.sample, **changes)))
        settings = replace(text_settings(config), num_samples=number["seeds"])
        found = complete(
            run.model, run.data.tokenizer, prompts, settings, context_length=config.train.context_length
        )
        for place, one in enumerate(found):
            prompt, sample = divmod(place, number["seeds"])
            stories.append(Story(arm, prompt, sample, one.prompt, one.text))
    return stories


def openings(data: PreparedData, count: int) -> list[str]:
    """Beginnings of validation documents or, of a single text, of lines spread over the validation part."""
    from nanokimi.data.store import text_opening

    starts = [int(start) for start in data.val_doc_offsets[:-1]] if len(data.val_doc_offsets) > 2 else []
    if not starts:
        starts = [place * len(data.val_ids) // count for place in range(count)]
    found = [text_opening(data, start) for start in starts[: 4 * count]]
    return list(dict.fromkeys(opening for opening in found if opening))[:count]


def answered(question: Question) -> dict[str, Any]:
    """A question and its answer, for judge.json."""
    second = None if question.second is None else asdict(question.second)
    return {"first": asdict(question.first), "second": second, "answer": question.answer}


def table_of(found: dict[str, Any]) -> str:
    """The scores with their intervals, the pairs, and how far the judge agrees with itself."""
    from nanokimi.judge.questions import QUALITIES

    lines: list[tuple[str, ...]] = [("model", *QUALITIES)]
    for arm, scores in found["scores"].items():
        lines.append((visible_line(arm), *(cell(scores[quality]) for quality in QUALITIES)))
    widths = [max(len(line[i]) for line in lines) + 2 for i in range(len(lines[0]))]
    text = ["".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    for entry in found["differences"]:
        mean = "" if entry["mean"] is None else f" (difference {entry['mean']:+.2f})"
        text.append(f"{entry['first']} against {entry['second']}: {entry['words']}{mean}")
    agree, orders = found["self_agreement"], found["same_in_both_orders"]
    if agree is not None:
        text.append(
            f"The judge rates a story again within one point in {agree['within_one_point']:.0%} of cases "
            f"(mean gap {agree['mean_gap']:.2f})"
        )
    if orders is not None:
        text.append(f"and decides a pair alike in both orders in {orders:.0%}.")
    if found["unreadable"]:
        text.append(f"{found['unreadable']} of {found['questions']} answers could not be read.")
    return "\n".join(text)


def cell(score: dict[str, Any] | None) -> str:
    """A mean and half the width of its interval."""
    if score is None:
        return "-"
    half = "" if score["ci95"] is None else f" +- {(score['ci95'][1] - score['ci95'][0]) / 2:.1f}"
    return f"{score['mean']:.1f}{half}"
