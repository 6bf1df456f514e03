"""The user's own modules that cells import, where the pod has no part in the notebook's directory."""

from __future__ import annotations

import importlib
import io
import os
import shutil
import sys
import tempfile
import zipfile

__all__ = ["use_modules"]


def use_modules(data: bytes, before: str | None) -> str:
    """Unpack a zip of modules and put them on the path, before everything else.

    Parameters
    ----------
    data
        The zip.
    before
        The folder whose place they take: what was imported from there is forgotten, so that the next ``import`` brings
        the module as it is now.

    Returns
    -------
    str
        Their folder.
    """
    folder = tempfile.mkdtemp(prefix="kubetorch-modules-")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(folder)
    if before is not None:
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(before + os.sep):
                del sys.modules[name]
        if before in sys.path:
            sys.path.remove(before)
        shutil.rmtree(before, ignore_errors=True)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    return folder
