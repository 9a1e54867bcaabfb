"""Trees of dictionaries: the content of a file, before it is written and after it was read."""

from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

from snn.runtime.errors import UserError

Tree = dict[str, Any]
Record = TypeVar("Record")


class Stored(dict[str, Any]):
    """A group as it was read: a part that is missing is the file's fault, not the reader's."""

    def __missing__(self, name: str) -> Any:
        raise UserError(f"there is no {name!r}")


def from_tree(kind: type[Record], tree: Tree, **known: Any) -> Record:
    """The dataclass ``kind`` from a stored group: its fields by name, ``known`` ones as they are, others by default.

    Groups within the group are dataclasses, too.
    """

    def read(name: str) -> Any:
        value = tree[name]
        if isinstance(value, dict):
            return from_tree(get_type_hints(kind)[name], value)
        return tuple(value) if isinstance(value, list) else value

    names = {field.name for field in fields(kind)} & tree.keys() - known.keys()  # type: ignore[arg-type]
    return kind(**{name: read(name) for name in names}, **known)
