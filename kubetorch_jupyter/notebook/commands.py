"""What ``%kt COMMAND`` does: each a method that takes the line's words; `COMMANDS` lists them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from IPython.core.error import UsageError

import kubetorch_jupyter as kt

from . import doctor, loops
from .held import held_services, is_a, tear_down
from .options import Parser, parse
from .output import write_log

__all__ = ["COMMANDS", "Commands"]


class Commands:
    """The commands.

    Parameters
    ----------
    shell
        The running IPython.
    default_namespace
        The name of that of ``%%kt`` cells which name none; None for this notebook's own.
    """

    def __init__(self, shell: Any, default_namespace: Callable[[], str | None]) -> None:
        self.shell = shell
        self._default_namespace = default_namespace
        #: The namespaces of ``%%kt`` cells in this kernel, by their services' names.
        self.namespaces: dict[str, kt.Cells] = {}

    def namespace(self, name: str | None) -> kt.Cells:
        """The namespace of that name, or the one of cells that name none.

        Raises
        ------
        UsageError
            When no service can have that name.
        """
        try:
            cells = kt.Cells(name or self._default_namespace())
        except kt.ConfigError as e:
            raise UsageError(f"-n: {e}") from None
        return self.namespaces.setdefault(cells.name, cells)

    # -- what runs ---------------------------------------------------------------------------------------------------

    def services(self, words: Sequence[str]) -> Any:
        """Show the services that are up."""
        given = parse(_with_namespace(_parser("services", self.services)), words)
        return None if given is None else kt.services(given.namespace)

    def calls(self, words: Sequence[str]) -> Any:
        """Show the calls that run and those that ended lately."""
        parser = _with_namespace(_parser("calls", self.calls))
        parser.add_argument("service", nargs="?", help="of this service only")
        given = parse(parser, words)
        if given is None:
            return None
        if given.service is not None:
            [given.service] = _known("calls", [given.service], given.namespace)
        return kt.calls(given.service, given.namespace)

    def logs(self, words: Sequence[str]) -> None:
        """Show all output of a call, or a service's own."""
        parser = _with_namespace(_parser("logs", self.logs))
        parser.add_argument("what", metavar="WHAT", help="a call's id, a service, or a variable that holds one")
        parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until it ends")
        given = parse(parser, words)
        if given is None:
            return
        target = self.shell.user_ns.get(given.what, given.what)
        if isinstance(target, kt.Cells):
            target = target.name
        try:
            where = given.namespace
            write_log(kt.logs(target, True, where) if given.follow else [kt.logs(target, False, where)])
        except (kt.ServiceNotFoundError, kt.NotDeployedError, kt.UnknownCallError, TypeError) as e:
            raise UsageError(f"%kt logs {given.what}: {e}") from None

    def attach(self, words: Sequence[str]) -> Any:
        """Get a call again, with its output from the start; it becomes the variable _call."""
        parser = _with_namespace(_parser("attach", self.attach))
        parser.add_argument("id", metavar="ID", help="as %%kt calls lists it")
        parser.add_argument("name", nargs="?", default="_call", metavar="NAME", help="another variable")
        parser.add_argument("--wait", action="store_true", help="wait for its end, and show its result")
        given = parse(parser, words)
        if given is None:
            return None
        if not given.name.isidentifier():
            raise UsageError(f"%kt attach: {given.name!r} is no name for a variable")
        try:
            call = kt.attach(given.id, given.namespace)
        except (kt.ServiceNotFoundError, kt.UnknownCallError) as e:
            raise UsageError(f"%kt attach: {e}") from None
        self.shell.user_ns[given.name] = call
        if given.wait:
            return call.result()
        return call

    def fetch(self, words: Sequence[str]) -> None:
        """Fetch variables from the pod that %%kt cells run in."""
        parser = _parser("fetch", self.fetch)
        parser.add_argument("names", nargs="+", metavar="VAR")
        parser.add_argument("-n", "--name", metavar="NAME", help="the namespace")
        given = parse(parser, words)
        if given is not None:
            cells = self.namespace(given.name)
            if not cells.deployed:
                raise UsageError(f'%kt fetch: no cell has run in the namespace "{cells.name}" yet')
            self.fetch_into(cells, given.names, "%kt fetch")

    def fetch_into(self, cells: kt.Cells, names: Sequence[str], what: str) -> None:
        """Bind the values of variables of a namespace to their names here."""
        __tracebackhide__ = True
        if not names:
            return
        try:
            found = cells.fetch(*names)
        except (kt.SerializationError, kt.PayloadTooLargeError) as e:
            raise UsageError(f"{what} {','.join(names)}: {e}") from None
        self.shell.user_ns.update(found)
        if missing := [name for name in names if name not in found]:
            there = ", ".join(sorted(cells.names())) or "none"
            raise UsageError(f"{what} {','.join(missing)}: there is no such variable on the pod; there are: {there}")

    # -- ending ------------------------------------------------------------------------------------------------------

    def cancel(self, words: Sequence[str]) -> None:
        """Cancel calls."""
        parser = _with_namespace(_parser("cancel", self.cancel))
        parser.add_argument("calls", nargs="*", metavar="CALL", help="an id, or a variable that holds a kt.Call")
        parser.add_argument("--all", action="store_true", help="all that run")
        given = parse(parser, words)
        if given is None:
            return
        if given.all == bool(given.calls):
            raise UsageError("%kt cancel: say which calls, or --all")
        running = () if given.calls else kt.calls(None, given.namespace)
        for word in given.calls or [row["id"] for row in running if not row.get("ended") and row["id"]]:
            call = self.shell.user_ns.get(word)
            if isinstance(call, kt.Call):
                id, cancelled = call.id, call.cancel()
            else:
                id, cancelled = word, kt.Module.from_name(_service_of(word), given.namespace).service.cancel(word)
            print(f"{id}: {'cancelling' if cancelled else 'had ended'}")

    def down(self, words: Sequence[str]) -> None:
        """End services and remove everything that belongs to them."""
        parser = _with_namespace(_parser("down", self.down))
        parser.add_argument("names", nargs="*", metavar="NAME")
        parser.add_argument("--all", action="store_true", help="all that %%kt services lists")
        given = parse(parser, words)
        if given is None:
            return
        if given.all == bool(given.names):
            raise UsageError("%kt down: say which services, or --all")
        names = given.names or [info.name for info in kt.services(given.namespace)]
        if not given.all:
            names = self._service_names("down", names, given.namespace)
        failed: kt.KubetorchError | None = None
        for name in names:
            began = time.monotonic()
            try:
                tear_down(name, self._values(), given.namespace)
            except kt.ServiceNotFoundError:
                print(f'kubetorch: "{name}" had ended already')
            except kt.KubetorchError as e:  # the others are to end all the same
                print(f'kubetorch: "{name}" has not ended: {e}')
                failed = failed or e
            else:
                print(f'kubetorch: "{name}" has ended ({time.monotonic() - began:.2f} s)')
        if failed is not None:
            raise failed
        if not names:
            print("no services")

    def _values(self) -> list[Any]:
        """What may hold a service: the notebook's variables, and the namespaces of its cells."""
        return [*list(self.shell.user_ns.values()), *self.namespaces.values()]

    def known_services(self) -> list[str]:
        """Names of services, for completion: those held here, and those of this machine as far as files say."""
        held = (name for name, _ in held_services(self._values()))
        return sorted({*self.namespaces, *held, *(info.name for info in kt.services())})

    def restart(self, words: Sequence[str]) -> None:
        """Give a service a fresh process: calls in flight end, state is lost."""
        parser = _with_namespace(_parser("restart", self.restart))
        parser.add_argument("names", nargs="+", metavar="NAME")
        given = parse(parser, words)
        if given is None:
            return
        for name in self._service_names("restart", given.names, given.namespace):
            kt.Module.from_name(name, given.namespace).service.restart()
            print(f'kubetorch: "{name}" has a fresh process; what it held is gone')

    def _service_names(self, command: str, words: Sequence[str], namespace: str | None) -> list[str]:
        """Names as given, or of the handles that variables of these names hold."""
        names = []
        for word in words:
            held = self.shell.user_ns.get(word)
            if is_a(held, kt.Fn, kt.Cls) and held.__dict__["_live"] is not None:
                word = held.service.name
            elif is_a(held, kt.Cells):
                word = held.name
            names.append(word)
        return _known(command, list(dict.fromkeys(names)), namespace)

    # -- looking -----------------------------------------------------------------------------------------------------

    def preview(self, words: Sequence[str]) -> Any:
        """Show what would travel with a function or class."""
        parser = _parser("preview", self.preview)
        parser.add_argument("name", metavar="NAME", help="a variable of this notebook")
        given = parse(parser, words)
        if given is None:
            return None
        if given.name not in self.shell.user_ns:
            raise UsageError(f"%kt preview: there is no variable {given.name!r} in this notebook")
        return kt.preview(self.shell.user_ns[given.name])

    def panel(self, words: Sequence[str]) -> Any:
        """Show services and calls with buttons."""
        given = parse(_parser("panel", self.panel), words)
        return None if given is None else kt.panel()

    def doctor(self, words: Sequence[str]) -> Any:
        """Check whether everything is right here, and say what to do."""
        parser = _parser("doctor", self.doctor)
        parser.add_argument("--deploy", action="store_true", help="on a cluster, too, deploy a function and call it")
        given = parse(parser, words)
        return None if given is None else doctor.examine(self.shell, given.deploy)

    # -- settings ----------------------------------------------------------------------------------------------------

    def config(self, words: Sequence[str]) -> Any:
        """Show the settings, or set one."""
        parser = _parser("config", self.config)
        parser.add_argument("key", nargs="?", metavar="KEY")
        parser.add_argument("value", nargs="?", metavar="VALUE", help="for this kernel")
        parser.add_argument("--save", action="store_true", help="write what was set to the file of settings as well")
        given = parse(parser, words)
        if given is None:
            return None
        try:
            if given.key is None:
                shown: Any = kt.config
            elif given.value is None:
                shown = kt.config.get(given.key)
            else:
                kt.config.set(given.key, given.value)
                print(f"{given.key} = {kt.config.get(given.key)!r}")
                shown = None
            if given.save:
                print(f"written to {kt.config.write()}")
        except kt.ConfigError as e:
            raise UsageError(f"%kt config: {e}") from None
        return shown

    def asyncio(self, words: Sequence[str]) -> None:
        """Say how asyncio.run works in cells, or change it."""
        parser = _parser("asyncio", self.asyncio)
        parser.add_argument(
            "mode",
            nargs="?",
            choices=["own", "nest"],
            help="nest: also loop.run_until_complete on the running loop, for code that needs it; "
            "it can't be undone in this kernel",
        )
        given = parse(parser, words)
        if given is not None:
            print(loops.use(given.mode) if given.mode else loops.describe())


