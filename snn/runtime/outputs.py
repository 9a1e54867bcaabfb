"""Files that a command writes: checked before the work starts, each written whole or not at all."""

import contextlib
import csv
import errno
import json
import os
import platform
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from snn.runtime.errors import UserError, check
from snn.runtime.locks import check_not_held, hold
from snn.runtime.progress import warn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from snn.runtime.cli import RunOptions


Target = Path | BinaryIO
"""Where a figure goes (:func:`save_figure`)."""


def beside(path: Path, ending: str) -> Path:
    """``path`` without its suffix, plus ``ending``: where a figure of that file goes."""
    return path.parent / f"{path.stem}{ending}"


def log_folder(out: Path, ending: str) -> Path:
    """Folder for logs beside the file ``out``; files whose names differ in their suffix alone share none."""
    return beside(out, ending) if out.suffix == ".h5" else out.parent / f"{out.name}{ending}"


def hold_log_folder(folder: Path, files: Iterable[Path | None], inputs: Iterable[Path]) -> None:
    """Check and lock the folder that a command's logs go to; of a group of processes only the first writes there.

    Raises :class:`UserError` if it lies in ``inputs``, if one of ``files``, which the command writes, lies in it, if it
    is no folder, or if another command writes to it.
    """
    from snn.runtime.processes import first_process

    if not first_process():
        return
    check_apart(folder, inputs)
    for path in filter(None, files):
        check(
            not path.resolve().is_relative_to(folder.resolve()),
            f"cannot write {path}: {folder} is the folder of this command's logs; give another name",
        )
    check(folder.is_dir() or not folder.exists(), f"{folder} is not a folder: logs go there; remove it")
    hold(folder)


def check_outputs(*paths: Path | None, inputs: Iterable[Path] = ()) -> None:
    """Raise :class:`UserError` unless each path (None is skipped) can be created or replaced; leaves no trace.

    They must differ from each other and lie apart from ``inputs`` (:func:`check_apart`).
    """
    taken: set[Path] = set()
    inputs = list(inputs)
    for path in paths:
        if path is None:
            continue
        folder = path.parent
        check(folder.is_dir(), f"cannot write {path}: folder {folder} does not exist; create it first")
        check(not path.is_dir(), f"cannot write {path}: it is a folder; give a file name inside it")
        check(path.is_file() or not path.exists(), f"cannot write {path}: it is not a regular file; give another name")
        check_apart(path, inputs)
        check(
            path.resolve() not in taken,
            f"cannot write {path}: it is also the name of another output (or figure); give another name",
        )
        taken.add(path.resolve())
        try:
            # Permission bits say nothing of root or a read-only mount: try.
            probe = _temporary(path)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; choose a folder you can write to") from error


def check_apart(path: Path, inputs: Iterable[Path]) -> None:
    """Raise :class:`UserError` if ``path`` is one of ``inputs``, files and folders that are read, or lies in one."""
    place = path.resolve()
    for given in inputs:
        kept = given.resolve()
        check(
            place != kept and kept not in place.parents,
            f"cannot write {path}: it is read by this command; give another name"
            if place == kept
            else f"cannot write {path}: it lies in {given}, whose files this command reads; choose another folder",
        )


