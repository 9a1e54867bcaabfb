"""What every command shares: exit statuses, checks of its outputs before work starts, device, progress, JSON."""

import contextlib
import csv
import io
import json
import os
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
import tyro
from tqdm import tqdm

from snn.errors import UserError, check

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Config = TypeVar("Config")
Item = TypeVar("Item")
DeviceName = Literal["auto", "cpu", "cuda"]
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
    program = f"python -m {spec.name if spec else module}"
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


def beside(path: Path, ending: str) -> Path:
    """``path`` without its suffix, plus ``ending``: where a figure of that file goes."""
    return path.parent / f"{path.stem}{ending}"


def check_outputs(*paths: Path | None, inputs: Iterable[Path] = ()) -> None:
    """Raise :class:`UserError` unless each path (None is skipped) can be created or replaced; leaves no trace.

    They must differ from each other and from ``inputs``, which would be lost.
    """
    taken = {path.resolve(): "is read by this command" for path in inputs}
    for path in paths:
        if path is None:
            continue
        folder = path.parent
        check(folder.is_dir(), f"cannot write {path}: folder {folder} does not exist; create it first")
        check(not path.is_dir(), f"cannot write {path}: it is a folder; give a file name inside it")
        check(path.is_file() or not path.exists(), f"cannot write {path}: it is not a regular file; give another name")
        reason = taken.get(path.resolve())
        check(reason is None, f"cannot write {path}: it {reason}; give another name")
        taken[path.resolve()] = "is also the name of another output (or figure)"
        try:
            # Permission bits do not tell root or a read-only mount apart: try.
            handle, probe = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.")
            os.close(handle)
            os.unlink(probe)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; choose a folder you can write to") from error


def choose_device(name: DeviceName) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU; ``cuda`` without one is a :class:`UserError`."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: PyTorch finds no CUDA device here; use --device cpu or auto, or install a CUDA driver"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        # TF32 keeps 10 bits of a weight: drives near an edge of a step function would land beyond it.
        torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


def progress(items: Iterable[Item] | None, what: str, unit: str, total: int | None = None, initial: int = 0) -> tqdm:
    """A progress bar with an estimate on stderr; loops of under two seconds stay silent. ``initial``: done before."""
    # A log file gets a line now and then instead of a redrawn bar.
    interval = 0.2 if sys.stderr.isatty() else 15.0
    return tqdm(items, desc=what, unit=unit, total=total, initial=initial, delay=2.0, mininterval=interval, leave=False)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` with a temporary path beside ``path``, sync it, then rename it to ``path``.

    Whatever goes wrong, an older file at ``path`` stays as it was; a full disk is a :class:`UserError`.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}; free some space or write elsewhere with --out") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path | None, figures: dict) -> None:
    """Write the figures a command printed to ``path`` (None: do nothing)."""
    if path is not None:
        text = json.dumps(figures, indent=2, allow_nan=False) + "\n"
        write_atomically(path, lambda temporary: temporary.write_text(text))


def write_csv(path: Path | None, rows: list[dict]) -> None:
    """Write rows with equal keys in long format to ``path`` (None: do nothing)."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    if path is not None:
        write_atomically(path, write)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a matplotlib figure to ``path`` (PNG), whole or not at all; needs no display."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, metadata={"Software": None}))
