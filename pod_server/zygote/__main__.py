"""``python -m pod_server.zygote --control FD --owner PID:START``: a root zygote.

Also run by its path (``python -P .../pod_server/zygote/__main__.py``): then it finds its own package by itself, and
needs neither the working directory nor PYTHONPATH, where the user's files may be called like modules of the standard
library.
"""

from __future__ import annotations

import gc
import sys


def _find_package() -> None:
    import importlib.util
    import os

    here = os.path.dirname(os.path.abspath(__file__))
    if sys.path and sys.path[0] == here:
        del sys.path[0]
    package = os.path.dirname(here)
    spec = importlib.util.spec_from_file_location(
        "pod_server", os.path.join(package, "__init__.py"), submodule_search_locations=[package]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pod_server"] = module
    spec.loader.exec_module(module)


def main() -> int:
    """Read the command line and run."""
    try:
        # By hand: a client's first deploy waits for what is imported here.
        _, first, control, second, owner = sys.argv
        pid, start = map(int, owner.split(":"))
        if (first, second) != ("--control", "--owner"):
            raise ValueError(f"{first} {second}")
    except ValueError:
        print(__doc__, file=sys.stderr)
        return 2
    # What is imported stays: to look for garbage in it takes a tenth of the time. The root zygote enables it again.
    gc.disable()
    from pod_server.zygote import root_zygote

    return root_zygote(int(control), (pid, start))


if __name__ == "__main__":
    if not __package__:
        _find_package()
    sys.exit(main())
