"""Runs one command as a job of the workflow: with a log, and with a file that appears once it is whole.

    python -m hybrid.paper.job LOG PROGRESS OUTPUT MODULE ARGUMENT...

The command writes PROGRESS, which survives an interruption and from which ``--resume`` continues. If it succeeds,
PROGRESS is renamed to OUTPUT. With LOG "-" its output is shown. With PROGRESS "-" no file is renamed.
"""

import os
import runpy
import signal
import sys
import threading
import time

from snn.runtime.loading import end_quietly_as

POLL = 0.2
"""Seconds between two looks at the parent process."""


def end_with_parent() -> None:
    """Interrupt this process once its parent has ended.

    A parent that is killed cannot stop its jobs, and when started again would make the same run beside them.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL)
        # The group, because Snakemake ends only once its jobs have ended.
        os.killpg(os.getpgrp(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str]) -> int:
    """Run the command; return its exit status."""
    log, progress, output, module, *rest = arguments
    # A job that was started in the background of a shell would ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_quietly_as(module)
    end_with_parent()
    if log != "-":
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
    sys.argv = [module, *rest]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if stop.code not in (None, 0):
            raise
    if progress != "-":
        os.replace(progress, output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
