"""Classes of the user's own, from a file: `--plugin FILE.py:NAME`.

Loading a class runs its file, so only files named in the present command are run. A run folder stores the name
(FILE.py:NAME, without the folder) and the SHA-256 of the file, and of the user's other files if it imports some.
Whoever opens the run must name a file with the same content again. Named files are remembered while the process lives,
and passed on to the processes that it starts.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import shlex
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from nanokimi.errors import UserError
from nanokimi.runtime.text import one_line


@dataclass(frozen=True)
class Plugin:
    """A class that the user named, and the file it came from."""

    name: str  # FILE.py:NAME as configurations keep it, without the folder
    path: Path
    file_sha256: str
    sha256: str
    """With the user's other files that it imports, if there are any."""
    cls: type


_named: dict[str, Plugin] = {}


def name_plugin(spec: str) -> Plugin:
    """Run the file of FILE.py:NAME and remember the class. Raises UserError for any error in the file."""
    path_text, _, class_name = spec.rpartition(":")
    path = Path(path_text)
    if not path_text.endswith(".py") or not class_name.isidentifier():
        raise UserError(f"--plugin {spec}: expected FILE.py:NAME")
    if not path.is_file():
        raise UserError(f"--plugin {spec}: there is no file {path}")
    content = path.read_bytes()
    name, file_sha256 = f"{path.name}:{class_name}", hashlib.sha256(content).hexdigest()
    known = _named.get(name)
    if known is not None and (known.path, known.file_sha256) == (path.absolute(), file_sha256):
        return known
    if any(other.path.name == path.name and other.file_sha256 != file_sha256 for other in _named.values()):
        raise UserError(f"--plugin {spec}: another file named {path.name} is plugged in already")
    found = getattr(_run(content, path, spec), class_name, None)
    if not isinstance(found, type):
        raise UserError(f"--plugin {spec}: {path} defines no class '{class_name}'")
    sha256 = _with_imports(file_sha256, imported_files(content))
    _named[name] = Plugin(name, path.absolute(), file_sha256, sha256, found)
    return _named[name]


def _with_imports(sha256: str, imported: dict[str, Path]) -> str:
    """The hash of a file, with the names and contents of the files that it imports, if there are any."""
    if not imported:
        return sha256
    whole = hashlib.sha256(sha256.encode())
    for name, path in sorted(imported.items()):
        whole.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    return whole.hexdigest()


def imported_files(content: bytes) -> dict[str, Path]:
    """The user's own files that a file imports, by module name, and those that these import; no installed packages."""
    found: dict[str, Path] = {}
    waiting = [(content, "")]
    while waiting:
        for name in _imported_names(*waiting.pop()):
            if name in found or (path := _own_file(name)) is None:
                continue
            found[name] = path
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            waiting.append((path.read_bytes(), package))
    return found


def _imported_names(content: bytes, package: str) -> Iterator[str]:
    """What the import statements of a file of `package` may mean: of "from a.b import c" these are a, a.b and a.b.c."""
    nodes: Iterable[ast.AST] = ()
    # a file that nothing has imported yet need not be Python
    with suppress(SyntaxError, ValueError):
        nodes = ast.walk(ast.parse(content))
    for node in nodes:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            with suppress(ImportError):
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[: i + 1]) for i in range(len(parts)))


def _own_file(name: str) -> Path | None:
    """The file of a module that the user wrote; None for Python's, ours, and those of installed packages."""
    spec = None
    # the package first: nothing is looked for in an installed one
    for known in (name.partition(".")[0], name):
        try:
            spec = importlib.util.find_spec(known)
        except (ImportError, ValueError, AttributeError):
            return None
        if spec is None or _is_installed(spec):
            return None
    origin = spec.origin if spec else None
    return Path(origin) if origin and origin.endswith(".py") and Path(origin).is_file() else None


def _is_installed(spec: ModuleSpec) -> bool:
    """Whether a module is Python's, ours, or of an installed package."""
    paths = sysconfig.get_paths()
    folders = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages(), str(Path(__file__).parents[1])]
    installed = {Path(folder).resolve() for folder in folders}
    files = [spec.origin or "", *(spec.submodule_search_locations or ())]
    return any(installed & {file, *file.parents} for file in (Path(one).resolve() for one in files))


def _run(content: bytes, path: Path, spec: str) -> object:
    # Exactly the bytes that were hashed. An import might use a __pycache__ beside the file.
    module = ModuleType(f"nanokimi_plugin_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        exec(compile(content, str(path), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        reason = one_line(error) or "no message"
        raise UserError(f"--plugin {spec} cannot be run: {type(error).__name__}: {reason}") from None
    return module


def load_plugin(name: str) -> type:
    """The class for FILE.py:NAME in a configuration. Raises UserError if this command did not name it."""
    key = _key(name)
    if key not in _named:
        raise UserError(
            f"{name} is code that this command did not name, and only named code is run: add --plugin path/to/{key}"
        )
    return _named[key].cls


def place_of(cls: type) -> str:
    """Where a class is used: "optimizer", "attention", "feed_forward" or "model". Raises UserError if nowhere."""
    import torch

    if issubclass(cls, torch.optim.Optimizer):
        return "optimizer"
    place = getattr(cls, "plugs_into", "model")
    if not issubclass(cls, torch.nn.Module) or place not in ("attention", "feed_forward", "model"):
        raise UserError(
            f"--plugin {cls.__name__} cannot be plugged in: expected a torch.optim.Optimizer, a model, or a module "
            'with plugs_into = "attention" or "feed_forward"'
        )
    return str(place)


def plugin_setting(plugin: Plugin) -> tuple[str, str]:
    """The group and the setting of an arm that a plugin is the value of, such as ("model", "attention")."""
    settings = {
        "optimizer": ("optim", "name"),
        "attention": ("model", "attention"),
        "feed_forward": ("model", "experts"),
        "model": ("model", "source"),
    }
    return settings[place_of(plugin.cls)]


def named_plugins() -> list[str]:
    """FILE.py:NAME of every plugin named so far, with the file's whole path, for a new process."""
    return [f"{plugin.path}:{plugin.name.rpartition(':')[2]}" for plugin in _named.values()]


def words_for_plugins() -> str:
    """The end of a command line that names every plugin named so far; empty if there is none."""
    return "".join(f" --plugin {shlex.quote(spec)}" for spec in named_plugins())


def plugin_hashes(names: Sequence[str]) -> dict[str, str]:
    """SHA-256 of the files of these plugins, to be stored with a run."""
    for name in names:
        load_plugin(name)
    return {_key(name): _named[_key(name)].sha256 for name in names}


def require_same_plugins(kept: dict[str, Any], where: Path) -> None:
    """Refuse a run if its plugins are not named, or their files have changed since it was started."""
    for name, sha256 in kept.items():
        load_plugin(name)
        if _named[_key(name)].sha256 != sha256:
            raise UserError(
                f"{where} was made with another {name.rpartition(':')[0]}, or with others that it imports "
                f"(SHA-256 {str(sha256)[:12]}): name that file"
            )


def forget_plugins() -> None:
    """Forget all named plugins, for tests."""
    _named.clear()


def _key(name: str) -> str:
    path, _, class_name = name.rpartition(":")
    return f"{Path(path).name}:{class_name}"
