"""The job files of examples/: what torchrun's parser reads, and what a job does after a signal, with `srun` replaced.

That SLURM's sbatch and SkyPilot's Task take them was checked by hand (docs/scaling-out.md): neither is installed here.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from nanokimi.config.files import preset_names

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SBATCH = sorted((EXAMPLES / "slurm").glob("*.sbatch"))
TASKS = [path for path in sorted((EXAMPLES / "skypilot").glob("*.yaml")) if path.name != "volume.yaml"]

SRUN = """\
#!/bin/bash
shift  # --wait=...
SLURM_PROCID=5 SLURM_LOCALID=1 "$@"
"""
SCONTROL = """\
#!/bin/bash
[ "$1" = show ] && printf 'node-a\\nnode-b\\n' || echo "$@" >> "$TOLD"
"""
PYTHON = """\
#!/bin/bash
echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $@" >> "$TOLD"
exit "$ENDS_WITH"
"""


def job(script: Path, folder: Path, ends_with: int) -> tuple[int, list[str]]:
    """A job's exit status, and what it told nanokimi and SLURM, where nanokimi ends with `ends_with`."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    given = dict(
        SLURM_JOB_ID="123", SLURM_JOB_NODELIST="node-[a-b]", SLURM_NTASKS="16", SLURM_NTASKS_PER_NODE="8"
    )
    given |= dict(TOLD=str(folder / "told"), ENDS_WITH=str(ends_with), DATA="a text.txt", OUT="runs/x")
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    words = ["bash", str(script), "--config", "k2-27m"]
    done = subprocess.run(words, env={**os.environ, **given, "PATH": path}, capture_output=True, text=True)
    return done.returncode, (folder / "told").read_text().splitlines()


@pytest.mark.parametrize("script", SBATCH, ids=lambda path: path.stem)
def test_a_job_goes_back_into_the_queue_after_sigusr1_only(script: Path, tmp_path: Path) -> None:
    """138 is 128 + SIGUSR1: saved, to be continued. Any other end stays an end."""
    command = "5 1 16 node-a 20123 -m nanokimi train --data a text.txt --out runs/x --resume --config k2-27m"
    assert job(script, tmp_path, 138) == (138, [command, "requeue 123"])
    (tmp_path / "told").unlink()
    assert job(script, tmp_path, 1) == (1, [command])


@pytest.mark.parametrize("script", SBATCH, ids=lambda path: path.stem)
def test_a_job_leaves_time_to_save_and_can_be_put_back(script: Path) -> None:
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script.read_text(), re.MULTILINE))
    before = int(options["signal"].removeprefix("USR1@"))  # no "B:": the processes get it, not this shell
    waits = int(re.search(r"srun --wait=(\d+)", script.read_text()).group(1))  # type: ignore[union-attr]
    assert 0 < waits < before and "requeue" in options
    assert options["ntasks-per-node"] == options["gpus-per-node"], "a process for each GPU"


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_torchrun_takes_a_tasks_command(path: Path) -> None:
    task = yaml.safe_load(path.read_text())
    known = {"SKYPILOT_NUM_NODES": "4", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}
    known |= {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", **task["envs"]}
    printed = task["run"].replace("~/nanokimi/bin/torchrun", "printf '%s\\n'", 1)
    environment = {"PATH": os.environ["PATH"], **known}
    words = subprocess.check_output(["bash", "-eu", "-c", printed], env=environment, text=True).splitlines()
    read = get_args_parser().parse_args(words)
    assert (read.module, read.training_script, read.nproc_per_node) == (True, "nanokimi", "8")
    if "num_nodes" in task:
        assert (read.nnodes, read.node_rank, read.master_addr) == ("4", 1, "10.0.0.1")
    else:
        assert read.standalone
    script = read.training_script_args
    assert script[:4] == ["train", "--resume", "--out", "/runs/x"]
    assert script[script.index("--config") + 1] in preset_names()
    mounted = yaml.safe_load((path.parent / "volume.yaml").read_text())
    assert task["volumes"] == {"/runs": mounted["name"]}
    assert mounted["config"]["access_mode"] == "ReadWriteMany" or "num_nodes" not in task
