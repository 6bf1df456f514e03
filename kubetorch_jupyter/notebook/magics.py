"""``%%kt`` runs, or deploys, what a cell says; ``%kt`` manages what runs. Registered by ``%load_ext``.

Everything here is a face of the public API: ``%%kt`` of `kt.Cells`, ``%%kt deploy`` of `kt.fn` and `kt.cls`.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import difflib
import enum
import inspect
import math
import os
import re
import time
import typing
from collections.abc import Callable, Sequence
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand
from traitlets import Int, Unicode, default

import kubetorch_jupyter as kt

from .body import Body, defined_names, prepare, run_here
from .commands import COMMANDS, Commands
from .errors import ShowAsItsOwn
from .options import COMPUTE, Parser, compute_from, parse, split

__all__ = ["KT"]

#: Where `kt.Cells.put` has a variable.
_ARGUMENT = re.compile(r"args\[0\]\['(\w+)'\]")


@magics_class
class KT(Magics):
    """The magics; ``%config KT`` shows and sets the defaults of their options."""

    name = Unicode(help="Namespace of %%kt cells that name none (-n); empty: this notebook's own.").tag(config=True)
    cpus = Unicode(help="CPUs to ask for, as --cpus; empty: not said.").tag(config=True)
    memory = Unicode(help="Memory to ask for, as --memory; empty: not said.").tag(config=True)
    gpus = Int(help="GPUs to ask for, as --gpus; 0: none.").tag(config=True)
    image = Unicode(help="Container image, as --image; empty: kt.config.image.").tag(config=True)

    @default("name")
    def _default_name(self) -> str:
        return os.environ.get("KT_NAME", "")

    @default("cpus")
    def _default_cpus(self) -> str:
        return os.environ.get("KT_CPUS", "")

    @default("memory")
    def _default_memory(self) -> str:
        return os.environ.get("KT_MEMORY", "")

    @default("gpus")
    def _default_gpus(self) -> int:
        text = os.environ.get("KT_GPUS") or "0"
        if not text.isdecimal():
            raise UsageError(f"KT_GPUS={text!r} in the environment is no number of GPUs")
        return int(text)

    shell: Any

    def __init__(self, shell: Any) -> None:
        super().__init__(shell=shell)
        self.commands = Commands(shell, lambda: self.name or None)

    # -- the one magic -----------------------------------------------------------------------------------------------

    @no_var_expand
    @line_cell_magic("kt")  # type: ignore[arg-type]
    def run_kt(self, line: str, cell: str | None = None) -> Any:
        """Run cells on pods, and manage what runs there.

        As a cell magic::

            %%kt                        run the cell in this notebook's namespace on a pod
            %%kt -n gpu --gpus 1        ... in another namespace, with a GPU
            %%kt -i data -o model       send the variable data first, fetch model afterwards
            %%kt --bg job               go on at once; job is the kt.Call
            %%kt --fresh                begin with an empty namespace
            %%kt deploy --cpus 2        deploy the cell's functions and classes; their names become handles

        As a line magic::

            %kt services                what runs          %kt down NAME       end a service
            %kt calls                   its calls          %kt restart NAME    with a fresh process
            %kt logs [-f] WHAT          output             %kt preview f       what would travel with f
            %kt attach ID               a call again       %kt panel           all of that with buttons
            %kt cancel ID               end a call         %kt doctor          is everything right here?
            %kt config [KEY [VALUE]]    settings           %kt help            this

        ``%kt COMMAND --help`` and ``%%kt --help`` show the options. Options win over ``%config KT.cpus = "2"``, that
        over ``KT_CPUS`` in the environment. ``$name`` and ``{name}`` in the line are not replaced.
        """
        __tracebackhide__ = True
        words = split(line, "%kt" if cell is None else "%%kt")
        with ShowAsItsOwn(self.shell):
            if cell is None:
                return self._line(words)
            magic = f"%%kt {line}".rstrip()
            if words and words[0] == "deploy":
                return self._deploy(words[1:], magic, cell)
            if words and words[0] == "run":
                words = words[1:]
            elif words and not words[0].startswith("-"):
                raise UsageError(_unknown("%%kt", words[0], ["run", "deploy"], COMMANDS))
            return self._run(words, magic, cell)

    def _line(self, words: Sequence[str]) -> Any:
        __tracebackhide__ = True
        if not words or words[0] in ("help", "--help", "-h"):
            print(inspect.getdoc(type(self).run_kt))
            return None
        if words[0] in ("run", "deploy"):
            raise UsageError(f"%kt {words[0]} is for cells: %%kt {words[0]}, and the code below")
        command = COMMANDS.get(words[0])
        if command is None:
            raise UsageError(_unknown("%kt", words[0], list(COMMANDS), ()))
        return command(self.commands, words[1:])

    # -- %%kt run ----------------------------------------------------------------------------------------------------

    def _run_parser(self) -> Parser:
        parser = Parser("%%kt", "Run the cell on a pod, in a namespace that lasts.")
        parser.add_argument("-n", "--name", metavar="NAME", help="the namespace (default: this notebook's own)")
        parser.add_argument(
            "-i", "--in", dest="send", metavar="VARS", action="append", default=[], help="variables to send first: a,b"
        )
        parser.add_argument(
            "-o",
            "--out",
            dest="fetch",
            metavar="VARS",
            action="append",
            default=[],
            help="variables to fetch afterwards: a,b",
        )
        parser.add_argument(
            "--bg", nargs="?", const="_call", metavar="NAME", help="go on at once; NAME (or _call) becomes the kt.Call"
        )
        parser.add_argument("--timeout", metavar="SECONDS", type=float, help="cancel it after that time")
        parser.add_argument("--fresh", action="store_true", help="begin with an empty namespace")
        parser.add_argument("--local", action="store_true", help="run it here too, to compare")
        parser.add_compute()
        return parser

    def _run(self, words: Sequence[str], magic: str, cell: str) -> None:
        __tracebackhide__ = True
        given = parse(self._run_parser(), words)
        if given is None:
            return
        send, fetch = _names("-i", given.send), _names("-o", given.fetch)
        if given.bg is not None and fetch:
            raise UsageError('%%kt: -o waits for the end of the cell and --bg does not: fetch later, with "%kt fetch"')
        if given.bg is not None and given.local:
            raise UsageError("%%kt: --local runs it here afterwards, and --bg doesn't wait for that")
        if given.timeout is not None and not 0 < given.timeout < math.inf:
            raise UsageError(f"%%kt: --timeout takes a number of seconds above 0, not {given.timeout:g}")
        if given.bg is not None and not given.bg.isidentifier():
            raise UsageError(f"%%kt: --bg takes a variable's name, not {given.bg!r}")
        values = self._values(send)
        body = prepare(self.shell, magic, cell)
        known = self.commands.namespace(given.name).deployed
        cells = self._deployed(given)
        # What is used here for the first time may have lived before; what was, may have something running.
        if given.fresh and (known or cells.names()):
            cells.restart()
        self._put(cells, values)
        options: dict[str, Any] = {"name": body.name, "text": body.text, "timed": body.timed}
        if given.bg is not None:
            call = cells.spawn(body.source, timeout=given.timeout, **options)
            self.shell.user_ns[given.bg] = call
            print(f"{given.bg} = {call!r}")
            return
        began = time.perf_counter()
        try:
            cells.run(body.source, timeout=given.timeout, **options)
        except NameError as e:
            _hint(e, self.shell.user_ns)
            raise
        except kt.CallTimeoutError as e:
            e.add_note("for a %%kt cell: --timeout SECONDS")
            raise
        took = time.perf_counter() - began
        self.commands.fetch_into(cells, fetch, "-o")
        if given.local:
            self._compare(body, took)

    def _compare(self, body: Body, took: float) -> None:
        __tracebackhide__ = True
        began = time.perf_counter()
        print("kubetorch: the same here:")
        run_here(self.shell, body)
        print(f"kubetorch: {took:.3g} s on the pod, {time.perf_counter() - began:.3g} s here")

    def _values(self, names: Sequence[str]) -> dict[str, Any]:
        missing = [name for name in names if name not in self.shell.user_ns]
        if missing:
            raise UsageError(f"%%kt: -i {','.join(missing)}: there is no such variable in this notebook")
        return {name: self.shell.user_ns[name] for name in names}

    @staticmethod
    def _put(cells: kt.Cells, values: dict[str, Any]) -> None:
        __tracebackhide__ = True
        if not values:
            return
        try:
            cells.put(values)
        except (kt.SerializationError, kt.PayloadTooLargeError) as e:
            text = _ARGUMENT.sub(r"\1", str(e))  # by the name that it has here
            raise UsageError(f"%%kt: -i {','.join(values)}: {text}") from None

    def _deployed(self, given: argparse.Namespace) -> kt.Cells:
        """The namespace; deployed again only where something else is asked for."""
        __tracebackhide__ = True
        cells = self.commands.namespace(given.name)
        wanted = compute_from(given, self._defaults())
        if cells.deployed and (wanted is None or wanted == cells.compute):
            return cells
        asked = any(getattr(given, option) is not None for option in COMPUTE)
        if cells.deployed and not asked:
            return cells  # what %config says is for the first time; a namespace is not thrown away for it
        cells.to(wanted)
        return cells

    def _defaults(self) -> dict[str, Any]:
        return {"cpus": self.cpus, "memory": self.memory, "gpus": self.gpus, "image": self.image}

    # -- %%kt deploy -------------------------------------------------------------------------------------------------

    def _deploy_parser(self) -> Parser:
        parser = Parser("%%kt deploy", "Deploy the functions and classes that the cell defines.")
        parser.add_argument(
            "--only",
            metavar="NAMES",
            action="append",
            default=[],
            help="deploy these only: f,g; the others stay what they are",
        )
        parser.add_argument("--name", metavar="NAME", help="the service's name, where one thing is deployed")
        parser.add_argument("--init", metavar="EXPRESSION", help="what a class is constructed with: {'size': 3}")
        parser.add_compute()
        return parser

    def _deploy(self, words: Sequence[str], magic: str, cell: str) -> None:
        __tracebackhide__ = True
        given = parse(self._deploy_parser(), words)
        if given is None:
            return
        compute = compute_from(given, self._defaults()) or kt.Compute()
        body = prepare(self.shell, f"# {magic}", cell)
        names = self._chosen(given, defined_names(body.source, body.name))
        run_here(self.shell, body)
        namespace = self.shell.user_ns
        init_args = self._evaluate(given.init)
        if gone := [name for name in names if not callable(namespace.get(name))]:
            raise UsageError(f"%%kt deploy: {gone[0]} is no function and no class any more where the cell ends")
        if not given.only:
            names = self._with_something_to_call(names)
        found = {name: namespace[name] for name in names}
        if given.init is None:
            _check_constructible(found)
        handles = _handles(found, given.name)

        async def deploy(handle: Any) -> None:
            await handle.to_async(compute, init_args=init_args if isinstance(handle, kt.Cls) else None)

        async def deploy_all() -> list[BaseException | None]:
            return await asyncio.gather(*map(deploy, handles.values()), return_exceptions=True)

        # All are packed before a name changes: what one uses of another goes with it as it stands in the cell.
        try:
            problems = asyncio.run(deploy_all())
        finally:
            # Also those that failed: called, they say that they are not deployed, and don't run here by mistake.
            namespace.update(handles)
        for problem in problems:
            if problem is not None:
                raise problem

    @staticmethod
    def _chosen(given: argparse.Namespace, found: Sequence[str]) -> list[str]:
        names = _names("--only", given.only) or list(found)
        if unknown := [name for name in names if name not in found]:
            raise UsageError(
                f"%%kt deploy: --only {','.join(unknown)}: the cell defines {', '.join(found) or 'nothing'}"
            )
        if not names:
            raise UsageError("%%kt deploy: the cell defines no function and no class to deploy")
        if given.name and len(names) > 1:
            raise UsageError(
                f"%%kt deploy: --name is for one thing, and the cell defines {', '.join(names)}: add --only"
            )
        return names

    def _with_something_to_call(self, names: Sequence[str]) -> list[str]:
        """Without the classes that are data: what they are matters in the notebook too (``except``, ``isinstance``)."""
        data = [name for name in names if _is_data(self.shell.user_ns[name])]
        wanted = [name for name in names if name not in data]
        if data:
            stay = f"{', '.join(data)} {'stays what it is' if len(data) == 1 else 'stay what they are'}"
            text = f"{stay}: data, errors and interfaces travel with what uses them (--only {','.join(data)} deploys)"
            if not wanted:
                raise UsageError(f"%%kt deploy: {text}")
            print(f"kubetorch: {text}")
        return wanted

    def _evaluate(self, expression: str | None) -> Any:
        __tracebackhide__ = True
        if expression is None:
            return None
        try:
            return eval(expression, self.shell.user_ns)
        except Exception as e:
            raise UsageError(f"%%kt deploy: --init {expression}: {type(e).__name__}: {e}") from None


def _is_data(value: Any) -> bool:
    """Whether it is a class whose instances are passed about, or of which there are none, and none to be deployed."""
    if not inspect.isclass(value):
        return False
    return (
        issubclass(value, (BaseException, enum.Enum, tuple, type))
        or dataclasses.is_dataclass(value)
        or typing.is_typeddict(value)
        or inspect.isabstract(value)
        or bool(getattr(value, "_is_protocol", False))
        or not any(callable(getattr(value, name)) for name in dir(value) if name == "__call__" or name[0] != "_")
    )


def _handles(found: dict[str, Any], service: str | None) -> dict[str, kt.Module]:
    handles: dict[str, kt.Module] = {}
    names: dict[str, str] = {}
    for name, value in found.items():
        wrap: Callable[..., kt.Module] = kt.cls if inspect.isclass(value) else kt.fn
        try:
            handle = handles[name] = wrap(value, name=service)
            other = names.setdefault(handle.service_name, name)
        except kt.ConfigError as e:
            raise UsageError(f"%%kt deploy: {e}") from None
        if other != name:
            raise UsageError(
                f'%%kt deploy: {other} and {name} would both be the service "{handle.service_name}": rename one of '
                "them, or leave it out with --only"
            )
    return handles


def _check_constructible(found: dict[str, Any]) -> None:
    for name, value in found.items():
        if not inspect.isclass(value):
            continue
        try:
            signature = inspect.signature(value)
        except (TypeError, ValueError):
            continue  # made in C, or by a metaclass: the pod says how that goes
        try:
            signature.bind()
        except TypeError as e:
            others = [other for other in found if other != name]
            how = f"; --only {','.join(others)} leaves it what it is" if others else ""
            raise UsageError(
                f'%%kt deploy: {name}: {e}; say it with --init "{{{next(iter(signature.parameters))!r}: ...}}"{how}'
            ) from None


def _names(option: str, given: Sequence[str]) -> list[str]:
    names = [name for part in given for name in part.replace(",", " ").split()]
    if wrong := [name for name in names if not name.isidentifier()]:
        raise UsageError(f"%%kt: {option} takes names of variables, and {wrong[0]!r} is none")
    return list(dict.fromkeys(names))


def _unknown(magic: str, word: str, known: Sequence[str], elsewhere: Sequence[str] | dict[str, Any]) -> str:
    if word in elsewhere:
        return f"{magic} {word} is for lines: %kt {word}"
    close = difflib.get_close_matches(word, known, 1)
    meant = f"; did you mean {close[0]}?" if close else ""
    return f"{magic}: there is no {word!r}{meant} There are: {', '.join(known)}"


def _hint(error: NameError, namespace: dict[str, Any]) -> None:
    """A variable of the notebook isn't there on the pod: say how it gets there."""
    name = getattr(error, "name", None)
    if not name or name not in namespace:
        return
    value = namespace[name]
    if inspect.ismodule(value):
        error.add_note(f"{name} is a module that this notebook has imported: import it in the %%kt cell as well")
    else:
        error.add_note(f"{name} is a variable of this notebook and not of the pod: add -i {name} to send it")
