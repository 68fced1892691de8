"""Two languages of Debian's manuals as documents: a section of a page each, from packages that anybody can download.

The packages hold the same pages in several languages, with the language before the ending: `ch02.en.html` and
`ch02.de.html`. They are DocBook's: a section begins with an element of the class `titlepage`, and tables of contents
have a class of their own.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

from nanokimi.errors import UserError

BLOCKS = frozenset("blockquote br dd div dt h1 h2 h3 h4 h5 h6 hr li p".split())
"""Elements at whose ends a line ends."""
LEFT_OUT_CLASSES = frozenset({"toc", "navheader", "navfooter"})
"""Tables of contents, and the links above and below a page."""
LEFT_OUT = frozenset({"head", "pre", "script", "style", "table"})
"""Commands and tables of packages are left out, too: they are the same in every language."""
VOID = frozenset({"area", "base", "br", "col", "hr", "img", "input", "link", "meta"})
"""Elements without an end tag."""


class Sections(HTMLParser):
    """Collects the sections of a page, each from its title to the next one."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[list[str]] = []
        self._left_out = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in VOID:
            self.handle_startendtag(tag, attrs)
            return
        classes = (dict(attrs).get("class") or "").split()
        if self._left_out or tag in LEFT_OUT or LEFT_OUT_CLASSES.intersection(classes):
            self._left_out += 1  # counts elements, so that the end tag of the first is known
            return
        if "titlepage" in classes:
            self.found.append([])
        self._end_line(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._end_line(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if self._left_out:
            self._left_out -= 1
            return
        self._end_line(tag)

    def handle_data(self, data: str) -> None:
        if self.found and not self._left_out:
            self.found[-1].append(re.sub(r"\s+", " ", data))

    def _end_line(self, tag: str) -> None:
        if self.found and not self._left_out and tag in BLOCKS:
            self.found[-1].append("\n")


def sections_of(page: str) -> list[str]:
    """The sections of a page of HTML, a paragraph a line, without those that are no more than a title."""
    reader = Sections()
    reader.feed(page)
    reader.close()
    texts = []
    for pieces in reader.found:
        lines = (re.sub(" {2,}", " ", line).strip() for line in "".join(pieces).split("\n"))
        text = "\n".join(line for line in lines if line)
        if "\n" in text:
            texts.append(text)
    return texts


def documents_of(folder: Path, language: str) -> list[str]:
    """The sections of all pages of a language below a folder, in the order of the pages' names."""
    pages = sorted(folder.rglob(f"*.{language}.html"))
    return [text for page in pages for text in sections_of(page.read_text(encoding="utf-8"))]


def without_untranslated(texts: list[str], originals: list[str]) -> list[str]:
    """The texts without the paragraphs that stand in the originals, too: nobody has translated them yet."""
    known = {line for text in originals for line in text.split("\n")}
    left = ("\n".join(line for line in text.split("\n") if line not in known) for text in texts)
    return [text for text in left if text]


def unpack(packages: list[Path], folder: Path) -> dict[str, str]:
    """Unpack Debian packages; returns their versions by name. Raises UserError for what is none."""
    if shutil.which("dpkg-deb") is None:
        raise UserError(
            "dpkg-deb unpacks the packages, and is not installed: use Debian, or apt install dpkg"
        )
    versions = {}
    for package in packages:
        _dpkg_deb(package, "--extract", str(package), str(folder))
        said = _dpkg_deb(package, "--show", "--showformat=${Package} ${Version}", str(package))
        name, _, version = said.partition(" ")
        versions[name] = version
    return versions


def _dpkg_deb(package: Path, *arguments: str) -> str:
    done = subprocess.run(["dpkg-deb", *arguments], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["dpkg-deb says nothing"]
        raise UserError(f"{package} is no Debian package that can be unpacked: {said[-1]}")
    return done.stdout


def write_documents(texts: list[str], path: Path) -> None:
    """One JSON object a line, with the text in its column `text`."""
    lines = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
