"""Makes the runs of :mod:`hybrid.paper.experiments` that are not there yet, one after another or several at a time."""

import contextlib
import importlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from time import perf_counter

import torch
from tqdm import tqdm

from hybrid.paper.experiments import Run, in_order
from snn.runtime.cli import INTERRUPTED
from snn.runtime.errors import UserError, check
from snn.storage import load_network

RESUMABLE = ("snn.learn", "hybrid.train")


READS_IMAGES = (*RESUMABLE, "hybrid.evaluate", "hybrid.swap", "bridge.convert")


PATIENCE = 30.0
"""Seconds that a worker has to end in."""


class Maker:
    """Makes runs, each after those it reads, and tells how far it is.

    Args:
        folder: of all runs, their log and, with several workers, what each run told while it was made.
        device: for ``--device``.
        root: folder that holds CIFAR-10.
        workers: processes that make runs at the same time.
    """

    def __init__(self, folder: Path, device: str = "auto", root: Path | None = None, workers: int = 1) -> None:
        self.folder, self.device, self.root, self.workers = folder, device, root, workers

    def done(self, run: Run) -> bool:
        """Whether its file is there; an interrupted snn.learn leaves one, too."""
        file = run.file(self.folder)
        return file.exists() and (run.module != "snn.learn" or load_network(file)[0].complete)

    def command(self, run: Run) -> list[str]:
        """What follows ``python -m``."""
        options = ["--no-figures", "--device", self.device]
        options += ["--resume"] if run.module in RESUMABLE else []
        options += ["--root", str(self.root)] if self.root and run.module in READS_IMAGES else []
        return [run.module, *run.arguments(self.folder), *options]

    def make(self, runs: list[Run]) -> None:
        """Each run that is not there yet; the first failure is a :class:`snn.runtime.errors.UserError` and ends it."""
        missing = [run for run in in_order(runs) if not self.done(run)]
        if self.workers > 1 and len(missing) > 1:
            self._make_several(missing)
            return
        began = perf_counter()
        for number, run in enumerate(missing):
            self._tell(run, number + 1, number, len(missing), perf_counter() - began)
            _judge(self.command(run), make_run(self.command(run), self.folder / "log.txt"))

    def _tell(self, run: Run, number: int, done: int, total: int, seconds: float) -> None:
        left = f", about {seconds / done * (total - done) / 60:.0f} min left" if done else ""
        print(f"[{number}/{total}{left}] {run.module}: {run.file(self.folder).name}", flush=True)

    def _make_several(self, missing: list[Run]) -> None:
        (self.folder / "logs").mkdir(exist_ok=True)
        waiting, made = {run.identity: run for run in missing}, 0
        running: dict[Future, Run] = {}
        began = perf_counter()
        threads = max(1, (os.cpu_count() or 1) // self.workers)
        # Started anew and not forked: numerical libraries do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.workers, context, initializer=_start_worker, initargs=(threads,)) as pool:
            try:
                while waiting or running:
                    unmade = waiting.keys() | {run.identity for run in running.values()}
                    ready = [r for r in waiting.values() if not unmade & {read.identity for _, read in r.inputs}]
                    for run in ready[: self.workers - len(running)]:
                        self._tell(run, made + len(running) + 1, made, len(missing), perf_counter() - began)
                        log = self.folder / "logs" / f"{run.file(self.folder).stem}.txt"
                        running[pool.submit(_make_in_worker, self.command(run), log)] = run
                        del waiting[run.identity]
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        run = running.pop(future)
                        try:
                            status = future.result()
                        except BrokenProcessPool as error:
                            raise UserError(
                                f"a worker ended while it made {run.file(self.folder).name} (out of memory?); start "
                                "again with fewer --workers"
                            ) from error
                        _judge(self.command(run), status)
                        made += 1
            except BaseException:
                # Training and learning go on from their last checkpoint when they are started again.
                _end(multiprocessing.active_children())
                raise


def _start_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    # Its own lock is one of all processes, which a worker that is terminated would leave behind.
    tqdm.set_lock(threading.RLock())
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed tells nobody, and its next start would make the same run beside this one."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _make_in_worker(command: list[str], log: Path) -> int:
    """:func:`make_run`. A command takes SIGTERM as Ctrl-C and returns; its worker must then end, and not wait for more
    to do."""
    status = INTERRUPTED
    with contextlib.suppress(KeyboardInterrupt):
        status = make_run(command, log, quiet=True)
    if status == INTERRUPTED:
        os._exit(INTERRUPTED)
    return status


def _end(workers: list[multiprocessing.Process]) -> None:
    """End all before the pool shuts down: one that ends inside a queue keeps its lock, for which another would wait
    for ever, and the pool for that one."""
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(PATIENCE)
        # It ends at once, or has nothing left to lose: files are whole or not there.
        worker.kill()
        worker.join()


def make_run(command: list[str], log: Path, quiet: bool = False) -> int:
    """Run a command of this project in this process, what it prints added to ``log``; return its exit status.

    ``quiet``: also what it tells on stderr, where it shows progress.
    """
    module, *arguments = command
    main: Callable[[list[str]], int] = importlib.import_module(module).main
    with open(log, "a") as file, contextlib.redirect_stdout(file):
        print(f"\npython -m {' '.join(command)}", flush=True)
        with contextlib.redirect_stderr(file if quiet else sys.stderr):
            return main(arguments)


def _judge(command: list[str], status: int) -> None:
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    check(status == 0, f"python -m {' '.join(command)} failed (its log tells why); mend that and start again")
