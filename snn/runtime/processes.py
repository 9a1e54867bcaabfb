"""Processes that share the mini-batches of learning: this one alone, or several through Lightning Fabric."""

import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from snn.runtime.device import DeviceName, choose_device
from snn.runtime.errors import UserError, check

if TYPE_CHECKING:
    from lightning.fabric import Fabric


Made = TypeVar("Made")


class Processes:
    """One process of a group (without ``fabric``: the only one)."""

    def __init__(self, fabric: "Fabric | None" = None) -> None:
        self._fabric = fabric
        self.rank: int = fabric.global_rank if fabric else 0
        self.size: int = fabric.world_size if fabric else 1

    @property
    def first(self) -> bool:
        """This process prints and writes."""
        return self.rank == 0

    def add(self, values: Tensor) -> Tensor:
        """Sum of ``values`` over all processes."""
        if not self._fabric:
            return values
        # Processes add what lies at the same place in memory, whatever order each of them has there.
        total = self._fabric.all_reduce(values.contiguous(), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def share(self, make: Callable[[], Made]) -> Made:
        """What ``make`` returns in the first process, in all of them; its :class:`UserError` ends them all."""
        if not self._fabric:
            return make()
        outcome: Made | UserError | None = None
        if self.first:
            try:
                outcome = make()
            except UserError as error:
                outcome = error
        shared: Any = self._fabric.broadcast(outcome)
        if isinstance(shared, UserError):
            # The first process prints it, and decides the exit status.
            raise shared if self.first else SystemExit(0)
        return shared


def first_process() -> bool:
    """Whether this process is the first of its group (or alone), by the variables that its launcher sets."""
    names = (
        "RANK",
        "LOCAL_RANK",
        "NODE_RANK",
        "GROUP_RANK",
        *(["SLURM_PROCID"] if "SLURM_NTASKS" in os.environ else []),
    )
    return all(_number(name, 0) == 0 for name in names)


def tasks_of_step() -> int:
    """Tasks that Slurm's ``srun`` started of this command; 1 without it."""
    return _number("SLURM_STEP_NUM_TASKS", 1)


def _number(name: str, default: int) -> int:
    """The number in an environment variable, or ``default`` if there is none."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


def environments() -> list[Any]:
    """How Lightning is to start processes or to find those that are started (empty: it finds out itself).

    Of Slurm, Lightning knows only whether there is a job, not whether ``srun`` started this process as one of its
    tasks. Call :func:`group_size` first.
    """
    # Lightning takes seconds to import: only where it is needed.
    from lightning.fabric.plugins.environments import LightningEnvironment

    own = "SLURM_NTASKS" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
    return [LightningEnvironment()] if own else []


def group_size(device: DeviceName, devices: int, nodes: int) -> tuple[torch.device, int, int]:
    """The device, and processes per node and nodes: torchrun's where it started this process, else those asked for.

    Where Slurm's ``srun`` started this process as one of several, they must be those that are asked for.
    """
    check(devices >= 1, f"`devices` {devices}: expected 1 or more")
    check(nodes >= 1, f"`num_nodes` {nodes}: expected 1 or more")
    chosen = choose_device(device)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        check(
            devices in (1, local) and nodes in (1, world // local),
            f"`devices` {devices} `num_nodes` {nodes} under a torchrun of {local} processes on each of "
            f"{world // local} nodes: leave these flags out",
        )
        devices, nodes = local, world // local
    elif (tasks := tasks_of_step()) > 1:
        _join_step(tasks, devices, nodes)
    # Without one, this process would wait for the others for ever.
    check(
        nodes == 1 or "MASTER_ADDR" in os.environ,
        f"`num_nodes` {nodes}: nothing says where the other nodes are; start the command on each with torchrun or "
        "srun, or set MASTER_ADDR, MASTER_PORT and NODE_RANK",
    )
    if chosen.type == "cuda":
        available = torch.cuda.device_count()
        check(
            devices <= available, f"`devices` {devices}: this node has {available} CUDA devices; ask for at most these"
        )
    else:
        cores = os.cpu_count() or 1
        check(
            devices <= max(2, cores),
            f"`devices` {devices}: this node has {cores} cores, and each process needs one, and memory for all images; "
            "ask for at most these",
        )
    return chosen, devices, nodes


def _join_step(tasks: int, devices: int, nodes: int) -> None:
    """Tell Lightning of this process's place among the ``tasks`` that ``srun`` started, by its own variables."""
    there = _number("SLURM_STEP_NUM_NODES", 1)
    check(
        (devices * there, nodes) == (tasks, there),
        f"srun started {tasks} tasks of this command on {there} nodes, and `devices` {devices} `num_nodes` {nodes} "
        f"asks for {devices * nodes} processes: give `devices` {tasks // there} `num_nodes` {there} to share the "
        "work among them, or start one with srun --ntasks 1",
    )
    if "LOCAL_RANK" in os.environ:
        return
    from lightning.fabric.plugins.environments import SLURMEnvironment

    hosts = os.environ.get("SLURM_STEP_NODELIST", "127.0.0.1")
    os.environ["LOCAL_RANK"], os.environ["NODE_RANK"] = os.environ["SLURM_LOCALID"], os.environ["SLURM_NODEID"]
    os.environ.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(hosts))
    # Steps of a job that run at the same time need ports of their own.
    number = 100 * _number("SLURM_JOB_ID", 0) + _number("SLURM_STEP_ID", 0)
    os.environ.setdefault("MASTER_PORT", str(15_000 + number % 15_000))


def start_processes(device: DeviceName, devices: int, nodes: int) -> tuple[Processes, torch.device]:
    """This process's place in its group, and its device.

    Started by torchrun, the group is torchrun's; otherwise Fabric starts ``devices - 1`` more on this node, which run
    the same command.
    """
    chosen, devices, nodes = group_size(device, devices, nodes)
    if devices * nodes == 1:
        return Processes(), chosen
    # Lightning takes seconds to import: only where it is needed.
    from lightning.fabric import Fabric

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The `srun` command is available")
        fabric = Fabric(
            accelerator=chosen.type, devices=devices, num_nodes=nodes, strategy="ddp", plugins=environments()
        )
    fabric.launch()
    return Processes(fabric), fabric.device
