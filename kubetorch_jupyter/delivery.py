"""One deploy of a handle: pack in a thread of the user's, bring up on the portal, and show how it goes.

`module` imports it when something is deployed, and with it all that a deploy takes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from . import shipping
from .calls import load_error
from .code import take_code
from .compute import Compute
from .deploying import deploy
from .errors import ConfigError, StartupError
from .identity import service_name
from .interface import Interface, display_name
from .invocation import KEYWORDS
from .packing import pack
from .progress import DeployProgress
from .service import Service
from .streams import open_output
from .transport.portal import get_portal
from .transport.session import RemoteFailure

__all__ = ["Delivery"]


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What is deployed, how, and who holds it afterwards.

    Parameters
    ----------
    target
        The function or class.
    given_name
        Its name; the service's is made of it.
    kind
        ``"fn"`` or ``"cls"``.
    sync_dir, compute, init_args, get_if_exists, dryrun
        As for `fn` and ``.to``.
    shown
        Whether its progress, and the output of its loading, are.
    own_names
        What a handle has by itself, which a class's methods hide.
    adopt
        Called with the live service, on the portal.
    """

    target: Any
    given_name: str
    kind: str
    sync_dir: str | bool | None
    compute: Compute
    init_args: Any
    shown: bool
    get_if_exists: bool
    dryrun: bool
    own_names: frozenset[str]
    adopt: Callable[[Service], None]

    def run(self) -> None:
        """Deploy, and block until it can be called; errors as those of ``.to``."""
        __tracebackhide__ = True
        make, up, progress = self._steps()
        with progress:
            bundle = make()
            if not self.dryrun:
                try:
                    get_portal().run(up(bundle))
                except RemoteFailure as e:
                    error = self._error(e)
                    raise error from error.__cause__

    async def run_async(self) -> None:
        """`run` for a running loop, which it never blocks."""
        __tracebackhide__ = True
        make, up, progress = self._steps()

        async def run() -> None:
            bundle = await pack(make)
            if not self.dryrun:
                await up(bundle)

        async with progress:
            try:
                await get_portal().wrap(run())
            except RemoteFailure as e:
                error = self._error(e)
                raise error from error.__cause__

    def _error(self, failure: RemoteFailure) -> StartupError:
        return load_error(failure, service_name(self.given_name))

    def _steps(
        self,
    ) -> tuple[Callable[[], shipping.Bundle], Callable[[shipping.Bundle], Coroutine[Any, Any, None]], DeployProgress]:
        """Pack in a thread of the user's, bring up on the portal, and what shows the two."""
        name = service_name(self.given_name)
        progress = DeployProgress(name, quiet=not self.shown or self.dryrun)
        # Where the load's own output goes: the deploying cell.
        output = open_output(name) if self.shown else None
        here = _directory()

        def make() -> shipping.Bundle:
            return shipping.pack(
                self.target,
                name=display_name(self.target),
                kind=self.kind,
                init_args=self.init_args,
                sync_dir=self.sync_dir,
                compute=self.compute,
            )

        async def up(bundle: shipping.Bundle) -> None:
            code = take_code(bundle, self.compute, here)
            # That ``_`` becomes ``-`` is seen in the next line.
            if name != self.given_name.lower().replace("_", "-"):
                progress.note(f'the service of "{self.given_name}" is called "{name}"')
            for line in self._hidden(bundle):
                progress.note(line)
            self.adopt(await deploy(code, name, progress, output, get_if_exists=self.get_if_exists))

        return make, up, progress

    def _hidden(self, bundle: shipping.Bundle) -> list[str]:
        """What to say about the user's names that win over ours."""
        lines = []
        for key, entry in Interface(bundle.meta["interface"], bundle.meta["name"]).entries.items():
            if theirs := sorted(entry.parameters & KEYWORDS):
                names = ", ".join(theirs)
                lines.append(f"{entry.name} has its own parameter {names}: in calls of it the name is yours")
            if self.kind == "cls" and key == "service":
                lines.append(f"{entry.name} can't be called on the handle: .service is ours there; rename it")
            elif self.kind == "cls" and key in self.own_names:
                lines.append(f"{entry.name} hides ours of that name on the handle; ours are on .service")
        return lines


def _directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise ConfigError(
            "the working directory of this process has been removed or made anew, and a service runs in the same one: "
            'go to one that exists, with os.chdir("...") or %cd'
        ) from None
