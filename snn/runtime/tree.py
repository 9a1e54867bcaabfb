"""Trees of dictionaries: the content of a file, before it is written and after it was read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any, TypeVar, get_type_hints

import numpy as np

from snn.runtime.errors import UserError, check

Tree = dict[str, Any]
Record = TypeVar("Record")
Length = int | None
"""Length of an array along one axis; None: any."""
INFINITY = float("inf")


@dataclass(frozen=True)
class StoredArray:
    """An array of a file, of which type and shape are known; the values are read once, when they are asked for."""

    path: str
    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @cached_property
    def values(self) -> np.ndarray:
        return self.read()


class Stored(dict[str, Any]):
    """A group of a file, which anybody may have made: what is taken from it is checked.

    A part that is missing, or not as expected, is the file's fault, not the reader's: a :class:`UserError` that names
    it. Arrays are :class:`StoredArray` until :meth:`array` reads them, so that no more is read than is expected.
    """

    def __init__(self, path: str = "") -> None:
        super().__init__()
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise UserError(f"there is no {self.path + name!r}")

    def group(self, name: str) -> "Stored":
        """The group ``name`` within this one."""
        value = self[name]
        check(isinstance(value, Stored), f"{self.path}{name} is no group")
        return value

    def groups(self, name: str, prefix: str) -> "list[Stored]":
        """Groups prefix1, prefix2, ... of the group ``name``, which holds nothing else."""
        outer = self.group(name)
        return [outer.group(f"{prefix}{number}") for number in range(1, len(outer) + 1)]

    def number(self, name: str, low: float = -INFINITY, high: float = INFINITY, *, infinite: bool = False) -> float:
        """A number from ``low`` to ``high``, finite unless it may be ``infinite``."""
        value = self[name]
        known = isinstance(value, int | float) and not isinstance(value, bool)
        valid = known and low <= value <= high and (infinite or abs(value) < INFINITY)
        check(valid, f"{self.path}{name} is {value!r}, expected a number{_between(low, high, infinite)}")
        return value

    def whole(self, name: str, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``."""
        value = self.number(name, low, high)
        check(isinstance(value, int), f"{self.path}{name} is {value!r}, expected a whole number")
        return int(value)

    def text(self, name: str) -> str:
        """A piece of text."""
        value = self[name]
        check(isinstance(value, str), f"{self.path}{name} is {value!r}, expected text")
        return value

    def array(
        self,
        name: str,
        dtype: type | Sequence[type],
        shape: Sequence[Length],
        low: float = -INFINITY,
        high: float = INFINITY,
        *,
        infinite: bool = False,
    ) -> np.ndarray:
        """The array ``name``, of this type (or one of these), shape and range; finite unless it may be ``infinite``.

        No value is NaN. Type and shape are checked before it is read.
        """
        header = self[name]
        check(isinstance(header, StoredArray), f"{self.path}{name} is no array")
        types = [np.dtype(kind) for kind in (dtype if isinstance(dtype, Sequence) else [dtype])]
        fits = len(header.shape) == len(shape) and all(
            wanted in (None, found) for found, wanted in zip(header.shape, shape, strict=True)
        )
        expected = "(" + ", ".join("any" if length is None else str(length) for length in shape) + ")"
        check(
            header.dtype in types and fits,
            f"{header.path} is {header.dtype} of shape {header.shape}, expected {' or '.join(map(str, types))} of "
            f"shape {expected}",
        )
        values = header.values
        if values.size and values.dtype != bool:
            smallest, largest = values.min(), values.max()
            # A comparison with NaN is false.
            valid = low <= smallest <= largest <= high
            finite = infinite or (smallest > -INFINITY and largest < INFINITY)
            check(
                bool(valid and finite),
                f"{header.path} has values from {smallest:g} to {largest:g}, expected numbers"
                f"{_between(low, high, infinite)}",
            )
        return values

    def loaded(self) -> Tree:
        """The tree with all arrays read, as a plain dictionary."""
        return {name: _loaded(value) for name, value in self.items()}


def _loaded(value: Any) -> Any:
    if isinstance(value, Stored):
        return value.loaded()
    return value.values if isinstance(value, StoredArray) else value


def _between(low: float, high: float, infinite: bool) -> str:
    limits = [f"at least {low:g}"] if low > -INFINITY else []
    limits += [f"at most {high:g}"] if high < INFINITY else []
    return "".join(f", {limit}" for limit in limits) + ("" if infinite else ", finite")


def tree_without(tree: Tree, later: Mapping[str, object]) -> Tree:
    """A group without those of its ``later`` fields that have the value given there: as it was before they came."""
    return {name: value for name, value in tree.items() if name not in later or later[name] != value}


def text_without(record: object, later: Mapping[str, object]) -> str:
    """``repr`` of a dataclass without those of its ``later`` fields that have the value given there.

    So an identity that is made of it outlives a new field.
    """
    text = repr(record)
    for name, value in later.items():
        text = text.replace(f", {name}={value!r}", "")
    return text


def from_tree(kind: type[Record], tree: Tree, **known: Any) -> Record:
    """The dataclass ``kind`` from a stored group: its fields by name, ``known`` ones as they are, others by default.

    Groups within the group are dataclasses, too. Dataclasses check their fields themselves
    (:func:`snn.runtime.ranges.check_fields`).
    """

    def read(name: str) -> Any:
        value, hint = tree[name], get_type_hints(kind)[name]
        if isinstance(value, dict) and isinstance(hint, type) and is_dataclass(hint):
            return from_tree(hint, value)
        return tuple(value) if isinstance(value, list) else value

    members = [field for field in fields(kind) if field.name not in known]  # type: ignore[arg-type]
    for field in members:
        needed = field.default is MISSING and field.default_factory is MISSING
        check(field.name in tree or not needed, f"there is no {getattr(tree, 'path', '') + field.name!r}")
    names = {field.name for field in members} & tree.keys()
    return kind(**{name: read(name) for name in names}, **known)
