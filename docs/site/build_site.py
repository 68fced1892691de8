"""Build the documentation as a site from the Markdown of README.md and docs/, for `make docs`.

    python docs/site/build_site.py          # build/site/index.html

Each page is copied to build/docs with its links turned to where their targets are in the site; Zensical makes the pages
and, since it is strict, refuses a broken link or anchor. A file of the source that a page links to becomes a page.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
STAGED, SITE = BUILD / "docs", BUILD / "site"
CONFIG, STYLE = "zensical.toml", "site.css"
AT_ROOT = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
PICTURES = (".png", ".svg")
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()([^)\s]+)(\))")
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]+`", flags=re.DOTALL | re.MULTILINE)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".h": "c", ".c": "c", ".json": "json"}


def pages() -> dict[Path, str]:
    """Each document of the repository, and the name of its page."""
    found = {ROOT / name: page for name, page in AT_ROOT.items()}
    found |= {path: path.name for path in sorted((ROOT / "docs").glob("*.md"))}
    return found | {
        path: f"notebooks/{path.stem}.md" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    }


def links(text: str) -> list[str]:
    """Targets of the links and pictures of a Markdown text, without those within code."""
    return [match[2] for match in LINK.finditer(CODE.sub("", text))]


def is_external(target: str) -> bool:
    """Whether a link leads out of the repository."""
    return "://" in target or target.startswith("mailto:")


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """The text with everything but its code changed."""
    code = [match[0] for match in CODE.finditer(text)]
    places = iter(range(len(code)))
    changed = change(CODE.sub(lambda _: f"\0{next(places)}\0", text))
    return re.sub(r"\0(\d+)\0", lambda match: code[int(match[1])], changed)


def with_links(text: str, document: Path, page: str, places: dict[Path, str]) -> str:
    """A text with its links turned from its document's folder to its page's. Adds missing targets to `places`.

    Raises ValueError if a target does not exist.
    """

    def turned(match: re.Match[str]) -> str:
        target, hash_, anchor = match[2].partition("#")
        if target.startswith("attachment:"):  # a notebook's, which is also in docs/images
            target = os.path.relpath(ROOT / "docs" / "images" / target.partition(":")[2], document.parent)
        if is_external(match[2]) or not target:
            return match[0]
        path = (document.parent / target).resolve()
        if not path.exists() or not path.is_relative_to(ROOT):
            raise ValueError(f"{document.relative_to(ROOT)} links to {target}, which does not exist")
        place = places.setdefault(path, page_of_source(path))
        return f"{match[1]}{os.path.relpath(place, os.path.dirname(page) or '.')}{hash_}{anchor}{match[3]}"

    return LINK.sub(turned, text)


def page_of_source(path: Path) -> str:
    """Where a file or folder that is no document goes."""
    name = path.relative_to(ROOT).as_posix()
    if path.suffix in PICTURES:
        return name.removeprefix("docs/")
    return f"source/{name}/index.md" if path.is_dir() else f"source/{name}.md"


def markdown_of(path: Path) -> str:
    """The Markdown of a document, a notebook, a source file or a folder."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in LANGUAGES)
        return f"# {path.name}\n\n" + "\n".join(f"- [{file.name}]({file.name})" for file in files) + "\n"
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return notebook_text(json.loads(text)["cells"])
    if path.suffix == ".md":
        return text
    return f"# {path.relative_to(ROOT)}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{text.rstrip()}\n````\n"


def notebook_text(cells: Iterable[dict[str, object]]) -> str:
    """A notebook's cells one after another, without outputs."""
    parts = []
    for cell in cells:
        source = "".join(cell["source"])  # type: ignore[arg-type]
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join(parts) + "\n"


def for_python_markdown(text: str) -> str:
    """Without comments, which would break a paragraph, and with Markdown within details."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    return text.replace("<details>", '<details markdown="1">')


def stage() -> None:
    """Write the Markdown of the site to build/docs."""
    shutil.rmtree(STAGED, ignore_errors=True)
    places, done = pages(), set()
    while waiting := [path for path in places if path not in done]:
        for path in waiting:
            done.add(path)
            target = STAGED / places[path]
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in PICTURES:
                shutil.copy(path, target)
                continue
            text = markdown_of(path)
            if path.is_dir() or path.suffix in (".md", ".ipynb"):
                document = path / "index" if path.is_dir() else path
                text = outside_code(text, for_python_markdown)
                text = outside_code(
                    text, partial(with_links, document=document, page=places[path], places=places)
                )
            target.write_text(text, encoding="utf-8")


def with_other_pages(config: str) -> str:
    """The configuration with a place in the navigation, the last, for each document that it does not name."""
    others = [page for page in pages().values() if f'"{page}"' not in config]
    entries = [f'{{ {json.dumps(title_of(STAGED / page))} = "{page}" }}' for page in others]
    section = f'  {{ "More" = [{", ".join(entries)}] }},\n' if others else ""
    before, mark, after = config.partition("  # the documents that have no place above\n")
    assert mark, f"{CONFIG} has no line that says where other documents go"
    return before + section + after


def title_of(page: Path) -> str:
    """The first heading of a page."""
    found = re.search(r"^# +(.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return found[1] if found else page.stem


def run_zensical() -> int:
    """Make the pages of what is staged. The exit status is not 0 if a link or anchor is broken."""
    shutil.rmtree(SITE, ignore_errors=True)
    words = [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "--config-file", CONFIG]
    return subprocess.run(words, cwd=BUILD).returncode


def main() -> int:
    """Copy, build, and say where the site is."""
    stage()
    config = Path(__file__).with_name(CONFIG).read_text(encoding="utf-8")
    (BUILD / CONFIG).write_text(with_other_pages(config), encoding="utf-8")
    shutil.copy(Path(__file__).with_name(STYLE), STAGED / STYLE)
    status = run_zensical()
    if status == 0:
        print(f"open {SITE.relative_to(ROOT)}/index.html")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
