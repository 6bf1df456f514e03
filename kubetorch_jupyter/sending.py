"""The LOAD of a deploy: the code, with the steps of its image and those of their files that the pod doesn't have."""

from __future__ import annotations

from typing import Any

from .code import Code
from .config import config
from .errors import StartupError
from .progress import DeployProgress, Phase
from .streams import Output
from .transport.session import Session

__all__ = ["send_code"]


async def send_code(
    code: Code,
    session: Session,
    meta: dict[str, Any],
    live: dict[str, Any] | None,
    local: bool,
    progress: DeployProgress,
    output: Output | None,
) -> int:
    """Have a pod load code, and show which step of its image runs.

    Parameters
    ----------
    meta
        The LOAD's, but for what is said of the steps.
    live
        What the pod says of the code that it has; None: it has none.
    local
        The pod is one of this machine.

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
    steps, buffers = code.bundle.steps, list(code.bundle.buffers)
    if steps is None:
        await session.load(meta, buffers, output)
        return code.bundle.size
    have = (live or {}).get("files") or ()

    def on_event(event: dict[str, Any]) -> None:
        if event.get("event") == "step":
            progress(Phase.IMAGE, str(event.get("text")))
        elif event.get("event") == "steps-done":
            progress(Phase.LOADING)

    session.listeners.append(on_event)
    try:
        image, more = steps.load(have, code.compute.env(), config.cache_dir if local else None, local)
        try:
            await session.load({**meta, "image": image}, [*buffers, *more], output)
        except StartupError as e:
            if e.reason != "files-missing" or not have:
                raise
            image, more = steps.load((), code.compute.env(), config.cache_dir if local else None, local)
            await session.load({**meta, "image": image}, [*buffers, *more], output)
    finally:
        session.listeners.remove(on_event)
    return code.bundle.size + sum(map(len, more))
