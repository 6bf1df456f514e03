"""What stands for IPython's shell in a pod's cells: ``!commands`` and the magics that make sense there.

The client has rewritten ``!ls`` and ``%time f()`` into calls of ``get_ipython()``, as IPython does; a pod needs no
IPython for them.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["CELL_MAGICS", "LINE_MAGICS", "Shell", "say_times", "user_names"]

#: ``$name``, ``{expression}``, and what stands for the characters themselves.
_VARIABLE = re.compile(r"\$\$|\$(?P<name>[A-Za-z_]\w*)|\{\{|\}\}|\{(?P<expression>[^{}]+)\}")
#: A command that doesn't end when it is asked to is killed after so many seconds.
_GRACE = 2.0


class Shell:
    """``get_ipython()`` of a pod's cells.

    Parameters
    ----------
    namespace
        The cells' globals.
    run
        Runs a piece of code in them; gives a coroutine function's value only without ``await``.
    """

    def __init__(self, namespace: dict[str, Any], run: Callable[[str], Any]) -> None:
        self.user_ns = namespace
        self._run = run

    def __repr__(self) -> str:
        return "<the shell of cells in a pod: !commands, " + ", ".join(f"%{name}" for name in sorted(LINE_MAGICS)) + ">"

    # -- commands ----------------------------------------------------------------------------------------------------

    def system(self, command: str) -> None:
        """``!command``: its output is the cell's; its status is in ``_exit_code``."""
        process = subprocess.Popen(self.expand(command), shell=True, start_new_session=True)
        self.user_ns["_exit_code"] = _wait(process)

    def getoutput(self, command: str, split: bool = True) -> Any:
        """``!!command`` and ``x = !command``: its output, as a list of lines."""
        with tempfile.TemporaryFile("w+", errors="replace") as out:  # a pipe could not be read interruptibly
            _wait(subprocess.Popen(self.expand(command), shell=True, stdout=out, start_new_session=True))
            out.seek(0)
            text = out.read()
        return text.splitlines() if split else text

    def expand(self, command: str) -> str:
        """Put variables into a command: ``$name`` and ``{expression}``; what isn't one stays as it is.

        Examples
        --------
        >>> Shell({"n": 3}, print).expand("head -$n {n + 1} $HOME $$x {{}}")
        'head -3 4 $HOME $x {}'
        """

        def value(match: re.Match[str]) -> str:
            text = match.group()
            if text in ("$$", "{{", "}}"):
                return text[0]
            name, expression = match.group("name"), match.group("expression")
            if name is not None:
                return str(self.user_ns[name]) if name in self.user_ns else text
            try:
                return str(eval(expression, self.user_ns))
            except Exception:  # awk's braces, a shell's ${x}: then it is none of ours, as IPython has it
                return text

        return _VARIABLE.sub(value, command)

    # -- magics ------------------------------------------------------------------------------------------------------

    def run_line_magic(self, name: str, line: str, _stack_depth: int = 1) -> Any:
        """``%name line``."""
        method = LINE_MAGICS.get(name)
        if name.startswith("%"):
            raise ValueError(f"%{name} must be the first line, right below %%kt")
        if name == "kt":
            raise ValueError("%kt is the notebook's: say it in a cell of its own, without %%kt")
        if method is None:
            raise ValueError(f"%{name} isn't there in a pod; there are {', '.join(sorted(LINE_MAGICS))}")
        return method(self, line)

    def run_cell_magic(self, name: str, line: str, cell: str) -> Any:
        """``%%name line`` and its body."""
        method = CELL_MAGICS.get(name)
        if method is None:
            raise ValueError(f"%%{name} isn't there in a pod; there are {', '.join(sorted(CELL_MAGICS))}")
        return method(self, line, cell)

    def _time(self, line: str, cell: str | None = None) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        value = self._run(line if cell is None else cell)
        say_times(time.perf_counter() - wall, time.process_time() - cpu)
        return value

    def _timeit(self, line: str, cell: str | None = None) -> None:
        timer = timeit.Timer(
            line if cell is None else cell, setup=line if cell is not None and line else "pass", globals=self.user_ns
        )
        number, _ = timer.autorange()
        runs = [took / number for took in timer.repeat(5, number)]
        loops = f"{number} loop{'s' if number > 1 else ''}"
        print(f"{_seconds(min(runs))} per loop (best of 5 runs, {loops} each)")

    def _env(self, line: str) -> Any:
        name, equals, value = (part.strip() for part in line.partition("=" if "=" in line else " "))
        if not name:
            return dict(os.environ)
        if equals or value:
            os.environ[name] = self.expand(value)
            print(f"env: {name}={os.environ[name]}")
            return None
        return os.environ.get(name)

    def _cd(self, line: str) -> None:
        os.chdir(os.path.expanduser(self.expand(line.strip()) or "~"))
        print(os.getcwd())

    def _pwd(self, line: str) -> str:
        return os.getcwd()

    def _pip(self, line: str) -> None:
        self.system(f"{shlex.quote(sys.executable)} -m pip {line}")

    def _who(self, line: str) -> None:
        names = user_names(self.user_ns)
        print("\n".join(f"{name}  {kind}" for name, kind in names.items()) or "no variables")

    def _pinfo(self, line: str) -> None:
        """``name?``."""
        value = eval(line, self.user_ns)
        try:
            print(f"Signature: {line}{inspect.signature(value)}")
        except (TypeError, ValueError):
            print(f"Value:     {value!r}")  # nothing that can be called
        print(f"Type:      {type(value).__name__}\nDocstring: {inspect.getdoc(value) or '<no docstring>'}")

    def _matplotlib(self, line: str) -> None:
        """Figures are shown as they are; which backend draws them is the pod's own matter."""

    def _shell_script(self, line: str, cell: str) -> None:
        _script("sh", cell)

    def _bash(self, line: str, cell: str) -> None:
        _script("bash", cell)

    def _writefile(self, line: str, cell: str) -> None:
        words = shlex.split(line)
        append = words[:1] in (["-a"], ["--append"])
        if len(words) != 1 + append:
            raise ValueError("%%writefile takes one file name, and -a to append")
        path = Path(self.expand(words[-1])).expanduser()
        with path.open("a" if append else "w", encoding="utf-8") as file:
            file.write(cell)
        print(f"{'Appended to' if append else 'Wrote'} {path}")


