"""`Cancelled`, raised in another thread between two bytecodes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from ..exceptions import Cancelled
from .pool import Sleeper

__all__ = ["raise_cancelled"]

_set_exception: Callable[..., int] = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_exception.argtypes = (ctypes.c_ulong, ctypes.py_object)  # type: ignore[attr-defined]


def raise_cancelled(ident: int, sleeper: Sleeper | None) -> None:
    """Raise it in the thread of that identity, and end its `time.sleep`.

    Hold the lock of the log of the call that it is for (see `output`), and know that the call is what runs there.
    """
    # Set first, then wake: who wakes finds it and raises.
    _set_exception(ident, ctypes.py_object(Cancelled))
    if sleeper is not None and sleeper.nap.locked():
        sleeper.nap.release()
