"""Runs when a Python process starts: puts the pretend device in, if the environment names one (run.py sets it)."""

import os
import sys
from pathlib import Path

if os.environ.get("PRETEND_DEVICE"):
    sys.path.append(str(Path(__file__).parents[2]))
    from pretend_device.machine import install

    install()
