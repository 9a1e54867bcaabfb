"""Runs one command for the workflow: in the background, with a log, and with a file that appears once it is whole.

    python -m hybrid.paper.job LOG PROGRESS OUTPUT MODULE ARGUMENT...

The command writes PROGRESS, which survives an interruption and is what ``--resume`` goes on from. When it has ended
well, PROGRESS becomes OUTPUT. LOG "-": what the command prints is shown; PROGRESS "-": there is no file.
"""

import os
import runpy
import signal
import sys
import threading
import time

POLL = 0.2
"""Seconds between two looks at the parent process."""


def end_with_parent() -> None:
    """End this process as Ctrl-C does when its parent is gone.

    A killed parent tells nobody, and its next start would make the same run beside this one.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL)
        # Snakemake ends once its own jobs do, and these have the same process group.
        os.killpg(os.getpgrp(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str]) -> int:
    """Run the command; return its exit status."""
    log, progress, output, module, *rest = arguments
    # A job that was started in the background of a shell would ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
