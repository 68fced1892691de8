"""Several processes that train one model: torchrun's environment, the process group, and what all of them agree on.

torchrun starts the same command as many times as there are GPUs and tells each process its number. Number 0 is the main
process: it reads the command, writes all files and prints; the others do what it tells them. Without torchrun nothing
here imports torch, and `current()` is `ALONE`.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from nanokimi.errors import TrainingError, UserError

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(hours=24)
"""How long a process waits for the others. The main one may prepare a large text, or evaluate for long; one that has
died is noticed at once, by its closed connections and by torchrun."""
LOST = (
    "connection closed",
    "connection reset",
    "connection was lost",
    "broken pipe",
    "read error",
    "write error",
)
"""What gloo says of a process that is gone; NCCL raises an error of its own class."""


@dataclass(frozen=True)
class World:
    """The processes that train together, and this one's place among them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """The number among the processes on this machine, which is the number of its GPU."""
    local_size: int = 1
    """Processes on this machine."""
    store: Any = field(default=None, repr=False)
    """torch's key-value store, which all processes see."""
    meshes: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """The process groups that were made of this one, for `train.sharding`: each costs connections and memory."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    def share(self, count: int) -> slice:
        """This process's part of `count` rows, which divide by the number of processes."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` returns in the main process, which alone calls it. The others wait for it."""
        if self.alone:
            return make()
        import torch
        from torch import distributed

        content = [make() if self.is_main else None]
        distributed.broadcast_object_list(content, src=0, device=torch.device("cpu"))
        return content[0]  # type: ignore[return-value]

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, in their order."""
        if self.alone:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def reduced(self, sums: torch.Tensor, maxima: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums and maxima over all processes of two vectors, in one message, in float64.

        The vectors of all are gathered, and every process combines them in the same order, so all get the same bits.
        """
        import torch
        from torch import distributed

        packed = torch.cat([sums.double(), maxima.double()])
        every = [torch.empty_like(packed) for _ in range(self.size)]
        distributed.all_gather(every, packed)
        stacked = torch.stack(every)
        return stacked[:, : len(sums)].sum(dim=0), stacked[:, len(sums) :].amax(dim=0)


ALONE = World()
_joined: list[World] = []
"""The group that this process has joined, if any."""


def current() -> World:
    """The group that this process has joined, or ALONE."""
    return _joined[0] if _joined else ALONE


def started_together() -> bool:
    """Whether torchrun (or another launcher with its environment) started this process beside others."""
    return all(name in os.environ for name in ENVIRONMENT) and os.environ["WORLD_SIZE"] != "1"


def join() -> World:
    """Join the group that torchrun's environment describes; ALONE if there is none.

    Raises UserError if the environment is incomplete or the machine has fewer GPUs than processes.
    """
    if not started_together():
        return ALONE
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    if not distributed.is_available():
        raise UserError("this torch was built without torch.distributed: start nanokimi without torchrun")
    local_rank = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    backend = "gloo"
    if torch.cuda.is_available() and local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
        backend = "cuda:nccl,cpu:gloo"
    store, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    _joined.append(World(rank, size, local_rank, local_size, store))
    return _joined[0]


def launcher() -> str:
    """How this command was started, for a line that says how to continue it."""
    if current().alone:
        return "nanokimi"
    return f"torchrun --nproc-per-node {current().local_size} -m nanokimi"


def leave() -> None:
    """End this process's part in the group, after all have done their work."""
    from torch import distributed

    distributed.destroy_process_group()


def end_in_group(status: int) -> None:
    """End a process that has joined a group here and now: gloo's threads sometimes abort one that ends later."""
    if not _joined:
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # its reader has gone, or it is closed
            stream.flush()
    os._exit(status)


def speaks() -> bool:
    """Whether this process is to print why the run ends: in a group, the first that asks."""
    world = current()
    if world.alone:
        return True
    try:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return bool(world.store.add(f"nanokimi has said why, attempt {attempt}", 1) == 1)
    except RuntimeError:  # the store went with the process that kept it
        return True


def is_lost(error: BaseException) -> bool:
    """Whether an error of torch.distributed means that another process is gone."""
    if current().alone or not isinstance(error, RuntimeError):
        return False
    from torch import distributed

    text = str(error).lower()
    return isinstance(error, distributed.DistError) or ("gloo" in text and any(sign in text for sign in LOST))


@contextmanager
def ending_together(advice: str) -> Iterator[None]:
    """Raise TrainingError with advice where the block finds that another process of the group is gone."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost(error):
            raise
        raise TrainingError(f"another process of this run has ended, so all end; {advice}") from None


def mesh_of_processes(device: torch.device, sizes: dict[str, int]) -> DeviceMesh:
    """The present group as a grid with these sizes of its named axes, neighbours along the last one."""
    from torch.distributed.device_mesh import init_device_mesh

    meshes, key = current().meshes, (device.type, *sizes.items())
    if key not in meshes:
        meshes[key] = init_device_mesh(device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    found: DeviceMesh = meshes[key]
    return found


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is one of which each process holds some rows (a DTensor). Imports nothing."""
    return hasattr(tensor, "full_tensor")


def copies_of(tensor: Any) -> int:
    """How many processes hold the same rows of a sharded tensor, which are the copies that there are of it."""
    sizes = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    return math.prod(size for size, placement in sizes if placement.is_replicate())


def of_first_copy(tensor: Any) -> bool:
    """Whether what this process holds of a sharded tensor belongs to its first copy; of any other tensor it does."""
    if not is_sharded(tensor):
        return True
    places = zip(tensor.device_mesh.get_coordinate(), tensor.placements, strict=True)
    return all(place == 0 for place, placement in places if placement.is_replicate())


def local_of(tensor: Any) -> torch.Tensor:
    """This process's rows of a sharded tensor, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Any) -> torch.Tensor:
    """A sharded tensor with the rows of all processes, which must all call this; any other tensor as it is."""
    if not is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import Replicate

    # Experts that processes share are cut along two axes of a mesh: along the first within what the last one leaves.
    placements = list(tensor.placements)
    for axis in range(len(placements) - 1):
        placements[axis] = Replicate()
        tensor = tensor.redistribute(placements=placements)
    return tensor.full_tensor()


def like(tensor: torch.Tensor, pattern: Any) -> torch.Tensor:
    """A whole tensor that every process has, sharded as `pattern` is. Nothing is sent."""
    if not is_sharded(pattern):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    placed = tensor.to(pattern.device)
    return distribute_tensor(placed, pattern.device_mesh, pattern.placements, src_data_rank=None)
