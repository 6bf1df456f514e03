"""Every error that this package raises by itself, and what a user's own error becomes when its class is missing here.

* `KubetorchError`
  * `ConfigError` (ValueError): a value that was asked for makes no sense
  * `UnsupportedError` (NotImplementedError): part of Kubetorch's interface that this version doesn't have
  * `DeployError`: the service did not come up
    + `StartupError`: the pod runs, the code or its environment can't be loaded
    + `ImagePullError`
    + `PodContainerError`
    + `ResourceNotAvailableError`
    + `ServiceTimeoutError` (TimeoutError)
    + `ServiceHealthError`
    + `KubernetesCredentialsError`
    + `SecretNotFound` (LookupError)
    + `NotDeployedError`: a call before ``.to``
    + `ServiceNotFoundError` (LookupError)
  * `CallError`: the service is there, this call has no result
    + `CallTimeoutError` (TimeoutError)
    + `CallCancelledError`
    + `WorkerDiedError`
    + `PodLostError`
      - `PodTerminatedError`
    + `RecordExpiredError` (LookupError)
    + `UnknownCallError` (LookupError)
    + `WorkerMembershipChanged`
  * `ConnectionFailedError` (ConnectionError)
  * `AuthenticationError` (PermissionError)
  * `VersionMismatchError`
  * `SerializationError`
    + `PayloadTooLargeError`
  * `NotebookError`
  * `RemoteError`: the user's code raised something that can't be rebuilt here
* `Cancelled` (BaseException): what a cancelled ``def`` sees in a pod; defined in `pod_server.exceptions`

A user's exception normally arrives as itself and is none of these. All of them carry what they know as attributes and
can be pickled, because a service may call a service.
"""

from __future__ import annotations

import builtins
import signal as _signal
from collections.abc import Mapping, Sequence
from typing import Any

from pod_server.exceptions import Cancelled

__all__ = [
    "AuthenticationError",
    "CallCancelledError",
    "CallError",
    "CallTimeoutError",
    "Cancelled",
    "ConfigError",
    "ConnectionFailedError",
    "DeployError",
    "ImagePullError",
    "KubernetesCredentialsError",
    "KubetorchError",
    "NotDeployedError",
    "NotebookError",
    "PayloadTooLargeError",
    "PodContainerError",
    "PodLostError",
    "PodTerminatedError",
    "RecordExpiredError",
    "RemoteError",
    "ResourceNotAvailableError",
    "SecretNotFound",
    "SerializationError",
    "ServiceHealthError",
    "ServiceNotFoundError",
    "ServiceTimeoutError",
    "StartupError",
    "UnknownCallError",
    "UnsupportedError",
    "VersionMismatchError",
    "WorkerDiedError",
    "WorkerMembershipChanged",
    "from_wire",
    "remote_error",
]


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    # The message is already built, and every class has its own keywords, all of which may be left out. (Not by
    # cls.__new__: which of the bases' is the safe one differs from builtin to builtin.)
    error = cls()
    error.args = args
    error.__dict__.update(state)
    return error


def _size(amount: int | None) -> str:
    if amount is None:
        return "its limit"
    for power, unit in ((4, "Ti"), (3, "Gi"), (2, "Mi"), (1, "Ki")):
        if amount >= 1024**power:
            return f"{amount / 1024**power:.4g}{unit}"
    return f"{amount} bytes"


def _of(service: str | None) -> str:
    return f' of service "{service}"' if service else ""


