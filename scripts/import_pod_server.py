"""Import every module of ``pod_server`` with this interpreter, which has only what a pod has.

Python 3.10 in particular: the client needs a later one, the pods don't.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pod_server

#: Loaded by the library itself, where the user has it.
FOR_A_LIBRARY = {"pod_server.worker.mpl_backend": "matplotlib"}


def main() -> None:
    names = [m.name for m in pkgutil.walk_packages(pod_server.__path__, "pod_server.")]
    for name in names:
        if name.endswith("__main__"):
            continue
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as e:
            if (e.name or "").partition(".")[0] != FOR_A_LIBRARY.get(name):
                raise
    assert not any(name.startswith("kubetorch_jupyter") for name in sys.modules)
    print(f"{len(names)} modules of pod_server load on Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
