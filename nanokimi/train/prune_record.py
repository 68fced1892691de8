"""The record of a pruned run, and the loss after its recovery, whichever command ends that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nanokimi.runtime.files import read_json, write_json
from nanokimi.runtime.locks import only_process

PRUNE_FILE = "prune.json"


def keep_recovered(folder: Path, result: dict[str, Any]) -> None:
    """If a run that has ended is the recovery of a pruned one, complete its prune.json with the loss that it reached.

    A loss that is there stays: it is that after `recover_steps`, and the run may have gone on since then.
    """
    path = folder / PRUNE_FILE
    record = read_json(path) if path.is_file() else {}
    if isinstance(record, dict) and record.get("recover_steps") and record.get("val_loss_recovered") is None:
        with only_process(folder):
            write_json(path, record | {"val_loss_recovered": result["val_loss"]})
