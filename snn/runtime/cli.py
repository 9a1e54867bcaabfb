"""What every command shares: exit statuses, checks of its outputs before work starts, device, progress, JSON."""

import contextlib
import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import tyro

from snn.runtime.errors import UserError, check

if TYPE_CHECKING:
    pass
from snn.runtime.device import DeviceName

Config = TypeVar("Config")


INTERRUPTED = 130
"""Exit status of a command that Ctrl-C or SIGTERM ended."""


@dataclass(frozen=True)
class RunOptions:
    """Flags that all commands share."""

    seed: int = 0
    """Seed of all random draws."""
    device: DeviceName = "auto"
    """Where to compute; auto is CUDA where there is one."""
    figures: bool = True
    """Draw figures beside --out."""
    json: Path | None = None
    """Also write the printed figures to this file."""

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**32, f"--seed {self.seed}: expected a whole number from 0 to {2**32 - 1}")


def run_command(
    config_type: type[Config],
    function: Callable[[Config], int | None],
    argv: list[str] | None,
    defaults: Callable[[Config], Config] | None = None,
) -> int:
    """Parse ``argv`` (default: the process's) into ``config_type``, call ``function`` with it, return the exit status.

    ``defaults`` makes, of a first parse, the values that flags which are not given have (such as a preset's).

    0: done, or another status that ``function`` returns. 2: a user error, told in one line on stderr. 130: interrupted
    (also by SIGTERM).
    """
    module = function.__module__
    spec = sys.modules[module].__spec__
    program = f"python -m {(spec.name if spec else module).removesuffix('.__main__')}"
    try:
        arguments = sys.argv[1:] if argv is None else argv
        config = _parse(config_type, arguments, program)
        if defaults:
            config = _parse(config_type, arguments, program, defaults(config))
        with _interrupts():
            return function(config) or 0
    except (UserError, OSError) as error:
        # What the operating system refuses (a name too long, a folder that may not be read) is for the user to mend.
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemError) as error:
        # Compiled code that is interrupted may end in a SystemError caused by the interrupt.
        if not _interrupted(error):
            raise
        print(f"{program}: interrupted; every file left is whole", file=sys.stderr)
        return INTERRUPTED


def _interrupted(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does, so that no temporary file stays behind; and neither is ever lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    repeats: list[threading.Timer] = []
    hook = sys.unraisablehook

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def repeat(unraisable: "sys.UnraisableHookArgs") -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            hook(unraisable)
            return
        # Raised while an object was deleted, where Python drops exceptions: once more, a moment later.
        repeats.append(threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)))
        repeats[-1].start()

    before = signal.signal(signal.SIGTERM, interrupt)
    sys.unraisablehook = repeat
    try:
        yield
    finally:
        for timer in repeats:
            timer.cancel()
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)


def _parse(config_type: type[Config], arguments: list[str], program: str, default: Config | None = None) -> Config:
    """The configuration; a :class:`UserError` in place of the parser's own many lines."""
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            given = {} if default is None else {"default": default}
            return tyro.cli(config_type, args=arguments, prog=program, **given)
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        # The parser frames its message in a box with a rule above a hint.
        lines = [line.strip("│╭╮╰╯─ ") for line in captured.getvalue().splitlines()]
        message = " ".join(line for line in lines if line and not line.startswith("For full helptext"))
        raise UserError(f"{message}; see {program} --help") from stop


def command_line(module: str, config: object) -> str:
    """The command that a stage's file records: the process's own if it is ``module``, else the library call."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None and spec.name == module:
        return shlex.join(["python", "-m", module, *sys.argv[1:]])
    return f"{module} called as a library with {config!r}"