def _script(shell: str, text: str) -> None:
    if code := _wait(subprocess.Popen([shell, "-c", text], start_new_session=True)):
        raise subprocess.CalledProcessError(code, f"%%{shell}")


def _wait(process: subprocess.Popen[Any]) -> int:
    """Wait for a command; when the cell is cancelled, so is the command, with all that it has started."""
    try:
        return process.wait(timeout=1e9)  # with a timeout it sleeps between looks, and so can be interrupted
    except BaseException:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(timeout=_GRACE)
                break
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        raise


def user_names(namespace: dict[str, Any]) -> dict[str, str]:
    """The names that cells have put into a namespace, and the types of what they stand for.

    Examples
    --------
    >>> user_names({"x": 1, "_y": 2, "os": os})
    {'x': 'int', 'os': 'module'}
    """
    return {name: type(value).__name__ for name, value in namespace.items() if not name.startswith("_")}


def say_times(wall: float, cpu: float) -> None:
    """Print what ``%time`` prints, of seconds."""
    print(f"CPU times: {_seconds(cpu)}\nWall time: {_seconds(wall)}")


def _seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


#: Those that the client lets through, and what they do.
LINE_MAGICS: dict[str, Callable[..., Any]] = {
    "cd": Shell._cd,
    "env": Shell._env,
    "matplotlib": Shell._matplotlib,
    "pinfo": Shell._pinfo,
    "pinfo2": Shell._pinfo,
    "pip": Shell._pip,
    "pwd": Shell._pwd,
    "set_env": Shell._env,
    "sx": lambda shell, line: shell.getoutput(line),
    "system": lambda shell, line: shell.getoutput(line),
    "time": Shell._time,
    "timeit": Shell._timeit,
    "who": Shell._who,
    "whos": Shell._who,
}
CELL_MAGICS: dict[str, Callable[..., Any]] = {
    "bash": Shell._bash,
    "sh": Shell._shell_script,
    "time": Shell._time,
    "timeit": Shell._timeit,
    "writefile": Shell._writefile,
}
