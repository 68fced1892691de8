"""The commands of the documents that take longer: what trains, exports, serves or starts other programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_places import Given
from command_rules import rule_for
from command_runs import named
from commands import Command
from test_commands import RUN
from test_commands import given as given
from test_commands import run_in as run_in
from test_judge import Scripted, rated
from test_judge import judged_by as judged_by
from test_push_pull import hub as hub

from nanokimi import cli

pytestmark = [
    pytest.mark.slow,  # each command takes seconds, most of them train; all of them some minutes
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]
SLOW = [command for command in RUN if (rule := rule_for(command)) is not None and rule.slow]
OF_THE_HUB = [command for command in SLOW if command.verb in ("nanokimi push", "nanokimi pull")]
OF_A_JUDGE = [command for command in SLOW if command.verb == "nanokimi judge"]


@pytest.mark.parametrize(
    "command", [one for one in SLOW if one not in OF_THE_HUB and one not in OF_A_JUDGE], ids=named
)
def test_a_command_does_what_its_document_says(
    command: Command, tmp_path: Path, run_in: Callable[..., None]
) -> None:
    run_in(command, tmp_path)


@pytest.mark.parametrize("command", OF_A_JUDGE, ids=named)
def test_a_judge_of_this_machine_is_asked(
    command: Command,
    tmp_path: Path,
    run_in: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    judged_by: Callable[..., Scripted],
) -> None:
    server = judged_by(lambda asked: json.dumps({"better": 1}) if "CONTINUATION 1" in asked else rated(5))
    monkeypatch.setenv("OPENAI_API_KEY", "of-this-test")
    run_in(command, tmp_path, URL=server.url)
    assert server.heard


@pytest.mark.parametrize("command", OF_THE_HUB, ids=named)
@pytest.mark.usefixtures("hub")
def test_the_hub_of_this_machine_is_asked(
    command: Command, tmp_path: Path, given: Given, run_in: Callable[..., None]
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    if command.verb == "nanokimi pull":
        assert cli.main(["push", str(given.run), "owner/name"]) == 0
    run_in(command, place)
