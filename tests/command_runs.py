"""Runs a command of the documents as its rule says, and checks what it promises."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from importlib.util import find_spec
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from command_places import Given, lay_out, start
from command_rules import Rule, one_spaced, rule_for
from commands import Command
from conftest import PATIENCE

from nanokimi import cli
from nanokimi.runtime.plugins import forget_plugins


def run_documented(
    command: Command,
    place: Path,
    given: Given,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    **values: str,
) -> None:
    """Run it in `place`; `values` replace words of what its rule appends."""
    rule = rule_for(command)
    assert rule is not None
    missing = [name for name in rule.needs if find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    appended = " ".join(values.get(word, word) for word in rule.appended.split(" "))
    line = lay_out(place, command, appended, given)
    monkeypatch.chdir(place)
    if rule.serves:
        said, status = serve(place, line, rule), 0
    elif re.match(r"nanokimi [^|&>]*$", line):
        said, status = in_process(line, capfd, monkeypatch)
    else:
        process = start(place, line)
        said, _ = process.communicate(timeout=PATIENCE)
        status = process.returncode
    assert status == rule.status, f"{line}\nended with status {status}:\n{said[-3000:]}"
    assert re.search(rule.says, said), f"{line}\ndoes not say {rule.says}:\n{said[-3000:]}"
    for names in rule.makes:
        assert any(list(place.glob(name)) for name in names.split("|")), (
            f"{line}\nmade none of {names}, but {[path.name for path in place.iterdir()]}:\n{said[-2000:]}"
        )


def in_process(
    line: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[str, int]:
    """What a command of ours prints, and its status."""
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"The fox\n")))
    capfd.readouterr()
    try:
        status = cli.main(shlex.split(line)[1:])
    finally:
        forget_plugins()
    said = capfd.readouterr()
    return said.out + said.err, status


def serve(place: Path, line: str, rule: Rule) -> str:
    """Start a server, wait until it says that it serves, and stop it as Ctrl-C does."""
    process = start(place, f"exec {line}")
    assert process.stdout is not None
    said = ""
    try:
        while not re.search(rule.says, said):
            more = process.stdout.readline()
            assert more, f"{line}\nended before it served:\n{said}"
            said += more
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(PATIENCE)
    return said


def named(command: Command) -> str:
    """The name of a command's test."""
    return one_spaced(command)[:90]
