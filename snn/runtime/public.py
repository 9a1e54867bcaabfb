"""The public interface of a package: names that are imported when they are first used."""

import ast
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class PublicPackage(ModuleType):
    """A package whose public names are found in its modules on first use.

    A command's module may have the name of a public function (``snn.learn``). The attribute of the package is then
    always the function; the module is reached by ``from snn.learn import ...`` and ``python -m snn.learn``.
    """

    _homes: dict[str, str]

    def __getattr__(self, name: str) -> Any:
        if name not in self._homes:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__dict__[name] = value = getattr(importlib.import_module(self._homes[name]), name)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds each module to its package.
        if not (isinstance(value, ModuleType) and name in self._homes):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *self._homes})


def publish(package: str) -> list[str]:
    """Give a package the names that the stub beside it (``__init__.pyi``) imports; return its ``__all__``.

    Type checkers read the same stub, so there is one list of what is public.
    """
    module = sys.modules[package]
    stub = ast.parse(Path(str(module.__file__)).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    module.__dict__["_homes"] = {alias.name: str(node.module) for node in imports for alias in node.names}
    module.__class__ = PublicPackage
    return sorted(module.__dict__["_homes"])
