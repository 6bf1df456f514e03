"""The first thing that runs in a container: puts what came with the pod on the path, and becomes a part of it.

::

    python /kubetorch/bundle/boot.py [--lib DIR] front|worker [OPTIONS OF THAT PART]

It lies beside ``bundle.tar.xz`` and needs nothing but the standard library. The bundle is unpacked into a directory
that a pod's containers share, by whichever comes first; the part (``python -m pod_server``) then runs in this process.

The bundle has two directories, because whose version of a package counts is not the same everywhere:

* ``ours``: ``pod_server``, ``kubetorch_jupyter`` and ``cloudpickle``. They go before the image's in every process. The
  client has pickled with these versions; an older wheel of ours in the image would speak another protocol.
* ``needed``: what the front's server is made of (uvicorn and so on). It goes before the image's packages in the front,
  where no code of the user's runs, and after them in the worker: a user's own ``click`` stays what it is, and one who
  has none finds this one.

Old Pythons must come as far as the line that says that they are too old, so there is no newer syntax in this file.
"""

import os
import signal
import sys

__all__ = ["main"]

#: The oldest Python that a pod can have, and the exit code where it is older: "found, but can't be executed".
_OLDEST = (3, 10)
_TOO_OLD = 126


def _say(text):
    # type: (str) -> None
    sys.stderr.write("kubetorch: " + text + "\n")
    sys.stderr.flush()


def _unpack(archive, lib):
    # type: (str, str) -> str
    """Unpack the archive into a directory of its own in `lib`, unless it is there; that directory's path."""
    import fcntl
    import hashlib

    with open(archive, "rb") as f:
        packed = f.read()
    path = os.path.join(lib, hashlib.sha256(packed).hexdigest()[:16])
    if os.path.isdir(path):
        return path
    os.makedirs(lib, exist_ok=True)
    lock = os.open(os.path.join(lib, ".lock"), os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.isdir(path):
            # Renamed when it is complete: a directory of that name is always whole, whoever is killed in between.
            part = path + ".part"
            _extract(packed, part)
            os.rename(part, path)
    finally:
        os.close(lock)
    return path


def _extract(packed, target):
    # type: (bytes, str) -> None
    import io
    import lzma
    import shutil
    import tarfile

    shutil.rmtree(target, ignore_errors=True)
    made = set()
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(packed)), mode="r:") as archive:
        for member in archive:
            source = archive.extractfile(member)
            if source is None:
                continue
            path = os.path.join(target, member.name)
            folder = os.path.dirname(path)
            if folder not in made:
                os.makedirs(folder, exist_ok=True)
                made.add(folder)
            with open(path, "wb") as f:
                f.write(source.read())


def _set_path(root, part):
    # type: (str, str) -> None
    """Put the two directories of the bundle where they belong in this part of the pod."""
    # Python puts the script's own directory there, with the links of a mounted ConfigMap resolved.
    here = os.path.dirname(os.path.realpath(__file__))
    path = [p for p in sys.path if p and os.path.realpath(p) != here]
    ours, needed = os.path.join(root, "ours"), os.path.join(root, "needed")
    if part == "front":
        # What an image's PYTHONPATH leads to is for the user's code, and may be called like modules of the library.
        theirs = [os.path.abspath(p) for p in os.environ.pop("PYTHONPATH", "").split(os.pathsep) if p]
        sys.path[:] = [ours, needed] + [p for p in path if os.path.abspath(p) not in theirs]
    else:
        sys.path[:] = [ours] + path + [needed]


def _complete_library():
    # type: () -> None
    """Give Python 3.10 the names of `typing` that newer releases of what the front needs import from there.

    websockets 16 and later wants 3.11 for these alone; what the front uses of it runs here otherwise.
    """
    import logging
    import types
    import typing

    import typing_extensions

    for name in typing_extensions.__all__:
        if not hasattr(typing, name):
            setattr(typing, name, getattr(typing_extensions, name))
    if not hasattr(logging.LoggerAdapter, "__class_getitem__"):
        setattr(logging.LoggerAdapter, "__class_getitem__", classmethod(types.GenericAlias))


def main(argv):
    # type: (list[str]) -> int
    """Run the part that is asked for; the exit code."""
    if sys.version_info < _OLDEST:
        _say(
            "the image's Python is {}.{} ({}), and pods need 3.10 or later: use another image, "
            'for example Image(image_id="python:3.11-slim"), or say where a newer Python is in this one with '
            "python_path=".format(sys.version_info[0], sys.version_info[1], sys.executable)
        )
        return _TOO_OLD
    lib = "/kubetorch/lib"
    if argv[:1] == ["--lib"] and len(argv) > 1:
        lib, argv = argv[1], argv[2:]
    part = argv[0] if argv else ""
    if part not in ("front", "worker"):
        _say("there is no part {!r} of a pod; the first argument is front or worker".format(part))
        return 2
    # The first process of a container ignores what it has no handler for: a pod that is deleted at once would stay for
    # all of its grace period. The part has handlers of its own later.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    archive = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bundle.tar.xz")
    try:
        root = _unpack(archive, lib)
    except ImportError as e:
        _say("the image's Python ({}) was built without a module that pods need: {}".format(sys.executable, e))
        return 1
    except Exception as e:
        _say("{} can't be unpacked into {}: {}: {}".format(archive, lib, type(e).__name__, e))
        return 1
    _set_path(root, part)
    if part == "front" and sys.version_info < (3, 11):
        _complete_library()
    from pod_server.__main__ import main as run

    return int(run(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
