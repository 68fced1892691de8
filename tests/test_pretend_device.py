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

from nanokimi.runtime.device import release_if_scarce

MACHINES = {"cuda-8.0": ("cuda", "8,0"), "cuda-9.0": ("cuda", "9,0"), "mps": ("mps", "0,0")}
MODULES = {
    "cuda-8.0": ("check_device", "check_costs", "check_models", "check_runs", "check_memory"),
    "cuda-9.0": ("check_costs",),
    "mps": ("check_device", "check_costs", "check_models", "check_runs"),
}
SLOW_MODULES = {"cuda-8.0": ("check_commands",), "mps": ("check_commands",)}


def checks(modules: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """(machine, check), as the files that define the checks list them."""
    found = []
    for machine, names in modules.items():
        lines = [line for m in names for line in (TESTS / f"pretend_device/{m}.py").read_text().splitlines()]
        starts = [line for line in lines if line.startswith("def check_")]
        found += [(machine, line.removeprefix("def ").partition("(")[0]) for line in starts]
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The outcomes of a machine's checks: one process for each machine."""

    @cache
    def of(machine: str, modules: tuple[str, ...]) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp(machine)
        try:
            env = environment(*MACHINES[machine])
        except NoCompiler as reason:
            pytest.skip(f"no pretend device: {reason}")
        words = [sys.executable, str(TESTS / "pretend_device/checks.py"), str(folder), *modules]
        env["NANOKIMI_CACHE"] = str(folder / "cache")
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(Path(folder, "results.json").read_text())

    return of


@pytest.mark.parametrize(("machine", "check"), checks(MODULES))
def test_on_the_pretend_device(machine: str, check: str, results: Any) -> None:
    error = results(machine, MODULES[machine])[check]["error"]
    assert error is None, error


@pytest.mark.slow
@pytest.mark.parametrize(("machine", "check"), checks(SLOW_MODULES))
def test_commands_on_the_pretend_device(machine: str, check: str, results: Any) -> None:
    error = results(machine, SLOW_MODULES[machine])[check]["error"]
    assert error is None, error


def test_a_gpu_that_is_nearly_full_gets_back_what_an_idle_arm_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    released = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append("cuda"))
    for free in (60, 30):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 80))
        release_if_scarce(torch.device("cuda", 0))
        assert released == (["cuda"] if free == 30 else [])
    release_if_scarce(torch.device("cpu"))


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
