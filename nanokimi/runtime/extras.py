"""How to install the libraries that only some commands need: the optional dependencies of pyproject.toml."""

from __future__ import annotations

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
"""The folder of pyproject.toml and constraints.txt, if nanokimi is run from a checkout."""


def how_to_install(extras: str) -> str:
    """What to type for one or several extras, such as "export,hub".

    In a checkout it is README's line. By its name alone pip may look for nanokimi in an index of packages, and it would
    take the newest torch.
    """
    if (CHECKOUT / "constraints.txt").is_file():
        return f"pip install -c constraints.txt -e '.[{extras}]' (in the checkout)"
    return f"pip install 'nanokimi[{extras}]'"