class KubetorchError(Exception):
    """Base of all errors of this package.

    Parameters
    ----------
    message
        What happened, to what, and what to do next.
    service
        Name of the service that it is about, where there is one.

    Examples
    --------
    >>> error = KubetorchError("the service is busy", service="train")
    >>> str(error), error.service
    ('the service is busy', 'train')
    """

    def __init__(self, message: str = "", *, service: str | None = None) -> None:
        # Directly, not by super(): a class that is also an OSError or a UnicodeError must not parse our message.
        Exception.__init__(self, message)
        self.service = service

    @property
    def message(self) -> str:
        """What `str` gives."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class ConfigError(KubetorchError, ValueError):
    """A setting, a `Compute`, an `Image` … was given a value that makes no sense; nothing has been started."""


class UnsupportedError(KubetorchError, NotImplementedError):
    """A part of Kubetorch's interface that this version doesn't have."""


# Deploying


class DeployError(KubetorchError):
    """A service did not come up.

    Attributes
    ----------
    reason
        A short word for it in the backend's language (``"ErrImagePull"``, ``"Unschedulable"``), or None.
    events
        What the backend reported, oldest first, as lines.
    """

    def __init__(
        self,
        message: str = "",
        *,
        service: str | None = None,
        reason: str | None = None,
        events: Sequence[str] = (),
    ) -> None:
        super().__init__(message, service=service)
        self.reason = reason
        self.events = list(events)


class StartupError(DeployError):
    """The pod runs, but the code can't be loaded in it: an import fails, ``__init__`` raises, a package is missing.

    Attributes
    ----------
    traceback
        The pod's traceback as text, or None.
    module
        Name of the module that is missing in the pod, or None.
    """

    def __init__(
        self,
        message: str = "",
        *,
        service: str | None = None,
        reason: str | None = None,
        events: Sequence[str] = (),
        traceback: str | None = None,
        module: str | None = None,
    ) -> None:
        super().__init__(message, service=service, reason=reason, events=events)
        self.traceback = traceback
        self.module = module


class ImagePullError(DeployError):
    """The container image can't be pulled: its name is wrong, or the cluster has no right to it."""


class PodContainerError(DeployError):
    """A container of the pod can't be made or ends at once."""


class ResourceNotAvailableError(DeployError):
    """Nothing here has the CPUs, memory or GPUs that the `Compute` asks for."""


class ServiceTimeoutError(DeployError, TimeoutError):
    """The service wasn't ready within ``launch_timeout`` seconds."""


class ServiceHealthError(DeployError):
    """The service runs but isn't fit to take calls."""


class KubernetesCredentialsError(DeployError):
    """The cluster doesn't know who we are, or forbids what a deploy needs."""


class SecretNotFound(DeployError, LookupError):
    """A secret that is to travel with a service was found neither in its file nor in the environment."""


class NotDeployedError(DeployError):
    """A call on a handle that hasn't been sent anywhere yet."""

    def __init__(
        self,
        message: str = "",
        *,
        service: str | None = None,
        reason: str | None = None,
        events: Sequence[str] = (),
    ) -> None:
        if not message:
            message = f'"{service or "this function"}" has not been deployed: call .to(kt.Compute(...)) on it first'
        super().__init__(message, service=service, reason=reason, events=events)


class ServiceNotFoundError(DeployError, LookupError):
    """There is no live service of that name."""


# Calling


class CallError(KubetorchError):
    """The service was there, but this call has no result.

    Attributes
    ----------
    call_id
        The call's public id (``service/ulid``), where it is known.
    """

    def __init__(self, message: str = "", *, service: str | None = None, call_id: str | None = None) -> None:
        super().__init__(message, service=service)
        self.call_id = call_id


class CallTimeoutError(CallError, TimeoutError):
    """The call ran longer than its ``timeout``; it has been cancelled in the pod.

    Attributes
    ----------
    timeout
        The limit in seconds.
    """

    def __init__(
        self,
        message: str = "",
        *,
        service: str | None = None,
        call_id: str | None = None,
        timeout: float | None = None,
    ) -> None:
        if not message:
            limit = f"its timeout of {timeout:g} s" if timeout is not None else "its timeout"
            message = (
                f"the call{_of(service)} ran longer than {limit} and has been cancelled; "
                "give it more with .options(timeout=...)"
            )
        super().__init__(message, service=service, call_id=call_id)
        self.timeout = timeout


class CallCancelledError(CallError):
    """The call was cancelled, by `Call.cancel`, by Stop, or because nobody waits for it any more."""

    def __init__(
        self,
        message: str = "",
        *,
        service: str | None = None,
        call_id: str | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message or f"the call{_of(service)} was cancelled", service=service, call_id=call_id)
        self.reason = reason


_SIGNAL_HINTS = {
    "SIGSEGV": "native code crashed",
    "SIGBUS": "native code crashed",
    "SIGILL": "native code crashed: perhaps it was built for another processor",
    "SIGFPE": "native code crashed",
    "SIGABRT": "native code gave up",
    "SIGKILL": "something outside this service killed it, often the system because memory ran out",
    "SIGTERM": "something asked it to end",
}


