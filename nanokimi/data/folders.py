"""Which files of a folder are read, which are left out, and which part each is for, if their names say so.

A folder holds either files of the formats that are read (.txt, .jsonl and so on), or other plain text such as .md and
source files, one document each. Where both are, the formats are read, unless the other text outnumbers and outweighs
them, as in a checkout of a program with a requirements.txt. What is left out is said.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nanokimi.data.documents import has_separators
from nanokimi.data.formats import (
    ENDINGS,
    format_of,
    looks_like_json_lines,
    no_text,
    refused_name,
    telling_name,
)
from nanokimi.data.hub import TEST_SPLIT, VALIDATION_SPLITS
from nanokimi.data.packed import head_of
from nanokimi.data.parts import own_part
from nanokimi.errors import UserError
from nanokimi.runtime.text import listed

PART_WORDS = {"train": "train", **dict.fromkeys(VALIDATION_SPLITS, "val"), TEST_SPLIT: "test"}
ABOUT_THE_DATA = ("readme", "license", "licence", "copying", "notice", "changelog", "citation", "authors")
"""Files that stand beside data and say what it is."""
SHOWN_FILES = 8


class Member(NamedTuple):
    """A file of a folder that is read."""

    path: Path
    kind: str
    """Its format."""
    part: str | None = None
    """The part that its name says, if the names of all files do: see `Document`."""
    alone: bool = False
    """Whether it is one text and the only file of its part: see `Document`."""


@dataclass(frozen=True)
class Folder:
    """What is read of a folder, sorted by path, and what the user should know about that."""

    members: list[Member]
    notes: list[str]


def read_folder(folder: Path) -> Folder:
    """Choose the files of a folder and of those in it; hidden ones do not count. Raises UserError if it has none."""
    found = [path for path in sorted(folder.rglob("*")) if _is_shown(path.relative_to(folder))]
    lost = [path for path in found if os.path.islink(path) and not path.exists() and format_of(path)]
    if lost:
        raise UserError(f"{lost[0]} is a link to a file that is not there: fetch it, or remove the link")
    found = [path for path in found if path.is_file()]
    members = _chosen(found)
    if not members:
        raise UserError(f"{folder} holds no text: expected plain text, or files that end in {ENDINGS}")
    chosen = {member.path for member in members}
    notes = left_out_notes(folder, [path for path in found if path not in chosen], len(found))
    named = [part_of_name(member.path.relative_to(folder)) for member in members]
    # A folder of other plain text is mostly a program, in which these words mean other things.
    if any(format_of(member.path) for member in members):
        members, more = _with_parts(members, named)
        notes += [f"{folder}: {note}" for note in more]
    return Folder(members, notes)


def _is_shown(path: Path) -> bool:
    return not any(piece.startswith(".") for piece in path.parts)


def _chosen(found: Sequence[Path]) -> list[Member]:
    """The files that are read."""
    data = [Member(path, kind) for path in found if (kind := format_of(path))]
    other = [path for path in found if not format_of(path) and not refused_name(path)]
    counted = [path for path in other if not path.stem.lower().startswith(ABOUT_THE_DATA)]
    if data and (len(counted) <= len(data) or _bytes(counted) <= _bytes([one.path for one in data])):
        return data
    plain = [path for path in other if path.stat().st_size and _is_plain_text(path)]
    counted = [path for path in counted if path in set(plain)]
    if data and (len(counted) <= len(data) or _bytes(counted) <= _bytes([one.path for one in data])):
        return data
    return sorted([*(Member(path, ".txt") for path in plain), *(one for one in data if one.kind == ".txt")])


def _bytes(paths: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def _is_plain_text(path: Path) -> bool:
    """Whether a file of an unknown name begins as text does."""
    try:
        head = head_of(path)
        head[: head.rfind(b"\n") + 1].decode("utf-8")
    except (UserError, UnicodeDecodeError):
        return False
    return no_text(head) is None and not looks_like_json_lines(head)


def left_out_notes(folder: Path, left_out: Sequence[Path], count: int) -> list[str]:
    """Which files of a folder are left out: by name if they are few, and by ending."""
    if not left_out:
        return []
    if len(left_out) <= SHOWN_FILES:
        names = listed(str(path.relative_to(folder)) for path in left_out)
    else:
        endings = Counter(Path(telling_name(path)).suffix or "without an ending" for path in left_out)
        names = listed(f"{number} {ending}" for ending, number in endings.most_common(SHOWN_FILES))
        if len(endings) > SHOWN_FILES:
            names += " and others"
    return [
        f"{folder}: {len(left_out)} of {count} files are left out, because they are no text or other files of the "
        f"folder are its data: {names}"
    ]


def part_of_name(path: Path) -> str | None:
    """The part (train, val or test) that a file's name says, or else that of the nearest folder that says one."""
    for piece in (path.name, *reversed(path.parent.parts)):
        words = (word.rstrip("0123456789") for word in re.split("[^a-z0-9]+", piece.lower()))
        if found := {PART_WORDS[word] for word in words if word in PART_WORDS}:
            return found.pop() if len(found) == 1 else None
    return None


def _with_parts(members: list[Member], named: list[str | None]) -> tuple[list[Member], list[str]]:
    """The files with their parts, if all names say one and there is something to train on and to score; and notes."""
    parts = {part for part in named if part}
    if "train" not in parts or len(parts) < 2:
        return members, []
    if None in named:
        one = members[named.index(None)].path.name
        return members, [
            f"some files are named as parts (train, validation, test), but {one} is not: all documents are split "
            "by their content"
        ]
    count = Counter(named)
    placed = []
    for member, part in zip(members, named, strict=True):
        own = own_part(str(part), parts)
        alone = "|" in own and count[part] == 1 and member.kind == ".txt" and not has_separators(member.path)
        placed.append(member._replace(part=own, alone=alone))
    files = ", ".join(f"{count[part]} of {part}" for part in ("train", "val", "test") if part in parts)
    return placed, [f"the files are the parts that they are named after ({files}); {_rest(parts)}"]


def _rest(parts: set[str]) -> str:
    """Where a part comes from that no file is named after."""
    if "test" not in parts:
        return "half of val is for test"
    return "validation is taken from train" if "val" not in parts else "nothing is split"
