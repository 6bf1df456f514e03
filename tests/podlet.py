"""The far side of shipping in a process of its own: `Podlet` loads bundles and calls what is in them.

It has the pod's loader and serialization but neither front nor frames, so that what a test sees is shipping alone.
`Cells` plays the notebook.
"""

from __future__ import annotations

import ast
import linecache
import os
import pickle
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pod_server import exceptions, serialization

ROOT = Path(__file__).resolve().parent.parent


#: How the process begins: with a ``__main__`` that is the user's alone.
START = "from tests import podlet; podlet._serve()"


def _serve() -> None:
    """The process: pickled requests of plain bytes on stdin, answers on what was stdout."""
    from pod_server.worker.loading import Loader

    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    code: Any = None
    loader = Loader(sys.argv[1])
    while True:
        try:
            what, meta, buffers = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            if what == "load":
                code = loader.load(meta, buffers)
                answer = serialization.dumps(None)
            elif what == "call":
                args, kwargs = serialization.loads(buffers)
                answer = serialization.dumps(code.function(meta)(*args, **kwargs))
            else:
                answer = serialization.dumps(eval(meta, {"sys": sys, "code": code, "os": os}))
            ok = True
        except BaseException as e:
            answer, ok = exceptions.encode(e), False
        pickle.dump((ok, [bytes(b) for b in answer]), out)
        out.flush()


class FarError(Exception):
    """The stand-in that tests give for `exceptions.decode`."""


def far_error(name: str, message: str, text: str, base: type[BaseException]) -> BaseException:
    """A `FarError` that derives from ``base`` too, with what it was made of."""
    error = type(name.rpartition(".")[2], (FarError,) if base is Exception else (FarError, base), {})(message)
    error.made_of = (name, message, text, base)
    return error


class Podlet:
    """One such process.

    Parameters
    ----------
    directory
        Its working directory, where modules are unpacked.
    python
        The interpreter; another one than this finds cloudpickle where this one has it.
    env
        Changes of the environment.
    """

    def __init__(self, directory: Path, python: str = sys.executable, **env: str) -> None:
        path = [str(ROOT)] if python == sys.executable else [str(ROOT), sysconfig.get_paths()["purelib"]]
        self.foreign = python != sys.executable
        self._process = subprocess.Popen(
            [python, "-c", f"import sys; del sys.path[0]; {START}", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=directory,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path), **env},
        )

    def _ask(self, what: str, meta: Any, buffers: Sequence[Any] = ()) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        pickle.dump((what, meta, [bytes(b) for b in buffers]), stdin)
        stdin.flush()
        ok, answer = pickle.load(stdout)
        if ok:
            return serialization.loads(answer)
        raise exceptions.decode(answer, far_error)

    def load(self, bundle: Any) -> None:
        """Load a bundle; raises what it raised there."""
        self._ask("load", bundle.meta, bundle.buffers)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function that was loaded."""
        return self._ask("call", None, self._dumps(args, kwargs))

    def call_method(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the instance that was constructed."""
        return self._ask("call", method, self._dumps(args, kwargs))

    def _dumps(self, args: Any, kwargs: Any) -> Any:
        if self.foreign:
            from kubetorch_jupyter import by_source  # which the far side doesn't have

            return by_source.dump_arguments((args, kwargs), snapshot=False)
        return serialization.dumps((args, kwargs))

    def eval(self, expression: str) -> Any:
        """The value of an expression there; it sees ``sys``, ``os`` and ``code``."""
        return self._ask("eval", expression)

    def __enter__(self) -> Podlet:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


class Cells:
    """Cells that run in ``__main__``, with the file names and the linecache entries that ipykernel gives them."""

    def __init__(self, pid: int = 4711) -> None:
        self._pid = pid
        self._count = 0
        self.namespace = vars(sys.modules["__main__"])
        self._before = dict(self.namespace)

    def run(self, source: str) -> Any:
        """Run a cell; gives the value of its last expression."""
        self._count += 1
        file = f"/tmp/ipykernel_{self._pid}/{abs(hash(source)) % 10**9}{self._count}.py"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        tree = ast.parse(source, file)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, file, "exec"), self.namespace)
        if last is None:
            return None
        return eval(compile(ast.Expression(last.value), file, "eval"), self.namespace)

    def __getitem__(self, name: str) -> Any:
        return self.namespace[name]

    def clear(self) -> None:
        """Restart the kernel, as far as names go."""
        self.namespace.clear()
        self.namespace.update(self._before)