def _signal_name(number: int) -> str:
    try:
        return _signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _death(cause: str | None, exit_code: int | None, signal: int | None, limit: int | None) -> tuple[str, str]:
    """How a worker ended, and what its user may do about it."""
    if cause == "oom":
        return (
            f"was killed: it used more than its memory_limit of {_size(limit)}"
            if limit is not None
            else "was killed: the memory ran out"
        ), "Ask for more with kt.Compute(memory_limit=...), or hold less in memory at once"
    if cause == "restart":
        return "was restarted on request while this call ran", "Call again"
    if signal is not None:
        name = _signal_name(signal)
        hint = _SIGNAL_HINTS.get(name)
        return (
            f"was ended by {name}" + (f" ({hint})" if hint else ""),
            "The next call gets a new worker; the call's log may show the reason",
        )
    if exit_code is not None:
        return (
            f"ended itself with exit code {exit_code}",
            "Look in your code, or in the libraries that it uses, for os._exit; the next call gets a new worker",
        )
    return "died", "The next call gets a new worker; the call's log may show the reason"


class WorkerDiedError(CallError):
    """The process that ran the call ended before the call did.

    Parameters
    ----------
    message
        Built from the rest if it is empty.
    cause
        ``"oom"`` (over ``memory_limit``), ``"signal"``, ``"exit"`` (``os._exit``) or ``"restart"``.
    exit_code, signal
        How the process ended; whichever applies.
    limit
        The memory limit in bytes, for ``"oom"``.
    detail
        More, for people.

    Examples
    --------
    >>> error = WorkerDiedError(service="train", cause="oom", limit=512 * 2**20)
    >>> print(str(error).split(". ")[0])
    the worker of service "train" was killed: it used more than its memory_limit of 512Mi
    """

    def __init__(
        self,
        message: str = "",
        *,
        service: str | None = None,
        call_id: str | None = None,
        cause: str | None = None,
        exit_code: int | None = None,
        signal: int | None = None,
        limit: int | None = None,
        detail: str | None = None,
    ) -> None:
        if not message:
            what, todo = _death(cause, exit_code, signal, limit)
            more = f" ({detail})" if detail else ""
            message = f"the worker{_of(service)} {what}{more}. {todo}."
        super().__init__(message, service=service, call_id=call_id)
        self.cause = cause
        self.exit_code = exit_code
        self.signal = signal
        self.limit = limit
        self.detail = detail


class PodLostError(CallError):
    """The pod that ran the call is gone, and with it all that is known of the call: it may have run, or a part of it.

    Attributes
    ----------
    reason
        Why, as far as the backend knows.
    """

    def __init__(
        self,
        message: str = "",
        *,
        service: str | None = None,
        call_id: str | None = None,
        reason: str | None = None,
    ) -> None:
        if not message:
            why = f": {reason}" if reason else ""
            message = (
                f"the pod{_of(service)} was lost while the call ran{why}. The call may have run in part; "
                "call again, or use .options(retries=...) if running it twice does no harm."
            )
        super().__init__(message, service=service, call_id=call_id)
        self.reason = reason


class PodTerminatedError(PodLostError):
    """The cluster ended the pod while the call ran.

    Attributes
    ----------
    evicted, oom_killed
        What the cluster says of it.
    events
        The pod's last events, oldest first, as lines.
    """

    def __init__(
        self,
        message: str = "",
        *,
        service: str | None = None,
        call_id: str | None = None,
        reason: str | None = None,
        evicted: bool = False,
        oom_killed: bool = False,
        events: Sequence[str] = (),
    ) -> None:
        if reason is None:
            reason = "it was evicted" if evicted else "its memory ran out" if oom_killed else None
        super().__init__(message, service=service, call_id=call_id, reason=reason)
        self.evicted = evicted
        self.oom_killed = oom_killed
        self.events = list(events)


class RecordExpiredError(CallError, LookupError):
    """The call has ended, but its result or log is no longer kept."""

    def __init__(self, message: str = "", *, service: str | None = None, call_id: str | None = None) -> None:
        if not message:
            message = (
                f"the pod{_of(service)} no longer keeps the record of call {call_id or '(unknown)'}: "
                "results that nobody reads are kept for an hour. Call again."
            )
        super().__init__(message, service=service, call_id=call_id)


