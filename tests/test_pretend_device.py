"""The GPU's path on a pretend device (pretend_device/): no device mixing, no read of the device that nobody stated."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PATIENCE
from pretend_device.library import NoCompiler
from pretend_device.rules import Query, attention_kernel, groups_in_one_kernel
from pretend_device.run import TESTS, environment

MODULES = ["check_device", "check_models"]
MACHINES = {"cuda-8.0": ("cuda", "8,0"), "cuda-9.0": ("cuda", "9,0"), "mps": ("mps", "0,0")}


def names_of_checks() -> list[str]:
    """The checks, as the files that define them list them."""
    lines = [line for m in MODULES for line in (TESTS / f"pretend_device/{m}.py").read_text().splitlines()]
    return [line.removeprefix("def ").partition("(")[0] for line in lines if line.startswith("def check_")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The outcomes of a machine's checks: one process for each machine."""

    @cache
    def of(machine: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp(machine)
        try:
            env = environment(*MACHINES[machine])
        except NoCompiler as reason:
            pytest.skip(f"no pretend device: {reason}")
        words = [sys.executable, str(TESTS / "pretend_device/checks.py"), str(folder), *MODULES]
        env["NANOKIMI_CACHE"] = str(folder / "cache")
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(Path(folder, "results.json").read_text())

    return of


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("check", names_of_checks())
def test_on_the_pretend_device(check: str, machine: str, results: Any) -> None:
    error = results(machine)[check]["error"]
    assert error is None, error


def test_the_paths_that_torch_takes_follow_the_compute_capability() -> None:
    """On the machines that the project names: T4, A100, RTX 3060, H100."""
    shape = (2, 4, 64, 48)
    of = {dtype: Query(shape, shape, shape, dtype, causal=True) for dtype in (torch.bfloat16, torch.float32)}
    kernels = [attention_kernel(of[torch.bfloat16], at) for at in ((7, 5), (8, 0), (8, 6), (9, 0))]
    assert kernels == ["math", "flash", "flash", "cudnn"]
    assert attention_kernel(of[torch.float32], (8, 0)) == "efficient"
    narrower = of[torch.bfloat16]._replace(v=(2, 4, 64, 32))  # values narrower than keys, as in MLA
    assert [attention_kernel(narrower, at) for at in ((8, 0), (9, 0))] == ["efficient", "cudnn"]
    assert [groups_in_one_kernel(torch.bfloat16, at) for at in ((8, 0), (9, 0), (12, 0))] == [0, 1, 0]
    assert not groups_in_one_kernel(torch.float32, (9, 0))
