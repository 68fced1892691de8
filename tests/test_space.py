"""The Hugging Face Space of examples/space: its settings are ones that the Hub knows, and agree with the package's.

tests/space.py rehearses the Space; test_play_browser.py opens its page.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from space import ROOT, SPACE, settings

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ZERO_GPU_PYTHON, ZERO_GPU_TORCH = {"3.12.12", "3.10.13"}, {"2.8.0", "2.9.1", "2.10.0", "2.11.0"}
"""What ZeroGPU supports: https://huggingface.co/docs/hub/spaces-zerogpu, 2026-08-22."""
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
KNOWN = {
    "title",
    "emoji",
    "colorFrom",
    "colorTo",
    "sdk",
    "sdk_version",
    "python_version",
    "app_file",
    "pinned",
}
KNOWN |= {"license", "short_description"}


def pinned(name: str) -> str:
    """The version of a package that our tests pass with."""
    found = re.search(rf"^{name}==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert found
    return found[1]


def test_the_settings_are_the_hubs_and_agree_with_the_package() -> None:
    """Without python_version a Space has Python 3.10, on which the package cannot be installed."""
    found = settings()
    assert set(found) == KNOWN
    assert found["sdk"] == "gradio" and found["sdk_version"] == pinned("gradio")
    (gradio,) = map(Requirement, PROJECT["optional-dependencies"]["play"])
    assert gradio.name == "gradio" and found["sdk_version"] in gradio.specifier
    python = found["python_version"]
    assert isinstance(python, str) and python in SpecifierSet(PROJECT["requires-python"])
    assert python in ZERO_GPU_PYTHON
    assert (SPACE / found["app_file"]).is_file()
    assert found["license"] == PROJECT["license"].lower()
    assert {found["colorFrom"], found["colorTo"]} <= COLOURS and len(found["short_description"]) <= 60


def test_the_requirements_are_those_of_the_package() -> None:
    """They stand alone: the Space installs them before it has any other file, and brings Gradio itself."""
    lines = (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line.partition("#")[0].strip() for line in lines]
    found = {one.name: one for one in map(Requirement, filter(None, wanted))}
    ours = {one.name: one for one in map(Requirement, PROJECT["dependencies"])}
    assert found.keys() == ours.keys()
    (pin,) = found["torch"].specifier
    assert pin.operator == "==" and pin.version in ours["torch"].specifier and pin.version in ZERO_GPU_TORCH
    assert all(found[name] == ours[name] for name in ours if name != "torch")
