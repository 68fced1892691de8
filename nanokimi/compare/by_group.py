"""A comparison whose arms are each trained by all processes that torchrun started, one arm after another.

With one process, every arm has a process of its own, and they take turns. Here the processes are the group's: an arm
has all of them, and the next begins when it has ended. So times are of equal machines, but not of the same minutes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nanokimi.config import RunConfig
from nanokimi.config.arms import arm_configs
from nanokimi.config.files import load_config
from nanokimi.data.store import PreparedData
from nanokimi.errors import TrainingError, UserError
from nanokimi.runtime.display import Display
from nanokimi.runtime.parallel import current, ending_together
from nanokimi.train.expert_parallel import sharing_where_possible
from nanokimi.train.run import train_shown
from nanokimi.train.run_folder import CONFIG_FILE
from nanokimi.train.sharding import require_shareable

NOTHING_TO_SHARE = "has no experts to share: all its weights are split as with train.expert_parallel 1"


def require_shareable_arms(config: RunConfig) -> None:
    """Raise UserError if a comparison cannot be trained by the present group of processes."""
    if not current().alone and config.compare.match == "seconds":
        raise UserError(
            "compare.match is seconds, which is measured with all arms in one process: match flops, or start nanokimi "
            "without torchrun"
        )
    for arm in sharing_where_possible(arm_configs(config)).values():
        require_shareable(arm)


def train_one_after_another(
    config: RunConfig,
    data: PreparedData,
    folders: dict[str, Path],
    titles: dict[str, str],
    advice: str,
    resume: bool,
    allow_changes: bool,
    whole: bool,
) -> list[dict[str, Any]]:
    """Train and measure the arms in these folders; returns their results.

    `advice` says how to continue after an interruption. Without `whole`, generation is not timed, nor stories judged.
    """
    results = []
    with Display(list(titles.values()), config.train.batch_size * config.train.context_length) as display:
        for name, folder in folders.items():
            arm = load_config(str(folder / CONFIG_FILE))
            if arm.train.expert_parallel != config.train.expert_parallel and whole:
                display.note(titles[name], NOTHING_TO_SHARE)
            try:
                with ending_together("what was saved is whole"):
                    result = train_shown(
                        arm,
                        data,
                        folder,
                        display,
                        titles[name],
                        advice,
                        resume,
                        allow_changes,
                        measure_generation=whole,
                    )
            except TrainingError as error:
                raise TrainingError(f"{titles[name]}: {error}; {advice}") from None
            results.append(result)
            display.phase(titles[name], "done")
    return results
