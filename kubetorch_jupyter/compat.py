"""``import kubetorch`` that means this package, so that code written for Kubetorch's client runs as it stands.

Only where the real one is not installed: that one always wins.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["install_as_kubetorch", "uninstall_as_kubetorch"]

_ALIAS = "kubetorch"
_PACKAGE = __name__.rpartition(".")[0]


class _Alias(MetaPathFinder, Loader):
    """Finds ``kubetorch`` and its submodules: this package's modules themselves, as a copy's classes differ."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _ALIAS and not fullname.startswith(f"{_ALIAS}."):
            return None
        ours = _PACKAGE + fullname[len(_ALIAS) :]
        if fullname != _ALIAS and importlib.util.find_spec(ours) is None:
            return None
        return ModuleSpec(fullname, self, origin=ours, is_package=fullname == _ALIAS)

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        # The import system takes what stands in sys.modules afterwards. Not by create_module, which would write this
        # alias's spec into the module.
        sys.modules[module.__name__] = importlib.import_module(_PACKAGE + module.__name__[len(_ALIAS) :])


def _installed() -> _Alias | None:
    return next((finder for finder in sys.meta_path if isinstance(finder, _Alias)), None)


def install_as_kubetorch() -> bool:
    """Let ``import kubetorch`` mean this package, unless the real one is installed.

    Returns
    -------
    bool
        Whether it does now. If not, a warning says which other ``kubetorch`` there is.

    Examples
    --------
    >>> install_as_kubetorch()
    True
    >>> from kubetorch import Compute
    >>> Compute.__module__
    'kubetorch_jupyter.compute'
    >>> uninstall_as_kubetorch()
    """
    if _installed() is not None:
        return True
    loaded = sys.modules.get(_ALIAS)
    try:
        spec = loaded.__spec__ if loaded is not None else importlib.util.find_spec(_ALIAS)
    except (ImportError, ValueError):
        # A finder or module that can't say what it is; whatever it is, it is not to be replaced.
        spec = ModuleSpec(_ALIAS, None, origin="unknown")
    if loaded is not None or spec is not None:
        where = spec.origin if spec is not None and spec.origin else "another place"
        warnings.warn(
            f'"import kubetorch" still means the kubetorch that is installed here ({where}); '
            f'write "import {_PACKAGE} as kt" for this one',
            stacklevel=2,
        )
        return False
    sys.meta_path.insert(0, _Alias())
    return True


def setup_hooks() -> list[str]:
    """What a pod's worker has to call so that ``import kubetorch`` means there what it means here: LOAD's ``setup``."""
    return [f"{__name__}:{install_as_kubetorch.__name__}"] if _installed() is not None else []


def uninstall_as_kubetorch() -> None:
    """Undo `install_as_kubetorch`; what has been imported stays usable under the names it got."""
    finder = _installed()
    if finder is None:
        return
    sys.meta_path.remove(finder)
    for name in [name for name in sys.modules if name == _ALIAS or name.startswith(f"{_ALIAS}.")]:
        if sys.modules[name] is sys.modules.get(_PACKAGE + name[len(_ALIAS) :]):
            del sys.modules[name]
