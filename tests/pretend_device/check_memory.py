"""tests/test_gpu.py's tests of memory that runs out, where a limit makes one place fail instead of counting bytes.

They show that those tests run, up to their last line; only a GPU shows where memory runs out, and with which words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import test_gpu
import torch

from nanokimi.config import RunConfig
from nanokimi.model.gpt import NanoGPT
from nanokimi.optim.adamw import AdamW
from pretend_device.states import tiny_config

Refuses = Callable[[Any, Any], bool]


@contextmanager
def failing(owner: type, method: str, refuses: Refuses) -> Iterator[pytest.MonkeyPatch]:
    """While memory is limited, a method runs out of it for the arguments that `refuses` names. Models are narrow."""
    original, wide, limits = getattr(owner, method), test_gpu.large, [1.0]

    def limited(self: Any, *args: Any, **kwargs: Any) -> Any:
        if limits[-1] < 1.0 and refuses(self, args):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
        return original(self, *args, **kwargs)

    def narrow(config: RunConfig, hidden_size: int) -> RunConfig:
        return wide(config, 32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, limited)
        patch.setattr(test_gpu, "large", narrow)
        patch.setattr(torch.cuda, "set_per_process_memory_fraction", limits.append, raising=False)
        yield patch


def check_memory_that_runs_out_in_the_passes(folder: Path) -> None:
    told: dict[str, Any] = {}

    def build(**train: Any) -> RunConfig:
        return tiny_config(folder, **{**train, "batch_size": 40})

    with failing(NanoGPT, "forward", lambda _, args: len(args[0]) > 20):
        test_gpu.test_memory_that_runs_out_in_the_passes_halves_the_micro_batch(
            "fp32", build, folder, told.__setitem__
        )
    assert told["micro_batch_size"] == 20


def check_memory_that_runs_out_in_the_update(folder: Path) -> None:
    told: dict[str, Any] = {}
    with failing(AdamW, "step", lambda *_: True) as patch:
        test_gpu.test_memory_that_runs_out_in_the_update_takes_the_run_back_and_on(
            "fp16", partial(tiny_config, folder), folder, patch, told.__setitem__
        )
    assert set(told["bytes"]) == {"before", "after"}


def check_too_little_memory_for_anything(folder: Path) -> None:
    with failing(NanoGPT, "forward", lambda *_: True):
        test_gpu.test_too_little_memory_for_anything_is_one_line(partial(tiny_config, folder), folder)
