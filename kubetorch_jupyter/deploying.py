"""From a packed callable and a `Compute` to a live service; and the services that live already, by name."""

from __future__ import annotations

import asyncio
import os
import weakref
from functools import partial

from .backends import get_backend
from .backends.base import Backend, ServiceInfo
from .backends.notes import local_notes
from .code import Code
from .compute import Compute
from .deployment import adopt, bring_up
from .errors import ConfigError, KubetorchError, ServiceNotFoundError
from .interface import Interface
from .packing import fit
from .progress import DeployProgress, Phase
from .service import Service
from .streams import Output
from .transport.replicas import Replicas

__all__ = ["deploy", "find_info", "find_service"]

#: Deploys of one name from this process go one after the other, so that the last one typed is the one that lives.
_deploying: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()


def _after_fork() -> None:
    global _deploying
    _deploying = weakref.WeakValueDictionary()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


async def deploy(
    code: Code,
    name: str,
    progress: DeployProgress,
    output: Output | None,
    *,
    get_if_exists: bool = False,
) -> Service:
    """Bring a service up with this code; runs on the portal.

    Raises
    ------
    StartupError
        When the code can't be loaded; its ``__cause__`` is the pod's exception with its traceback.
    DeployError
        When no pod can be had. Nothing is left behind then.
    """
    backend = get_backend(code.compute)
    name = backend.full_name(name)
    if backend.here:
        image = code.compute.image
        problem = image.local_problem() if image is not None else None
        if problem:
            raise ConfigError(problem)
        for note in local_notes(code.compute):
            progress.note(note)
    code = code.on(backend.complete(code.compute), here=backend.here)
    meta = code.bundle.meta
    service = Service(name, backend, code.compute.namespace, kind=meta["kind"], code=code)
    service.interface = Interface(meta["interface"], meta["name"])
    if get_if_exists and await _use_live(service, code, progress):
        return service
    lock = _deploying.setdefault(name, asyncio.Lock())
    if lock.locked():
        progress(Phase.WAITING)
    async with lock:
        await service.use(await bring_up(backend, name, code, progress, output)).take_open()
    return service


async def _use_live(service: Service, code: Code, progress: DeployProgress) -> bool:
    """Take the live service of that name as it is; False when there is none."""
    info = await service.backend.find(service.name)
    if info is None or info.endpoint is None:
        return False
    replicas = Replicas(info.endpoints)
    answers = await replicas.ask(partial(adopt, service.backend))
    live = next((live for _, live in answers if live is not None and not isinstance(live, Exception)), None)
    if live is None:
        return False
    service.use(info.endpoints)
    if live["kind"] != service.kind:
        raise ConfigError(
            f'the live service "{service.name}" is a {live["kind"]}, and get_if_exists= would use it as a '
            f"{service.kind}: give another name=, or tear it down"
        )
    try:
        await fit(code, await replicas.session())
        differs = live["version"] != code.fingerprints()[0]
    except KubetorchError:  # it couldn't be sent there, and needn't be
        differs = True
    service.interface = Interface(live["interface"], live["name"])
    await progress.done(
        f'using the live service "{service.name}"'
        + ("; its code or its limits differ from those here" if differs else "")
    )
    return True


async def find_info(name: str, namespace: str | None = None) -> tuple[Backend, ServiceInfo]:
    """The service of that name, of this user if there is one, and its backend; runs on the portal.

    Raises
    ------
    ServiceNotFoundError
        When there is none.
    """
    backend = get_backend(Compute(namespace=namespace) if namespace else Compute())
    for each in dict.fromkeys((backend.full_name(name), name)):
        if (info := await backend.find(each)) is not None:
            return backend, info
    known = ", ".join(sorted(s.name for s in await backend.list())) or "none"
    raise ServiceNotFoundError(f'there is no service "{name}" {backend.where()}; live ones: {known}')


async def find_service(name: str, namespace: str | None = None) -> Service:
    """The live service of that name; runs on the portal.

    Raises
    ------
    ServiceNotFoundError
        When there is none.
    """
    backend, info = await find_info(name, namespace)
    if info.endpoint is None:
        raise ServiceNotFoundError(f'service "{info.name}" is being deployed; try again in a moment')
    service = Service(info.name, backend, namespace)
    answers = await service.use(info.endpoints).ask(lambda session: session.request("status"))
    codes = (answer.get("code") for _, answer in answers if not isinstance(answer, Exception))
    code = next((code for code in codes if code is not None), None)
    if code is None:
        raise ServiceNotFoundError(
            f'service "{info.name}" is being deployed and has no code yet; try again in a moment'
        )
    service.kind = code["kind"]
    service.interface = Interface(code["interface"], code["name"])
    return service
