"""The public interface of a package: names that are imported when they are first used."""

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any


class PublicPackage(ModuleType):
    """A package whose public names are found in its modules on first use.

    A command's module may have the name of a public function (``snn.learn``). The attribute of the package is then
    always the function; the module is reached by ``from snn.learn import ...`` and ``python -m snn.learn``.
    """

    _homes: Mapping[str, str]

    def __getattr__(self, name: str) -> Any:
        homes = self.__dict__.get("_homes", {})
        if name not in homes:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds each module to its package.
        if not (isinstance(value, ModuleType) and name in self.__dict__.get("_homes", {})):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *self._homes})


def publish(package: str, homes: Mapping[str, str]) -> list[str]:
    """Give ``package`` the public names of ``homes`` (name: module that holds it); return its ``__all__``."""
    module = sys.modules[package]
    module.__dict__["_homes"] = dict(homes)
    module.__class__ = PublicPackage
    return sorted(homes)