def _parser(name: str, method: Callable[..., Any]) -> Parser:
    return Parser(f"%kt {name}", (method.__doc__ or "").strip())


def _with_namespace(parser: Parser) -> Parser:
    parser.add_argument("--namespace", metavar="NS", help="in this namespace of the cluster (Kubernetes)")
    return parser


def _service_of(id: str) -> str:
    service, slash, _ = id.partition("/")
    if not slash:
        raise UsageError(f"%kt cancel: {id!r} is neither a call's id (service/...) nor a variable that holds a kt.Call")
    return service


def _known(command: str, names: Sequence[str], namespace: str | None) -> list[str]:
    """The services' full names: on a cluster one may leave out that a service is one's own."""
    known = [info.name for info in kt.services(namespace)]
    prefix = f"{kt.config.username}-".lower()
    found = {name: next((each for each in (name, prefix + name) if each in known), None) for name in names}
    if unknown := [name for name, full in found.items() if full is None]:
        raise UsageError(f"%kt {command}: there is no service {unknown[0]!r}; there are: {', '.join(known) or 'none'}")
    return [full for full in found.values() if full is not None]


COMMANDS: dict[str, Callable[[Commands, Sequence[str]], Any]] = {
    "services": Commands.services,
    "calls": Commands.calls,
    "logs": Commands.logs,
    "attach": Commands.attach,
    "cancel": Commands.cancel,
    "fetch": Commands.fetch,
    "down": Commands.down,
    "restart": Commands.restart,
    "panel": Commands.panel,
    "preview": Commands.preview,
    "doctor": Commands.doctor,
    "config": Commands.config,
    "asyncio": Commands.asyncio,
}
