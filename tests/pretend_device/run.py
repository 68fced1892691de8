"""Run a script, a module or a line of Python on the pretend device. See the package's docstring."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.append(str(TESTS))

from pretend_device.library import library  # noqa: E402

DEVICES = ("cuda", "mps")


def environment(device: str, capability: str = "9,0") -> dict[str, str]:
    """The environment in which Python processes have the pretend device. Raises NoCompiler if it cannot be built."""
    assert device in DEVICES
    paths = [str(TESTS / "pretend_device" / "startup"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PRETEND_DEVICE": device,
        "PRETEND_CAPABILITY": capability,
        "PRETEND_LIBRARY": str(library()),
    }


def main() -> int:
    """The exit status of what ran."""
    options, words = {"--device": "cuda", "--capability": "9,0"}, sys.argv[1:]
    while words and words[0] in options:
        options[words[0]], words = words[1], words[2:]
    env = environment(options["--device"], options["--capability"])
    return subprocess.run([sys.executable, *words], env=env).returncode


if __name__ == "__main__":
    sys.exit(main())
