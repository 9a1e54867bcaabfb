"""Functions that Numba compiles, and keeps on disk where it can."""

from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache


class _Cache(FunctionCache):
    """Compiled code on disk that never fails: what cannot be read is compiled, what cannot be written is left out."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:
            # The file is damaged, another user's, or of another program: reading it can fail anywhere.
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception:
            # A damaged index is read before it is replaced; a disk can be full.
            return


def compiled(function: Callable) -> Any:
    """Compile ``function`` on its first call, without the interpreter's lock, or take what an earlier process compiled.

    Where no folder can hold compiled code, each process compiles anew.
    """
    dispatcher: Any = njit(nogil=True)(function)
    try:
        dispatcher._cache = _Cache(function)
    except RuntimeError:
        # Neither the package's folder nor the user's can be written to.
        return dispatcher
    return dispatcher
