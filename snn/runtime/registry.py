"""Registries: what users can add by name, each entry by one decorator in one file.

The entries of this project lie in one package for each kind, whose modules are imported when a name is first looked
up. Further ones come from plugins: ``--plugin my_rules.py``, or any module that registers before it is needed.
"""

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from snn.runtime.errors import UserError, check
from snn.runtime.text_flag import TextFlag

Entry = TypeVar("Entry")
Registered = TypeVar("Registered")


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
    try:
        _import_plugin(name, Path(name))
    except UserError:
        raise
    except Exception as error:
        # Its own fault, not this program's: where it is, in one line.
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith(Path(name).name)]
        line = f", line {frames[-1].lineno}" if frames else ""
        raise UserError(f"`plugin` {name}{line}: {type(error).__name__}: {error}; mend it") from error


def _import_plugin(name: str, path: Path) -> None:
    if path.suffix != ".py":
        PLUGINS[name] = name
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"`plugin` {name}: {error}; give a Python file, or a module that can be imported"
            ) from error
        return
    check(path.is_file(), f"`plugin` {name}: there is no such file")
    PLUGINS[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    if path.stem in sys.modules:
        loaded = getattr(sys.modules[path.stem], "__file__", None)
        check(
            loaded is not None and Path(loaded).resolve() == path.resolve(),
            f"`plugin` {name}: a module {path.stem} is loaded already ({loaded}); rename the file",
        )
        return
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