class UnknownCallError(CallError, LookupError):
    """No call of that id is known to the service."""

    def __init__(self, message: str = "", *, service: str | None = None, call_id: str | None = None) -> None:
        if not message:
            message = f"no call {call_id or 'of that id'} is known{_of(service)}; kt.calls() lists those that are"
        super().__init__(message, service=service, call_id=call_id)


class WorkerMembershipChanged(CallError):
    """Replicas joined or left while a call ran on all of them.

    Attributes
    ----------
    added, removed, previous, current
        Names of pods.
    """

    def __init__(
        self,
        message: str = "",
        *,
        service: str | None = None,
        call_id: str | None = None,
        added: Sequence[str] = (),
        removed: Sequence[str] = (),
        previous: Sequence[str] = (),
        current: Sequence[str] = (),
    ) -> None:
        if not message:
            message = f"the pods{_of(service)} changed while the call ran: {len(added)} came, {len(removed)} went"
        super().__init__(message, service=service, call_id=call_id)
        self.added = list(added)
        self.removed = list(removed)
        self.previous = list(previous)
        self.current = list(current)


# Reaching the pod


class ConnectionFailedError(KubetorchError, ConnectionError):
    """The service's address can't be reached, or what answers there isn't a pod of ours.

    Attributes
    ----------
    url
        The address that was tried.
    """

    def __init__(self, message: str = "", *, service: str | None = None, url: str | None = None) -> None:
        super().__init__(message, service=service)
        self.url = url


class AuthenticationError(KubetorchError, PermissionError):
    """The pod refused our token."""


class VersionMismatchError(KubetorchError):
    """Client and pod differ in a version that must agree.

    Attributes
    ----------
    what
        ``"protocol"``, ``"python"`` or ``"cloudpickle"``.
    client, pod
        The two versions.
    """

    def __init__(
        self,
        message: str = "",
        *,
        service: str | None = None,
        what: str | None = None,
        client: str | None = None,
        pod: str | None = None,
    ) -> None:
        if not message:
            here, there = client or "unknown", pod or "unknown"
            message = f"{what or 'the version'} differs: {here} here, {there} in the pod{_of(service)}"
        super().__init__(message, service=service)
        self.what = what
        self.client = client
        self.pod = pod


class SerializationError(KubetorchError):
    """A value can't travel, or can't be rebuilt where it arrived.

    Attributes
    ----------
    type_name
        The type that is in the way.
    path
        Where it sits in the value (``"args[0].model.lock"``).
    """

    def __init__(
        self,
        message: str = "",
        *,
        service: str | None = None,
        type_name: str | None = None,
        path: str | None = None,
    ) -> None:
        super().__init__(message, service=service)
        self.type_name = type_name
        self.path = path


class PayloadTooLargeError(SerializationError):
    """Arguments or a result over 4 GiB.

    Attributes
    ----------
    size, limit
        In bytes.
    """

    def __init__(
        self,
        message: str = "",
        *,
        service: str | None = None,
        type_name: str | None = None,
        path: str | None = None,
        size: int | None = None,
        limit: int | None = None,
    ) -> None:
        if not message:
            what = f"a {type_name}" if type_name else "the value"
            message = (
                f"{what} of {_size(size)} can't travel: {_size(limit)} is the limit. "
                "Write it to storage that both sides see, or send it in parts."
            )
        super().__init__(message, service=service, type_name=type_name, path=path)
        self.size = size
        self.limit = limit


class NotebookError(KubetorchError):
    """Something that works in a notebook only was asked for elsewhere, or the other way round."""


# The user's own


class RemoteError(KubetorchError):
    """An exception of the user's code whose class is missing here, or that can't be rebuilt.

    What arrives is an instance of a class made for it by `remote_error`, which has the name of the original and derives
    from its nearest builtin base too, so that ``except ValueError`` catches what it would have caught in the pod.

    Attributes
    ----------
    type_name
        The original's name with its module.
    remote_traceback
        The pod's traceback as text.
    """

    def __init__(
        self,
        message: str = "",
        *,
        service: str | None = None,
        type_name: str = "Exception",
        remote_traceback: str = "",
        base: str = "Exception",
    ) -> None:
        super().__init__(message, service=service)
        self.type_name = type_name
        self.remote_traceback = remote_traceback
        self.base = base

    def __reduce__(self) -> tuple[Any, ...]:
        if type(self) is RemoteError:
            return super().__reduce__()
        return _rebuild_remote, (self.type_name, self.base, self.args, dict(self.__dict__))


