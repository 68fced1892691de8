"""Untrusted files: short, repeatable runs of the fuzzers, and what the long ones found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE

SHORT = {"config": 60, "checkpoint": 60, "store": 250, "formats": 150, "tokenizers": 120}


def run_fuzzer(loader: str, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(__file__).with_name("fuzz.py")), loader, "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.parametrize("loader", SHORT)
def test_damaged_files_are_loaded_or_refused(loader: str, tmp_path: Path) -> None:
    done = run_fuzzer(loader, tmp_path, "--cases", str(SHORT[loader]), "--derandomize")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{loader}: {SHORT[loader]} cases" in done.stdout
