"""What a process on the pretend device checks: each function of the files named `check_*.py`, reported as JSON.

python tests/pretend_device/run.py --device cuda tests/pretend_device/checks.py FOLDER file ...
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import time
import traceback
from pathlib import Path
from types import FunctionType
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))


def outcome(check: FunctionType, folder: Path) -> dict[str, Any]:
    """What a check returned, or the traceback of what it raised."""
    import torch

    from pretend_device.counts import COUNTS

    torch.set_num_threads(1)
    torch.manual_seed(0)
    COUNTS.reset()
    own = folder / check.__name__
    own.mkdir()
    value, error, start = None, None, time.process_time()
    try:
        value = check(own)
    except Exception:
        error = traceback.format_exc()
    return {"value": value, "error": error, "seconds": time.process_time() - start}


def main(folder: str, *modules: str) -> None:
    """Run the checks of some modules, each with a folder of its own, and write `results.json`."""
    results = {}
    loaded = [vars(importlib.import_module(f"pretend_device.{module}")) for module in modules]
    gc.freeze()  # a collection after memory ran out looks at the rest alone
    for found in loaded:
        for name, check in found.items():
            if name.startswith("check_") and isinstance(check, FunctionType):
                results[name] = outcome(check, Path(folder))
    Path(folder, "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
