"""Processes of our own: they see the environment of now, and signals wait until they say what these mean."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

import pytest

from nanokimi.runtime import processes
from nanokimi.runtime.interrupts import STOPPING
from nanokimi.runtime.processes import LONGEST_SOCKET_FOLDER, ignore_signals, start_method, start_process


def report_environment(connection: Connection, *names: str) -> None:
    connection.send([os.environ.get(name) for name in names])


def report_signals(connection: Connection) -> None:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    connection.send(set(STOPPING) <= set(blocked))
    ignore_signals()
    os.kill(os.getpid(), signal.SIGTERM)
    connection.send(set(STOPPING) & set(signal.pthread_sigmask(signal.SIG_BLOCK, [])))


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_process_has_the_environment_of_now(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the server, which may have started long before."""
    monkeypatch.setattr(processes, "start_method", lambda: method)
    for value in ("one", "two"):
        monkeypatch.setenv("NANOKIMI_TEST", value)
        process, connection = start_process(
            report_environment, "NANOKIMI_TEST", "ONLY_HERE", environment={"ONLY_HERE": "yes"}
        )
        assert connection.recv() == [value, "yes"]
        process.join()
        assert process.exitcode == 0
    assert "ONLY_HERE" not in os.environ


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_process_does_not_run_the_script_that_started_it(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain script that called nanokimi.compare, without `if __name__ == "__main__"`, ran itself in every arm."""
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit(7)\n")
    main = ModuleType("__main__")
    main.__file__ = str(script)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(processes, "start_method", lambda: method)
    process, connection = start_process(report_environment, "HOME")
    assert connection.recv() == [os.environ.get("HOME")]
    process.join()
    assert process.exitcode == 0 and main.__file__ == str(script)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_signals_wait_until_the_process_says_what_they_mean(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "start_method", lambda: method)
    process, connection = start_process(report_signals)
    assert connection.recv() is True
    assert connection.recv() == set(), "and then none is blocked, and none ends it"
    process.join()
    assert process.exitcode == 0
    assert not set(STOPPING) & set(signal.pthread_sigmask(signal.SIG_BLOCK, []))


def test_a_temporary_folder_with_a_long_name_has_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/" + "x" * LONGEST_SOCKET_FOLDER)
    assert start_method() == "spawn"
