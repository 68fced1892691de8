"""Every command of the documents runs in a test, or stands on the list of those that cannot, with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from command_places import Given
from command_rules import NOT_RUN, RULES, one_spaced, reason_not_to_run, rule_for
from command_runs import named, run_documented
from commands import Command, commands_of, documented

ALL = {one_spaced(command): command for command in documented()}
RUN = [command for command in ALL.values() if reason_not_to_run(command) is None]
FAST = [command for command in RUN if (rule := rule_for(command)) is not None and not rule.slow]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return Given(tmp_path_factory.mktemp("given"))


@pytest.fixture
def run_in(
    given: Given, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """`run_documented` of a place and a command."""
    return partial(run_documented, given=given, capfd=capfd, monkeypatch=monkeypatch)


@pytest.mark.parametrize("command", FAST, ids=named)
def test_a_quick_command_does_what_its_document_says(
    command: Command, tmp_path: Path, run_in: Callable[..., None]
) -> None:
    run_in(command, tmp_path)


def test_every_command_is_run_or_is_listed_with_a_reason() -> None:
    """A new command in a document needs a rule, or a reason why no test runs it."""
    assert [
        text for text, command in ALL.items() if not reason_not_to_run(command) and not rule_for(command)
    ] == []
    assert len(RUN) >= 130 and len(FAST) >= 25


def test_every_rule_and_every_reason_has_a_command() -> None:
    """What no document says any more goes from the table; of several reasons for a command, one."""
    unused = [rule.pattern for rule in RULES if rule not in map(rule_for, RUN)]
    assert unused == []
    reasons = {pattern: [text for text in ALL if re.search(pattern, text)] for pattern in NOT_RUN}
    assert [pattern for pattern, texts in reasons.items() if not texts] == []
    assert all(reason.strip() for reason in NOT_RUN.values())


def test_commands_are_found_wherever_a_document_has_them() -> None:
    text = """`nanokimi sample` and `nanokimi sample RUN` or `python
x.py --y`, `nanokimi prepare ...`, `make it`

```sh
nanokimi a "# b" \\
  --c   # note
# a note
A=1 other program
python -c 'x
y'
```

    nanokimi train --steps 3  # more

    it's prose

```python
nanokimi = 3
```
"""
    found = [command.text for command in commands_of("x.md", text)]
    assert found == [
        'nanokimi a "# b"    --c',
        "A=1 other program",
        "python -c 'x\ny'",
        "nanokimi train --steps 3",
        "nanokimi sample RUN",
        "python x.py --y",
        "make it",
    ]
    assert rule_for(Command("x.md", "nanokimi fly")) is None
    assert reason_not_to_run(Command("x.md", "nanokimi fly")) is None
