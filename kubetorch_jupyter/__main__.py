"""Run a script as a notebook would: ``python -m kubetorch_jupyter SCRIPT [ARGS]``.

Two things differ from ``python SCRIPT``: ``await`` is allowed at the top level, and ``import kubetorch`` means this
package unless the real one is installed. Everything else is kept: the script is the module ``__main__`` (so its
functions travel by value), ``sys.argv`` and ``sys.path`` are its own, tracebacks begin in its file, and the exit status
is what it would be.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import inspect
import io
import os
import sys
from collections.abc import Coroutine, Sequence
from importlib.machinery import SourceFileLoader
from types import CodeType, ModuleType, TracebackType
from typing import Any

from . import __version__, install_as_kubetorch
from .notebook import asyncio_run

__all__ = ["main"]

#: What a shell reports for a process that SIGINT ended.
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv
        Its arguments, ``sys.argv[1:]`` by default.

    Returns
    -------
    int
        The exit status: 0, 1 after an exception of the script, 2 when there is no such script, 130 after Ctrl-C.

    Raises
    ------
    SystemExit
        The script's own.
    """
    options = _parser().parse_args(argv)
    path = os.path.abspath(options.script)
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as e:
        print(f"python -m kubetorch_jupyter: can't open file {path!r}: {e.strerror}", file=sys.stderr)
        return 2
    sys.argv = [options.script, *options.args]
    if not sys.flags.safe_path:
        # ``python -m`` has put the working directory there.
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    install_as_kubetorch()
    try:
        # Without dont_inherit the script would get this module's __future__.
        code = compile(source, path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        _run(code, _main_module(path))
    except SystemExit:
        raise
    except BaseException as error:
        error.__traceback__ = _from_script(error.__traceback__, path)
        sys.excepthook(type(error), error, error.__traceback__)
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kubetorch_jupyter",
        description="Run a Python script in which await is allowed at the top level and `import kubetorch` works.",
    )
    parser.add_argument("--version", action="version", version=f"kubetorch_jupyter {__version__}")
    parser.add_argument("script", metavar="SCRIPT", help="the file to run")
    parser.add_argument("args", metavar="ARGS", nargs=argparse.REMAINDER, help="its arguments (sys.argv[1:])")
    return parser


def _main_module(path: str) -> ModuleType:
    """An empty module ``__main__`` of the script's, in the place of this one."""
    module = ModuleType("__main__")
    module.__file__ = path
    module.__loader__ = SourceFileLoader("__main__", path)
    module.__dict__.update(__builtins__=__builtins__, __cached__=None)
    sys.modules["__main__"] = module
    return module


def _run(code: CodeType, module: ModuleType) -> None:
    if not code.co_flags & inspect.CO_COROUTINE:
        exec(code, module.__dict__)
        return
    # Between two awaits a loop runs in this thread, where asyncio.run would refuse.
    asyncio_run.install()
    try:
        with asyncio.Runner() as runner:
            # Evaluating the code of a module with a top-level await gives the coroutine that runs it.
            _drive(runner.get_loop(), eval(code, module.__dict__))
    finally:
        asyncio_run.uninstall()


def _drive(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None]) -> None:
    """Run the script's coroutine to its end.

    Not by ``Runner.run``: its handler of Ctrl-C only cancels the task, and one that blocks (a synchronous call) would
    not notice.
    """
    task = loop.create_task(coroutine, name="script")
    try:
        loop.run_until_complete(task)
    except KeyboardInterrupt as interrupt:
        if task.done():  # it was raised inside the script
            raise
        # The script awaits something: end that, as Ctrl-C ends a blocking call, and show where it was.
        task.cancel()
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError as cancelled:
            raise interrupt.with_traceback(cancelled.__traceback__) from None


def _from_script(traceback: TracebackType | None, path: str) -> TracebackType | None:
    """The traceback from the script's first frame on; all of it when the script has none."""
    frames = traceback
    while frames is not None and frames.tb_frame.f_code.co_filename != path:
        frames = frames.tb_next
    if frames is None and traceback is not None and traceback.tb_next is None:
        return None  # only ours: the script could not be compiled
    return frames or traceback


if __name__ == "__main__":
    sys.exit(main())
