"""Results that ship with the package, taken by name in place of a file: ``pretrained:cifar10-fd``."""

from pathlib import Path

from snn.runtime.errors import check

PREFIX = "pretrained:"


def resolve(file: str | Path, folder: Path) -> Path:
    """``file`` itself, or the shipped file in ``folder`` that it names.

    Raises :class:`UserError`, which lists all names, for one that does not ship.
    """
    name = str(file)
    if not name.startswith(PREFIX):
        return Path(file)
    shipped = folder / f"{name.removeprefix(PREFIX)}.h5"
    names = ", ".join(PREFIX + path.stem for path in sorted(folder.glob("*.h5")))
    remedy = f"choose from: {names}" if names else "no such file does; give a file of your own"
    check(shipped.is_file(), f"{name} does not ship with this package; {remedy}")
    return shipped


def plain_name(file: str | Path) -> str:
    """A file's name in tables: without folder and suffix, and without the prefix if it ships."""
    name = str(file)
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else Path(file).stem
