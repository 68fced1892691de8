"""README and docs/: every link leads somewhere, and every command is one that the real parsers take."""

from __future__ import annotations

import ast
import importlib
import io
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import nanokimi
from nanokimi import cli, pretrained
from nanokimi.config.ignored import GROUPS
from nanokimi.errors import UserError
from nanokimi.runtime.extras import how_to_install
from nanokimi.runtime.plugins import forget_plugins

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OF_THEIR_TIME = ("corrections.md", "earlier-results.md", "performance.md")
"""Records, whose commands were run at the commits that they name."""
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
PAST_THE_PARSER = re.compile(
    r"not a folder|no file or folder|no config.yaml|the Hub is not asked|the page is not opened"
)
"""What a command says whose words are right, where the run or file that they name does not exist."""


def site_builder() -> ModuleType:
    """docs/site/build_site.py, which is no package's."""
    sys.path.insert(0, str(ROOT / "docs" / "site"))
    try:
        return importlib.import_module("build_site")
    finally:
        sys.path.pop(0)


def text_of(path: Path) -> str:
    """A document's Markdown, or that of a notebook's text cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def anchors(text: str) -> set[str]:
    """The headings of a document, as GitHub names them in links."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+)$", BLOCK.sub("", text), flags=re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)|<!--.*?-->|`", r"\1", heading).strip().lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        repeated = sum(
            name == one or re.fullmatch(rf"{re.escape(name)}-\d+", one) is not None for one in found
        )
        found.append(f"{name}-{repeated}" if repeated else name)
    return set(found)


def broken_links(path: Path, text: str) -> list[str]:
    """Links of a document to a file, or a heading of a document, that does not exist."""
    build, broken = site_builder(), []
    for link in build.links(text):
        target, _, anchor = link.partition("#")
        if build.is_external(link) or link.startswith("attachment:"):
            continue
        found = (path.parent / target).resolve() if target else path
        if not found.exists() or not found.is_relative_to(ROOT):
            broken.append(link)
        elif anchor and found.suffix == ".md" and anchor not in anchors(text_of(found)):
            broken.append(link)
    return broken


def test_every_link_leads_somewhere() -> None:
    found = {path.name: broken_links(path, text_of(path)) for path in (*DOCUMENTS, *NOTEBOOKS)}
    assert {name: links for name, links in found.items() if links} == {}


def test_a_broken_link_is_found() -> None:
    text = (
        "# A b\n\n[a](#a-b) [b](no.md) [c](README.md#results) [d](README.md#nothing) `[e](no.md)` [f](#c)\n"
    )
    assert broken_links(ROOT / "x.md", text.replace("#a-b", "README.md")) == [
        "no.md",
        "README.md#nothing",
        "#c",
    ]
    assert anchors(text) == {"a-b"}


def shell_lines(path: Path) -> Iterator[list[str]]:
    """The words of each line of a document that is a command, without what comes before `nanokimi`."""
    text = path.read_text(encoding="utf-8")
    blocks = [body for language, body in BLOCK.findall(text) if language == "sh"]
    indented = re.findall(r"(?:^ {4,}\S.*\n)+", BLOCK.sub("", text), flags=re.MULTILINE)
    for block in (*blocks, *indented):
        for line in block.replace("\\\n", " ").splitlines():
            if not re.match(r" *([A-Z_]+=\S+ +)*(nanokimi |make |python3? \S+\.py|pip )", line):
                continue
            words = shlex.split(line, comments=True)
            while "=" in words[0]:
                words.pop(0)
            yield words


COMMANDS = [
    pytest.param(words[1:], id=f"{path.name} {' '.join(words[1:])[:60]}")
    for path in DOCUMENTS
    if path.name not in OF_THEIR_TIME
    for words in shell_lines(path)
    if words[0] == "nanokimi"
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the class that docs/experiments.md writes, and one for README's arm; the Hub is out of reach."""
    text = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    (code,) = [body for language, body in BLOCK.findall(text) if "class MyAttention" in body]
    (tmp_path / "my_file.py").write_text(code + "\n\nclass MyModel(nn.Module):\n    pass\n")
    monkeypatch.chdir(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise UserError("the Hub is not asked")

    def do_not_listen(*_: object) -> None:
        raise UserError("the page is not opened")

    monkeypatch.setattr("nanokimi.interop.hub.pull", refuse)
    monkeypatch.setattr("nanokimi.cli.play.listen", do_not_listen)
    monkeypatch.setattr("nanokimi.cli.play.find_spec", lambda _: object())  # also without the extra `play`
    yield tmp_path
    forget_plugins()


@pytest.fixture
def nothing_shipped(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run has a name of its own, so that no command opens one."""
    (place / "shipped").mkdir()
    monkeypatch.setattr(pretrained, "SHIPPED", place / "shipped")


@pytest.mark.usefixtures("nothing_shipped")
@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_of_the_documents_is_taken_by_its_parser(words: list[str]) -> None:
    """One that trains prints its configuration; one that opens a run gets as far as finding none."""
    status, said = run_command(words)
    assert status == 0 or PAST_THE_PARSER.search(said), said


def run_command(words: list[str]) -> tuple[int, str]:
    """Exit status and messages of a command, of which one that would train only prints its configuration."""
    words = ["http://localhost:1/v1" if word == "URL" else word for word in words]
    words += ["RUN"] if words[0] == "play" else []  # without a run it would open a page
    out, error = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(error):
        status = cli.main([*words, *(["--print-config"] if words[0] in GROUPS else [])])
    return status, error.getvalue()


@pytest.mark.parametrize(
    "line", ["sample RUN --temprature 1", "compare --sead 3", "train --lr many", "pull a b c"]
)
def test_a_wrong_command_is_found(line: str, place: Path) -> None:
    status, said = run_command(line.split())
    assert status == 2 and not PAST_THE_PARSER.search(said), said


def test_make_targets_scripts_and_extras_of_the_documents_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for path in DOCUMENTS:
        if path.name in OF_THEIR_TIME:
            continue
        for program, *words in shell_lines(path):
            if program == "make":
                assert [word for word in words if "=" not in word][0] in targets, f"{path.name}: {words}"
            elif program.startswith("python") and words[0].endswith(".py"):
                assert (ROOT / words[0]).is_file(), f"{path.name}: {words[0]}"
        extras = re.findall(r"(?:nanokimi|-e '\.)\[([\w,]+)\]", path.read_text(encoding="utf-8"))
        named = {extra for names in extras for extra in names.split(",")}
        assert named <= set(project["optional-dependencies"]), f"{path.name}: {named}"


def test_messages_say_how_to_install_an_extra_as_the_documents_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = how_to_install("play").removesuffix(" (in the checkout)")
    assert line in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{line}\n" in (ROOT / "docs" / "play.md").read_text(encoding="utf-8")
    sources = (ROOT / "nanokimi").rglob("*.py")
    by_hand = [
        path.name for path in sources if re.search(r"pip install.*\[", path.read_text(encoding="utf-8"))
    ]
    assert by_hand == ["extras.py"]
    monkeypatch.setattr("nanokimi.runtime.extras.CHECKOUT", tmp_path)
    assert how_to_install("play") == "pip install 'nanokimi[play]'"


def test_names_of_the_package_in_python_of_the_documents_exist() -> None:
    for path in DOCUMENTS:
        for language, body in BLOCK.findall(path.read_text(encoding="utf-8")):
            if language != "python" or "<!-- code:" in body:
                continue
            for node in ast.walk(parsed(body)):
                if (
                    isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name)
                    and node.value.id == "nk"
                ):
                    assert node.attr in nanokimi.__all__, f"{path.name}: nk.{node.attr}"
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nanokimi"):
                    missing = [
                        name.name for name in node.names if not importable(node.module or "", name.name)
                    ]
                    assert not missing, f"{path.name}: {node.module} has no {missing}"


def test_python_md_names_every_public_name() -> None:
    named = re.findall(r"\bnk\.(\w+)", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"))
    assert set(nanokimi.__all__) == set(named)


def importable(module: str, name: str) -> bool:
    """Whether `from module import name` works: a submodule is no attribute before its first import."""
    found = importlib.import_module(module)
    return hasattr(found, name) or (hasattr(found, "__path__") and find_spec(f"{module}.{name}") is not None)


def test_a_name_that_the_package_lacks_is_found() -> None:
    assert importable("nanokimi", "tales") and importable("nanokimi.tales", "tell")
    assert not importable("nanokimi", "tails") and not importable("nanokimi.errors", "UserErr")


def parsed(code: str) -> ast.AST:
    """A block of Python; a quotation from within a function may return."""
    return ast.parse("def quoted():\n" + "".join(f"    {line}\n" for line in code.splitlines()))


def test_links_are_turned_to_where_their_targets_are_in_the_site() -> None:
    build = site_builder()
    places = build.pages()
    document, page = ROOT / "docs" / "kimi-k2.md", "kimi-k2.md"
    text = (
        "[a](../README.md#results) [b](images/kimi-moe.svg) [c](../nanokimi/measure) [d](https://x.y) [e](#f)"
    )
    turned = build.with_links(text, document, page, places)
    assert turned == (
        "[a](index.md#results) [b](images/kimi-moe.svg) [c](source/nanokimi/measure/index.md) [d](https://x.y) [e](#f)"
    )
    assert places[ROOT / "nanokimi" / "measure"] == "source/nanokimi/measure/index.md"
    with pytest.raises(ValueError, match="kimi-k2.md links to nothing.md, which does not exist"):
        build.with_links("[a](nothing.md)", document, page, places)


def test_every_document_is_in_the_navigation_of_the_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = site_builder()
    config = (ROOT / "docs" / "site" / build.CONFIG).read_text(encoding="utf-8")
    pages = build.pages()
    named = re.findall(r'= "([\w/-]+\.md)"', config)
    assert set(named) <= set(pages.values()) and len(named) == len(set(named)), (
        "each is named once, and exists"
    )

    monkeypatch.setattr(build, "STAGED", tmp_path)
    monkeypatch.setattr(build, "pages", lambda: {**pages, ROOT / "new.md": "new.md"})
    for page in {*pages.values(), "new.md"}:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text('# A "new" page\n')
    navigation = json.dumps(tomllib.loads(build.with_other_pages(config))["project"]["nav"])
    assert all(f'"{page}"' in navigation for page in {*pages.values(), "new.md"})
    assert json.dumps({'A "new" page': "new.md"}) in navigation


@pytest.mark.slow  # needs the extra `docs`, and builds a hundred pages
def test_the_site_is_built_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("zensical")
    build = site_builder()
    assert build.main() == 0
    pages = sorted(build.SITE.rglob("*.html"))
    names = {str(page.relative_to(build.SITE)) for page in pages}
    expected = {page.replace(".md", ".html") for page in build.pages().values()}
    assert expected <= names
    fetching = re.compile(
        r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"(?:https?:)?//|<link\b[^>]*href=\"(?:https?:)?//"
    )
    assert not [page.name for page in pages if fetching.search(page.read_text(encoding="utf-8"))]

    # Zensical, too, refuses what is broken: an anchor that no heading has
    broken = build.STAGED / "audit.md"
    broken.write_text(
        broken.read_text(encoding="utf-8") + "\n[x](results.md#nothing-of-the-kind)\n", encoding="utf-8"
    )
    assert build.run_zensical() != 0
