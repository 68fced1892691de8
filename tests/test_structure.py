"""The shape of the source itself: imports run one way, files and functions stay small, nothing dangerous is called."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import nanokimi

ROOT = Path(nanokimi.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]

# A package may import what stands on a lower level, and itself.
LEVELS = {
    **{"errors": 0, "config": 0, "runtime": 0, "presets": 0, "pretrained": 0, "tales": 0},
    **{"data": 1, "model": 1, "optim": 1},
    "kernels": 2,
    **{"measure": 3, "generation": 3},
    "train": 4,
    **{"compare": 5, "profiling": 5, "report": 5, "serve": 5, "judge": 5, "interop": 5, "inside": 5},
    "study": 6,
    **{"api": 7, "play": 7},
    "cli": 8,
}
SIBLINGS = {("config", "runtime"), ("config", "errors"), ("runtime", "errors"), ("compare", "report")}
ONLY = {
    "report": {"runtime", "errors"},
    "generation": {"data", "model", "kernels", "config", "errors", "runtime"},
}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_packages(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, package) of each import from nanokimi, wherever in the file it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports would escape this test"
            module = node.module or ""
            names = [f"nanokimi.{alias.name}" for alias in node.names] if module == "nanokimi" else [module]
        else:
            continue
        yield from ((node.lineno, name.split(".")[1]) for name in names if name.startswith("nanokimi."))


def may_import(package: str, other: str) -> bool:
    if package == other or other == "__version__":
        return True
    if package in ONLY:
        return other in ONLY[package]
    return LEVELS[other] < LEVELS[package] or (package, other) in SIBLINGS


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_run_one_way(path: Path) -> None:
    package = package_of(path)
    if package in ("__init__", "__main__"):  # the door of the package: names every room, and cli
        return
    assert package in LEVELS, f"{package} is new: give it a level"
    wrong = [
        f"line {line}: {package} imports {other}"
        for line, other in imported_packages(tree_of(path))
        if not may_import(package, other)
    ]
    assert not wrong, wrong


def test_the_import_rules_can_fail() -> None:
    tree = ast.parse("def f():\n    from nanokimi.train.loop import train\n    import nanokimi.cli\n")
    assert [other for _, other in imported_packages(tree)] == ["train", "cli"]
    assert not may_import("model", "optim") and not may_import("optim", "data")
    assert not may_import("measure", "generation") and not may_import("generation", "optim")
    assert not may_import("report", "config") and not may_import("train", "compare")
    assert may_import("train", "measure") and may_import("report", "runtime")


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(tree_of(path)):
        if isinstance(node, Function):
            length = (node.end_lineno or 0) - node.lineno + 1
            doc = node.body[0]
            if ast.get_docstring(node):
                length -= (doc.end_lineno or 0) - doc.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_the_source_is_ascii(path: Path) -> None:
    path.read_bytes().decode("ascii")


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_nothing_runs_code_from_data(path: Path) -> None:
    """Weights are safetensors, settings are safe YAML; only `audit FILE.py:NAME` and `--plugin` execute a file.

    One module unpickles, what it has looked through: tests/test_nanogpt_folder.py, test_untrusted.py and test_fuzz.py.
    """
    name = NAMES[FILES.index(path)]
    runs_a_named_file = {"compile", "exec"} if name == "runtime/plugins.py" else set()
    unpickles = {"pickle"} if name == "data/plain_pickle.py" else set()
    for node in ast.walk(tree_of(path)):
        where = f"line {getattr(node, 'lineno', '?')}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            roots = {module.split(".")[0] for module in modules}
            assert not roots & (FORBIDDEN_MODULES - unpickles), where
            assert "runpy" not in roots or path.parent.name == "cli", where
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in FORBIDDEN_NAMES - runs_a_named_file, f"{where}: {called}"
            assert called not in ("torch.save", "yaml.load", "yaml.unsafe_load"), where
            assert called != "torch.load" or "weights_only=True" in ast.unparse(node), where
            assert called != "np.load" or "allow_pickle=False" in ast.unparse(node), where
            assert not any(keyword.arg == "shell" for keyword in node.keywords), where


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_public_function_and_class_says_what_it_is(path: Path) -> None:
    tree = tree_of(path)
    if tree.body:
        assert ast.get_docstring(tree), "the module has no docstring"
    silent = [
        node.name
        for owner in ast.walk(tree)
        if isinstance(owner, ast.Module | ast.ClassDef) and not getattr(owner, "name", "").startswith("_")
        for node in owner.body
        if isinstance(node, Function | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not silent, silent


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_nothing_runs_at_import(path: Path) -> None:
    """A module only defines: no seeding, no printing, no device is touched by importing it."""
    for node in tree_of(path).body:
        assert not isinstance(node, ast.For | ast.While | ast.With | ast.Try), f"line {node.lineno}"
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.If):
            assert "TYPE_CHECKING" in ast.unparse(node.test) or "__name__" in ast.unparse(node.test)


def test_no_comment_stands_behind_a_closing_bracket() -> None:
    """Where a line is too long for its comment, the formatter splits it, and the comment ends up behind a bracket."""
    root = ROOT.parent
    files = [
        path
        for folder in ("nanokimi", "tests", "benchmarks", "examples")
        for path in (root / folder).rglob("*.py")
    ]
    moved = re.compile(r"\s*[\])}]+[,:]*  # (?!fmt: skip)")
    found = [
        f"{path}:{number}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if moved.match(line)
    ]
    assert not found, found
