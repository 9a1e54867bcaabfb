"""Which values the fields of a record may have: declared beside each field, checked whenever a record is made.

    @dataclass(frozen=True)
    class Settings:
        epochs: Annotated[int, Range(1, 100_000)] = 30

        def __post_init__(self) -> None:
            check_fields(self)

Records are made of a command's flags, of files and by programs: one declaration guards all three.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from snn.runtime.errors import check

WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text", Path: "a path"}
"""What a field of each type holds, for messages."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, of a field or of each of its values. NaN lies in no range."""

    low: float
    high: float
    above: bool = False
    """Whether ``low`` itself is left out."""
    below: bool = False
    """Whether ``high`` itself is left out."""
    unit: str = ""
    reason: str = ""
    """Why there is such a limit, where that is not plain."""

    def __contains__(self, value: float) -> bool:
        reaches = value > self.low if self.above else value >= self.low
        return reaches and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low, high = (f"{end:g}" if isinstance(end, float) else str(end) for end in (self.low, self.high))
        numbers = f"{'above ' if self.above else ''}{low} {'to below' if self.below else 'to'} {high}"
        return f"{numbers}{f' {self.unit}' if self.unit else ''}{f' ({self.reason})' if self.reason else ''}"


SMALLEST = 2.0**-126
"""Of positive numbers; with smaller ones float32 computes as with 0, or without their last digits."""
COUNT = Range(1, 10**6)
SEED = Range(0, 2**32 - 1)
INTERVAL = Range(0, 1e6, unit="s")
PROCESSES = Range(1, 1024)
NODES = Range(1, 2**16)
THREADS = Range(1, 4096)
WORKERS = Range(0, 256)


class Declared(NamedTuple):
    """What the declaration of a field says."""

    kind: Any
    """Type hint, without annotations."""
    range: Range | None


def check_fields(record: Any) -> None:
    """Raise :class:`UserError` unless each field of a dataclass has a value of its type and in its :class:`Range`.

    A whole number may stand for any number, but True and False for none. Numbers are finite, also without a range.
    """
    for name, (kind, limits) in declared_fields(record.__class__).items():
        check_value(name, getattr(record, name), kind, limits)


def check_value(name: str, value: object, kind: Any, limits: Range | None = None) -> None:
    """Raise :class:`UserError` unless ``value``, of the argument ``name``, is of type ``kind`` and within ``limits``.

    A number that is not 0 must be one that float32 can hold.
    """
    if get_origin(kind) is Literal:
        check(_fits(value, kind), f"`{name}` {value}: unknown; choose from {_words(kind)}")
    check(_fits(value, kind), f"`{name}` {value!r}: expected {_words(kind)}")
    for number in _numbers(value):
        if limits is not None:
            check(number in limits, f"`{name}` {number}: expected {limits}")
        elif isinstance(number, float):
            check(math.isfinite(number), f"`{name}` {number}: expected a finite number")
        check(number == 0 or abs(number) >= SMALLEST, f"`{name}` {number}: expected 0, or {SMALLEST:g} or more in size")


@cache
def declared_fields(record: type) -> dict[str, Declared]:
    """Type and range of each field of a dataclass."""
    hints = get_type_hints(record, include_extras=True)
    return {field.name: _declared(hints[field.name]) for field in fields(record)}


def _declared(hint: Any) -> Declared:
    if get_origin(hint) is not Annotated:
        return Declared(hint, None)
    kind, *extras = get_args(hint)
    return Declared(kind, next((extra for extra in extras if isinstance(extra, Range)), None))


def _fits(value: object, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = parts[:1] * len(value) if parts[-1] is ... else parts
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kind in (int, float):
        # NumPy's numbers, too.
        return isinstance(value, Real if kind is float else Integral) and not isinstance(value, bool)
    if kind is Path:
        return isinstance(value, Path | str)
    return isinstance(value, origin or kind)


def _words(kind: Any) -> str:
    """What is expected, for messages."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, parts))
    if origin is Literal:
        return ", ".join(map(str, parts))
    if origin is tuple:
        return f"a tuple with {_words(parts[0])}" + (" each" if parts[-1] is ... else f" for each of {len(parts)}")
    return WORDS.get(kind, "None" if kind is type(None) else getattr(kind, "__name__", str(kind)))


def _numbers(value: object) -> Iterator[Any]:
    """The number, or those in a tuple."""
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, Real) and not isinstance(item, bool):
            yield item
