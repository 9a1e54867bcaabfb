"""Makes runs with Snakemake: one rule per run, on this machine or wherever its executors send jobs.

Snakemake decides what to make by the files that exist. A run writes into ``progress/`` until it is complete, so that
an interrupted one continues from its checkpoint. At the end it moves its file to its place, where all files are whole.
"""

import contextlib
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from hybrid.paper.runs import Place, Run, in_order, missing_runs
from snn.learn import LearnConfig
from snn.runtime.errors import check
from snn.runtime.locks import locked
from snn.runtime.outputs import remove_leftovers, write_json
from snn.runtime.ranges import THREADS, Range, check_fields
from snn.storage import load_network

MEMORY_MB = 8000
"""Memory that a run asks for, in MB (ours: room for 50,000 images of 32 pixels; ``-- --set-resources`` changes it)."""
PATIENCE = 30.0
"""Seconds after an interruption until jobs that have not ended are killed."""


@dataclass(frozen=True)
class Engine:
    """How Snakemake makes runs."""

    jobs: Annotated[int, Range(1, 10**5)] = 1
    """Runs made at the same time."""
    threads: Annotated[int | None, THREADS] = None
    """Threads of each run; None: an equal share of this machine's cores."""
    executor: str = "local"
    """Where Snakemake makes runs: local, or the name of an installed executor plugin, for example slurm."""
    profile: str | None = None
    """Snakemake profile: a folder with its options, for example those of a cluster."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def local(self) -> bool:
        """Whether runs are made on this machine."""
        return self.executor == "local" and self.profile is None

    @property
    def share(self) -> int:
        """Threads of each run: Snakemake sets OMP_NUM_THREADS to it."""
        # PyTorch knows of OMP_NUM_THREADS and of processors that this process may not use.
        return self.threads or max(1, torch.get_num_threads() // self.jobs)

    @property
    def arguments(self) -> list[str]:
        """Options of Snakemake."""
        where = ["--profile", self.profile] if self.profile else ["--executor", self.executor]
        return [*where, *(["--cores", f"{self.jobs * self.share}"] if self.local else ["--jobs", f"{self.jobs}"])]


def make(runs: Iterable[Run], place: Place, engine: Engine, options: Iterable[str] = ()) -> None:
    """Make each run that is not there yet, after those whose files it reads.

    ``options`` are further options of Snakemake.

    Raises:
        UserError: a run failed; Snakemake is not installed; another process makes runs in the same folder.
    """
    wanted = list(runs)
    # Jobs share the lock, so that it is held until all of them have ended.
    refusal = f"{{holder}} makes runs in {place.folder}: wait for it, or give another `runs`"
    with locked(place.folder / ".lock", refusal, remove=False) as lock:
        remove_leftovers(place.folder)
        _set_aside(in_order(wanted), place.folder)
        needed = missing_runs(wanted, place.folder)
        if not needed:
            return
        check(
            importlib.util.find_spec("snakemake") is not None,
            "runs are made by Snakemake, which is not installed: pip install 'safe-dnn[reproduce]'",
        )
        plugin = f"snakemake_executor_plugin_{engine.executor.replace('-', '_')}"
        check(
            engine.executor in ("local", "dryrun", "touch") or importlib.util.find_spec(plugin) is not None,
            f"`executor` {engine.executor}: not installed here; install it: pip install {plugin.replace('_', '-')}",
        )
        for name in ("logs", "progress"):
            (place.folder / name).mkdir(exist_ok=True)
        for run in needed:
            _log(run, place.folder).unlink(missing_ok=True)
        jobs = place.folder / "jobs.json"
        write_json(jobs, {"jobs": _jobs(needed, {run.identity for run in wanted}, place, engine)})
        status = _run_snakemake(jobs.resolve(), [*engine.arguments, *options], lock)
    for run in needed:
        log = _log(run, place.folder)
        # A run that Snakemake did not start has no log.
        failed = log.exists() and not run.file(place.folder).exists()
        check(not failed, f"{run.name} failed, see {log}; mend that and start again. {_last_line(log)}")
    check(status == 0, f"Snakemake ended with status {status}; its messages above say why")


def _log(run: Run, folder: Path) -> Path:
    return folder / "logs" / f"{run.name}.txt"


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    # A cluster may have refused to start it.
    nothing = "It says nothing: Snakemake's messages above may say why"
    return next((f"It says: {line.strip()}" for line in reversed(lines) if line.strip()), nothing)


def _set_aside(runs: Iterable[Run], folder: Path) -> None:
    """Move unfinished learning, which a command started by hand may leave, to where a run continues it."""
    for run in runs:
        file = run.file(folder)
        if isinstance(run.config, LearnConfig) and file.exists() and not load_network(file).network.complete:
            (folder / "progress").mkdir(exist_ok=True)
            file.replace(folder / "progress" / file.name)


def _run_snakemake(jobs: Path, options: list[str], lock: int | None) -> int:
    """Run Snakemake, which shares the ``lock``, and return its exit status. An interrupt ends it and all jobs."""
    words = [
        *("snakemake", "--snakefile", str(Path(__file__).with_name("Snakefile")), "--directory", str(jobs.parent)),
        *("--config", f"jobs={jobs}", "--nolock", "--ignore-incomplete", "--drop-metadata"),
        *("--rerun-triggers", "mtime", "--scheduler", "greedy", "--quiet", "host", "reason"),
        *options,
    ]
    command = [sys.executable, "-m", "hybrid.paper.job", "-", "-", "-", *words]
    process = subprocess.Popen(command, start_new_session=True, pass_fds=() if lock is None else (lock,))
    try:
        return process.wait()
    except KeyboardInterrupt:
        for signal_number in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal_number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
        raise


def _jobs(runs: list[Run], wanted: set[str], place: Place, engine: Engine) -> list[dict[str, object]]:
    """Description of each run for the Snakefile. Paths are relative to the folder of all runs.

    ``wanted`` are identities of the runs that are asked for; the others are made because these read their files.
    """
    here = Path.cwd()
    jobs = []
    for run in runs:
        file, log = run.file(place.folder), _log(run, place.folder)
        progress = place.folder / "progress" / file.name
        words = ["-m", "hybrid.paper.job", str(log), str(progress), str(file), *run.command(place, progress)[1:]]
        jobs.append(
            {
                "name": run.name.replace("-", "_"),
                "message": f"{run.module}: {file.name}",
                "inputs": [source.file(Path()).name for _, source in run.inputs],
                "output": file.name,
                "wanted": run.identity in wanted,
                "log": f"logs/{log.name}",
                "threads": engine.share,
                "resources": {"gpu": int(place.device != "cpu"), "mem_mb": MEMORY_MB},
                # The process itself, and no shell, is Snakemake's child, and sees when that is killed.
                "command": f"cd {shlex.quote(str(here))} && exec {shlex.join([sys.executable, *words])}",
            }
        )
    return jobs
