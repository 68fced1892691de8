"""The commands that the documents show: in blocks, in indented lines, and in the text between back ticks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
SHELL = ("sh", "bash", "console")
PROGRAMS = (
    "nanokimi|make|python3?|pip|pytest|torchrun|tensorboard|hf|lm_eval|ollama|git|ls|printf|sbatch|sky|curl"
)
BEGINS = re.compile(rf"(?:[A-Z_]+=\S+ +)*(?:{PROGRAMS}) +\S")
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
MENTION = re.compile(r"nanokimi -*\w+|git \w+|hf")
"""Names a command or a program of which the text speaks, and gives it nothing to do: `nanokimi sample`."""


@dataclass(frozen=True)
class Command:
    """A command as a document has it, without its comment."""

    document: str
    text: str

    @property
    def words(self) -> list[str]:
        """As a shell splits it."""
        return shlex.split(self.text)

    @property
    def verb(self) -> str:
        """`nanokimi train`, `make test`, `benchmarks/null.py`, `pytest`: what its rule may go by."""
        program, *rest = [word for word in self.words if not re.match(r"[A-Z_]+=", word)]
        if program in ("nanokimi", "make"):
            return f"{program} {rest[0]}"
        return rest[0] if program.startswith("python") and rest[0].endswith(".py") else program


def without_comment(line: str) -> str:
    """A line of shell without the comment at its end, its words as they were written."""
    for match in re.finditer(r"(?:^|\s)#", line):
        before = line[: match.start()]
        if before.count("'") % 2 == 0 and before.count('"') % 2 == 0:
            return before.rstrip()
    return line.rstrip()


def lines_of(block: str) -> Iterator[str]:
    """The commands of a block; one whose quotation is open, or which ends in a backslash, goes on in the next line."""
    held = ""
    for line in block.replace("\\\n", " ").splitlines():
        held = f"{held}\n{line}" if held else without_comment(line)
        try:
            shlex.split(held)
        except ValueError:
            continue
        if held.strip():
            yield held.strip()
        held = ""
    assert not held, f"a quotation is never closed: {held}"


def commands_of(name: str, text: str) -> list[Command]:
    """The commands of a document, each once. What holds `...` as a word of its own is a pattern and no command."""
    found: list[str] = []
    for language, body in BLOCK.findall(text):
        if language in SHELL:
            found += lines_of(body)
    rest = BLOCK.sub("", text)
    for block in re.findall(r"(?:^ {4,}\S.*\n)+", rest, flags=re.MULTILINE):
        found += [line for line in lines_of_text(block) if BEGINS.match(line)]
    for span in SPAN.findall(re.sub(r"(?:^ {4,}\S.*\n)+", "", rest, flags=re.MULTILINE)):
        line = " ".join(span.split())
        if BEGINS.match(line) and not MENTION.fullmatch(line):
            found.append(line)
    return [Command(name, line) for line in dict.fromkeys(found) if "..." not in line.split()]


def lines_of_text(block: str) -> list[str]:
    """The lines of an indented block, which may be prose with an apostrophe."""
    try:
        return list(lines_of(block))
    except AssertionError:
        return []


def documented() -> list[Command]:
    """All commands of all documents."""
    return [
        command
        for path in DOCUMENTS
        for command in commands_of(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    ]
