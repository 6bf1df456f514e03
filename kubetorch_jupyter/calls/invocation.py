"""Calls with one result: blocking, and as a coroutine."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import Any, cast

from .run import Payload, Run, encode_arguments
from .target import CallOptions, Target

__all__ = ["invoke", "invoke_async"]


def invoke(
    target: Target, method: str | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions
) -> Any:
    """Call and block until the result is there and everything printed has been written.

    KeyboardInterrupt (Stop in a notebook) cancels the call in the pod; control is back within half a second.

    Parameters
    ----------
    target, method
        What is called; None for the function itself.
    args, kwargs
        Its arguments. Arrays are sent from where they lie.
    options
        How.

    Raises
    ------
    Exception
        What the user's code raised, as itself.
    CallError, ConnectionFailedError, SerializationError
        When there is no result.
    """
    __tracebackhide__ = True
    payload = encode_arguments(target, args, kwargs, options, snapshot=False)
    attempts = options.retries
    while True:
        run = Run(target, method, payload, options)
        if not attempts:
            del payload  # the session lets go of it as soon as the pod has it
            run.wait()
            return run.value()
        run.wait()
        if not run.lost():
            return run.value()
        attempts -= 1


def invoke_async(
    target: Target, method: str | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: CallOptions
) -> Coroutine[Any, Any, Any]:
    """Make a coroutine of a call, for any loop in any thread.

    The arguments are taken as they are now; the call begins when the coroutine is first awaited or scheduled.
    Cancelling it cancels the call in the pod.

    Parameters
    ----------
    target, method, args, kwargs, options
        As for `invoke`.

    Returns
    -------
    Coroutine
        Of the result.
    """
    payload: Payload | Exception
    try:
        payload = encode_arguments(target, args, kwargs, options, snapshot=True)
    except Exception as e:
        payload = e  # to be raised where it is awaited: others may be under way already
    coroutine = _invoke_async(target, method, [payload], options)
    cast(Any, coroutine).__qualname__ = method or target.label
    return coroutine


async def _invoke_async(
    target: Target, method: str | None, cargo: list[Payload | Exception], options: CallOptions
) -> Any:
    __tracebackhide__ = True
    payload = cargo.pop()  # out of the list, so that nothing here holds it once the pod has it
    if isinstance(payload, Exception):
        raise payload
    attempts = options.retries
    while True:
        run = Run(target, method, payload, options)
        if not attempts:
            del payload
            await run.wait_async()
            return run.value()
        await run.wait_async()
        if not run.lost():
            return run.value()
        attempts -= 1
