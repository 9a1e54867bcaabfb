"""Command-line values that are written as short text and read once into an object, such as ``awgn:20``."""

import re
from collections.abc import Callable
from typing import Generic, TypeVar

from tyro.constructors import PrimitiveConstructorSpec

Value = TypeVar("Value")

NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf)", re.ASCII | re.IGNORECASE)


def read_number(text: str) -> float:
    """The number that ``text`` writes in digits; :class:`ValueError` for anything else, also ``nan`` and ``1_0``."""
    if not NUMBER.fullmatch(text.strip()):
        raise ValueError(f"{text!r} is not a number")
    return float(text)


class TextFlag(PrimitiveConstructorSpec, Generic[Value]):
    """How the command line reads and shows a value whose text form is ``str(value)``.

    Args:
        parse: reads the text; raises a UserError for text that it cannot read.
        forms: what may be written, for ``--help``. Called when help is shown, so that it can list plugins.
        many: the flag takes any number of values and gives a tuple.
    """

    def __init__(self, parse: Callable[[str], Value], forms: Callable[[], str], many: bool = False) -> None:
        values = {
            "forms": forms,
            "nargs": "*" if many else 1,
            "instance_from_str": lambda words: tuple(map(parse, words)) if many else parse(words[0]),
            "is_instance": lambda value: True,
            "str_from_instance": lambda value: list(map(str, value if many else [value])),
        }
        for name, value in values.items():
            # The class is frozen.
            object.__setattr__(self, name, value)

    # An annotation is hashed where it stands, before all names are registered.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    @property
    def metavar(self) -> str:
        """As in ``{clean|awgn:DB}``."""
        return "{" + self.forms() + "}" + (" ..." if self.nargs == "*" else "")  # type: ignore[attr-defined]