class Outputs:
    """The files of one command: checked and locked before its work, named at its end.

    What processes that are dead left of an earlier try is removed.

    Args:
        files: that it always writes (None is skipped), the most important first.
        options: whether figures and JSON are wanted.
        figures: that it also draws, unless ``options`` say no.
        inputs: files that it reads, which must not be replaced, and folders of images, in which nothing is written.
        group: whether several processes may run it together.

    Raises:
        UserError: a file that cannot be written, that is an input, lies in one, is named twice, or is being written by
            another command.
    """

    def __init__(
        self,
        *files: Path | None,
        options: "RunOptions",
        figures: Iterable[Path] = (),
        inputs: Iterable[Path] = (),
        group: bool = False,
    ) -> None:
        drawn = tuple(figures)
        if not (options.figures or drawn):
            warn("--no-figures has no effect: this command draws none")
        self.figures = drawn if options.figures else ()
        """Pictures to draw; none with ``--no-figures``."""
        self._files, self._json = [file for file in files if file is not None], options.json
        plugins = (Path(plugin) for plugin in options.plugin if Path(plugin).is_file())
        # Imported here: --help must not wait for PyTorch.
        from snn.runtime.processes import first_process, tasks_of_step

        check(
            group or tasks_of_step() == 1,
            f"srun started {tasks_of_step()} tasks of this command, which is one process: use srun --ntasks 1",
        )
        # Of a group of processes the others write nothing, and may be on other nodes with other folders.
        if first_process():
            check_outputs(*self._files, self._json, *self.figures, inputs=[*inputs, *plugins])
            written = [path for path in (*self._files, self._json, *self.figures) if path]
            for path in written:
                check_not_held(path.parent)
                hold(path)
            remove_leftovers(*written)

    def finish(self, printed: dict, note: str = "") -> None:
        """Write the figures that were ``printed`` as JSON, and say what was written where; ``note`` follows."""
        write_json(self._json, printed)
        if written := [str(path) for path in (*self._files, *self.figures, self._json) if path]:
            print("wrote " + ", ".join(written) + note)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary path beside ``path``, sync it, then rename it to ``path``.

    Whatever goes wrong, an older file at ``path`` stays as it was. What the system refuses, as where a disk is full, is
    a :class:`UserError` with the reason.
    """
    try:
        with replacing(path) as temporary:
            write(temporary)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error)
        remedy = "free some space, or write elsewhere" if full else "give another name, or write elsewhere"
        raise UserError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``; the file that is there at the end is synced and renamed to ``path``.

    After an error it is removed, and an older file at ``path`` stays as it was.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def remove_leftovers(*paths: Path, name: str = ".+") -> None:
    """Remove temporary files that dead processes of this host left of these files, or of all files in these folders.

    ``name`` is a regular expression for the latter, of the name without its suffix.
    """
    if os.name != "posix":
        # Elsewhere a process cannot be asked whether it lives.
        return
    for path in paths:
        whole = path.is_dir()
        folder, stem, suffix = (path, name, r"(\.\w+)?") if whole else (
            path.parent, re.escape(path.stem), re.escape(path.suffix)
        )  # fmt: skip
        pattern = re.compile(rf"\.{stem}\.{re.escape(platform.node())}\.(\d+){suffix}")
        for file in folder.iterdir():
            match = pattern.fullmatch(file.name)
            if match and not _alive(int(match[1])):
                file.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """Where this process writes ``path``; the name tells :func:`remove_leftovers` whose it is."""
    return path.with_name(f".{path.stem}.{platform.node()}.{os.getpid()}{path.suffix}")


PF_EXITING = 0x4
"""Among the flags of a process, ninth value of /proc/PID/stat: it is ending (Linux, include/linux/sched.h)."""


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        # Another user's.
        return True
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        # It ended in between, or it is not Linux.
        return not Path("/proc/self/stat").exists()
    # It has ended as well if its parent has not yet asked for it (Z), or while the kernel takes it apart (PF_EXITING):
    # its locks are free from then on, and who waits for one comes here at once.
    return state != b"Z" and not int(fields[5]) & PF_EXITING


def write_json(path: Path | None, figures: dict) -> None:
    """Write the figures a command printed to ``path`` (None: do nothing)."""
    if path is not None:
        text = json.dumps(figures, indent=2, allow_nan=False) + "\n"
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_csv(path: Path | None, rows: list[dict]) -> None:
    """Write rows with equal keys in long format to ``path`` (None: do nothing)."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    if path is not None:
        write_atomically(path, write)


def _draw_literally(figure: "Figure") -> None:
    """Turn the parser of formulas off, except for powers of ten beside an axis."""
    # Imported here: commands that draw nothing need not wait for it.
    from matplotlib.text import Text
    from matplotlib.ticker import LogFormatter

    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
    logarithmic = [axis for axis in axes if isinstance(axis.get_major_formatter(), LogFormatter)]
    powers = {label for axis in logarithmic for label in axis.get_ticklabels(which="both")}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text not in powers:
            text.set_parse_math(False)


def save_figure(figure: "Figure", target: "Target") -> None:
    """Write a matplotlib figure to ``target``; needs no display.

    A path becomes a PNG file, whole or not at all. A binary stream receives SVG, the same bytes for the same figure.
    Texts are drawn as they are: a dollar sign in a name starts no formula.
    """
    # Imported here: commands that draw nothing need not wait for it.
    from matplotlib import rc_context

    _draw_literally(figure)
    with warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        if isinstance(target, Path):
            write_atomically(target, lambda temporary: figure.savefig(temporary, dpi=150, metadata={"Software": None}))
        else:
            with rc_context({"svg.hashsalt": "safe-dnn"}):
                figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
