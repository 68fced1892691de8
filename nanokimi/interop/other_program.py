"""What another program makes of an export: asked in a process of its own, and its greedy texts compared with ours."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from nanokimi.errors import TrainingError
from nanokimi.runtime.processes import own_module, package_on_path


def ask(
    module: str, request: dict[str, Any], *, program: str, cannot: str, seconds: float
) -> dict[str, np.ndarray]:
    """The result of `python -m nanokimi.interop.MODULE REQUEST.json RESULT.npz`.

    `cannot` is what the program cannot do if the process fails, such as "run the file". Raises TrainingError then, and
    after so many seconds.
    """
    with tempfile.TemporaryDirectory() as place:
        question, answer = Path(place, "request.json"), Path(place, "result.npz")
        question.write_text(json.dumps(request), encoding="utf-8")
        command = own_module(f"nanokimi.interop.{module}", str(question), str(answer))
        environment = {**package_on_path(), "PYTHONDONTWRITEBYTECODE": "1"}  # none beside a flavor file
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            raise TrainingError(
                f"{program} was not done after {seconds} seconds: nothing was exported"
            ) from None
        if done.returncode != 0 or not answer.is_file():
            said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise TrainingError(f"{program} cannot {cannot} ({said[:200]}): nothing was exported")
        with np.load(answer, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}


def compare_greedy(
    written: np.ndarray, ours: np.ndarray, allowed: np.ndarray, program: str
) -> tuple[int, int]:
    """(tokens that are equal, texts that ended at a near-tie) of greedy texts (P, T), given our logits (P, T, W).

    A tie is near if our logits of both tokens differ by at most `allowed` (P, T) at that place. Raises TrainingError if
    a text differs otherwise.
    """
    gap = ours.max(axis=-1) - np.take_along_axis(ours, written[..., None], axis=-1)[..., 0]
    compared = ties = 0
    for i, differs in enumerate(ours.argmax(axis=-1) != written):
        equal = int(differs.argmax()) if differs.any() else len(differs)
        compared += equal
        if equal < len(differs):
            ties += 1
            if gap[i, equal] > allowed[i, equal]:
                raise TrainingError(
                    f"{program} writes another text after {equal} tokens: nothing was exported"
                )
    return compared, ties