_remote_classes: dict[tuple[str, str], type[RemoteError]] = {}
_MAX_REMOTE_CLASSES = 1000


def _builtin_base(base: str | type[BaseException]) -> type[Exception]:
    """The nearest builtin `Exception` class of `base` that an ordinary error may derive from."""
    if isinstance(base, str):
        found = getattr(builtins, base, None)
        candidates: Sequence[Any] = found.__mro__ if isinstance(found, type) else ()
    else:
        candidates = base.__mro__
    # The iteration protocols give these two a meaning of their own, and a group can't be made from a message.
    unfit = (StopIteration, StopAsyncIteration, BaseExceptionGroup)
    for candidate in candidates:
        builtin = getattr(candidate, "__module__", None) == "builtins"
        if builtin and issubclass(candidate, Exception) and not issubclass(candidate, unfit):
            found_class: type[Exception] = candidate
            return found_class
    return Exception


def _remote_class(type_name: str, base: str | type[BaseException]) -> type[RemoteError]:
    builtin = _builtin_base(base)
    key = type_name, builtin.__name__
    cls = _remote_classes.get(key)
    if cls is None:
        if len(_remote_classes) >= _MAX_REMOTE_CLASSES:
            # Someone makes exception classes in a loop; old ones stay valid, they are only no longer shared.
            _remote_classes.clear()
        bases = (RemoteError,) if builtin is Exception else (RemoteError, builtin)
        name = type_name.rpartition(".")[2] or "RemoteError"
        doc = f"``{type_name}`` as it was raised in a pod; its class is missing here."
        cls = type(name, bases, {"__module__": __name__, "__doc__": doc})
        cls = _remote_classes.setdefault(key, cls)
    return cls


def _rebuild_remote(type_name: str, base: str, args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    return _rebuild(_remote_class(type_name, base), args, state)


def remote_error(
    type_name: str, message: str, traceback: str = "", base: str | type[BaseException] = "Exception"
) -> RemoteError:
    """Make the stand-in for an exception that can't be rebuilt here.

    Parameters
    ----------
    type_name
        Name of the original's class, with its module (``"__main__.MyError"``).
    message
        ``str()`` of the original.
    traceback
        The pod's traceback as text.
    base
        The original's nearest builtin base: its name or the class. One that is no `Exception` (``SystemExit``), and
        ``StopIteration``, which would end a loop here, count as `Exception`.

    Returns
    -------
    RemoteError
        An instance of a subclass of both; one class for each name and base.

    Examples
    --------
    >>> try:
    ...     raise remote_error("lib.BadInput", "negative", base="ValueError")
    ... except ValueError as error:
    ...     print(type(error).__name__, error)
    BadInput negative
    """
    cls = _remote_class(type_name, base)
    return cls(message, type_name=type_name, remote_traceback=traceback, base=_builtin_base(base).__name__)


def from_wire(error: Mapping[str, Any], *, service: str | None = None, call_id: str | None = None) -> KubetorchError:
    """The error that a pod named in an ``error`` object (docs/protocol.md).

    Keywords that the class here doesn't have are left out, so that a newer pod can say more; an unknown type becomes a
    `CallError`.

    Parameters
    ----------
    error
        ``{"type": ..., "message": ..., ...}``.
    service, call_id
        What it was about, if the pod doesn't say so itself.

    Examples
    --------
    >>> from_wire({"type": "CallTimeoutError", "timeout": 2}).timeout
    2
    """
    name = str(error.get("type", ""))
    message = str(error.get("message") or "")
    cls = globals().get(name) if name in __all__ else None
    if not (isinstance(cls, type) and issubclass(cls, KubetorchError)):
        told = f"{name}: {message}" if message else name or "an error without a name"
        return CallError(f"the pod{_of(service)} answered with {told}", service=service, call_id=call_id)
    accepted: set[str] = set(cls.__init__.__kwdefaults__ or ())
    data = {key: value for key, value in error.items() if key in accepted}
    for key, value in (("service", service), ("call_id", call_id)):
        if key in accepted and data.get(key) is None:
            data[key] = value
    if cls is WorkerDiedError and data.get("cause"):
        # The sentence is better made here, where the service's name is known.
        data.setdefault("detail", message or None)
        message = ""
    return cls(message, **data)
