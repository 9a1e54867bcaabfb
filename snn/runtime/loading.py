"""Ctrl-C and SIGTERM while the modules of a command load: one line and an exit status, in place of a traceback."""

import os
import signal
import sys
from types import TracebackType

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C or SIGTERM ended."""
PACKAGES = ("snn.", "bridge.", "hybrid.", "validation.", "benchmarks.")
"""Where the commands of this project live."""
LEFT = "interrupted; every file left is whole"


def end_quietly() -> None:
    """Until the command itself answers to them, Ctrl-C and SIGTERM end this process, if ``python -m`` started it.

    Does nothing where the package is imported by another program.
    """
    # So Python marks the time in which it looks for the module.
    if not sys.argv or sys.argv[0] != "-m":
        return
    program = sys.orig_argv[-len(sys.argv)].removeprefix("-m")
    if program.startswith(PACKAGES):
        end_quietly_as(program)


def end_quietly_as(program: str) -> None:
    """Let Ctrl-C and SIGTERM, where nobody answers to them yet, end this process with one line of that program."""

    def end(*_: object) -> None:
        # Modules that load may turn an exception into another one.
        os.write(2, f"python -m {program}: {LEFT}\n".encode())
        os._exit(INTERRUPTED)

    def explain(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if kind is not MemoryError and "failed to map segment" not in str(error):
            sys.__excepthook__(kind, error, traceback)
            return
        os.write(
            2, f"python -m {program}: error: there is not enough memory to load its modules (ulimit -v)\n".encode()
        )
        os._exit(2)

    sys.excepthook = explain
    # A process in the background of a shell ignores Ctrl-C, and goes on to.
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is default:
            signal.signal(number, end)
