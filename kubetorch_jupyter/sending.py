"""The LOAD of a deploy: the code, with the steps of its image and those of their files that the pod doesn't have."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pod_server import serialization

from .backends.base import Progress
from .code import Code
from .config import config
from .errors import StartupError
from .progress import Phase
from .streams import Output
from .transport.session import Session

__all__ = ["send_code", "whole_load"]


async def send_code(
    code: Code,
    session: Session,
    meta: dict[str, Any],
    live: dict[str, Any] | None,
    progress: Progress | None,
    output: Output | None,
) -> int:
    """Have a pod load code, and show which step of its image runs.

    Parameters
    ----------
    meta
        The LOAD's, but for what is said of the steps.
    live
        What the pod says of the code that it has; None: it has none.
    progress
        Is told of the steps that run.

    Returns
    -------
    int
        How many bytes were sent.

    Raises
    ------
    StartupError
        When a step fails; it has ``step``, ``exit_code`` and ``output``.
    RemoteFailure, KubetorchError
        As `Session.load`.
    """
    have = (live or {}).get("files") or ()
    full, buffers = whole_load(code, meta, have)
    if code.bundle.steps is None:
        await session.load(full, buffers, output)
        return code.bundle.size

    def on_event(event: dict[str, Any]) -> None:
        if progress is None:
            return
        if event.get("event") == "step":
            progress(Phase.IMAGE, str(event.get("text")))
        elif event.get("event") == "steps-done":
            progress(Phase.LOADING)

    session.listeners.append(on_event)
    try:
        try:
            await session.load(full, buffers, output)
        except StartupError as e:
            if e.reason != "files-missing" or not have:
                raise
            full, buffers = whole_load(code, meta)
            await session.load(full, buffers, output)
    finally:
        session.listeners.remove(on_event)
    return serialization.nbytes(buffers)


def whole_load(
    code: Code, meta: dict[str, Any], have: Collection[str] = ()
) -> tuple[dict[str, Any], list[serialization.Buffer]]:
    """The meta and the buffers of a LOAD, with those of the steps of its image.

    Parameters
    ----------
    have
        Digests of files that the pod has already.
    """
    steps, buffers = code.bundle.steps, list(code.bundle.buffers)
    if steps is None:
        return meta, buffers
    here = code.sys_path is not None
    image, more = steps.load(have, code.compute.env(), config.cache_dir if here else None, here)
    return {**meta, "image": image}, [*buffers, *more]
