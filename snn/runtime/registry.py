"""Registries: what users can add by name, each entry by one decorator in one file.

The entries of this project lie in one package for each kind, whose modules are imported when a name is first looked
up. Further ones come from plugins: ``--plugin my_rules.py``, or any module that registers before it is needed.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from snn.runtime.errors import UserError, check
from snn.runtime.text_flag import TextFlag

Entry = TypeVar("Entry")
Registered = TypeVar("Registered")


OUT_OF_MEMORY = re.compile("alloc.* memory|out of memory")
"""So PyTorch says it, of the processor's memory and of a GPU's."""
PLUGINS: dict[str, str] = {}
"""Plugins of the command that runs, with a digest of each file (or the name of the module)."""


class UnknownName(UserError):
    """A name that is not registered, perhaps because its plugin was not imported."""


class Registry(Generic[Entry]):
    """Entries of one ``kind`` (for messages) by name; the modules of ``package`` register the project's own."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self._package = kind, package
        self._entries: dict[str, Entry] = {}
        self._complete = False

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Decorator that registers a class or function under ``name``, which must be free."""

        def add(entry: Registered) -> Registered:
            if not f"{getattr(entry, '__module__', '')}.".startswith(f"{self._package}."):
                # The project's own come first, and keep their names.
                self.names()
            taken = self._entries.get(name)
            check(taken is None, f"{self.kind} {name!r} is registered already, as {taken!r}; choose another name")
            self._entries[name] = entry  # type: ignore[assignment]
            return entry

        return add

    def names(self) -> tuple[str, ...]:
        """All names, those of the project first."""
        if not self._complete:
            # Set first: a module of the package may ask for names while it is imported.
            self._complete = True
            try:
                package = importlib.import_module(self._package)
                for module in pkgutil.iter_modules(package.__path__):
                    importlib.import_module(f"{self._package}.{module.name}")
            except BaseException:
                self._complete = False
                raise
        return tuple(self._entries)

    def __getitem__(self, name: str) -> Entry:
        """The entry; :class:`UserError`, which lists all names, for an unknown one."""
        names = self.names()
        if name not in names:
            raise UnknownName(
                f"{self.kind} {name!r}: unknown; choose from {', '.join(names)}, or import what registers it "
                "(a command: --plugin FILE)"
            )
        return self._entries[name]

    def check(self, name: str, argument: str = "") -> None:
        """Raise :class:`UserError`, which lists all names, unless ``name``, of that argument, is registered."""
        try:
            self[name]
        except UnknownName as error:
            raise UnknownName(f"`{argument}`: {error}" if argument else str(error)) from error

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def flag(self, argument: str) -> TextFlag[str]:
        """Annotation of the field ``argument`` of a command, which holds a name: ``--help`` lists those there are."""

        def read(name: str) -> str:
            self.check(name, argument)
            return name

        return TextFlag(read, lambda: ",".join(self.names()))


def load_plugin(name: str) -> None:
    """Import a plugin, a Python file or the name of a module, once."""
    path = Path(name)
    if path.suffix != ".py":
        PLUGINS[name] = name
    elif path.is_file():
        PLUGINS[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    import_program(name, "plugin")


def import_program(name: str, argument: str) -> ModuleType:
    """The module of a Python file (``NAME.py``), or of that name, imported once.

    Raises :class:`UserError`, which names the ``argument`` and the line, where there is none or it fails.
    """
    with blamed(name, f"`{argument}` {name}"):
        return _import_program(name, Path(name), argument)


@contextlib.contextmanager
def blamed(file: str, what: str) -> Iterator[None]:
    """Turn what a user's program raises into a :class:`UserError` that says ``what`` failed, and in which line.

    ``file`` is the program's; lines of others are not named. Where memory is short, nobody is to blame.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if OUT_OF_MEMORY.search(str(error)):
            raise
        # Its own fault, not this program's: where it is, in one line.
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith(Path(file).name)]
        line = f", line {frames[-1].lineno}" if frames else ""
        raise UserError(f"{what}{line}: {type(error).__name__}: {error}; mend it") from error


def _import_program(name: str, path: Path, argument: str) -> ModuleType:
    if path.suffix != ".py":
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"`{argument}` {name}: {error}; give a Python file, or a module that can be imported"
            ) from error
    check(path.is_file(), f"`{argument}` {name}: there is no such file")
    if path.stem in sys.modules:
        loaded = getattr(sys.modules[path.stem], "__file__", None)
        check(
            loaded is not None and Path(loaded).resolve() == path.resolve(),
            f"`{argument}` {name}: a module {path.stem} is loaded already ({loaded}); rename the file",
        )
        return sys.modules[path.stem]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module
