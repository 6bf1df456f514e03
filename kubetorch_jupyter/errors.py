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
* `Cancelled` (BaseException): what a cancelled ``def`` sees in a pod; defined in `pod_server.cancelled`

A user's exception normally arrives as itself and is none of these. All of them carry what they know as attributes and
can be pickled, because a service may call a service.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pod_server.cancelled import Cancelled

from .error_base import KubetorchError, describe_death, describe_size, of_service
from .remote_error import RemoteError, remote_error

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

    reason: str | None = None
    events: Sequence[str] = ()


class StartupError(DeployError):
    """The pod runs, but the code can't be loaded in it: an import fails, ``__init__`` raises, a package is missing.

    Attributes
    ----------
    traceback
        The pod's traceback as text, or None.
    module
        Name of the module that is missing in the pod, or None.
    step
        The image step that failed, as it was written, or None.
    exit_code
        What the step's command ended with; None when it didn't come to that.
    output
        The last lines of the step's output.
    """

    traceback: str | None = None
    module: str | None = None
    step: str | None = None
    exit_code: int | None = None
    output: str | None = None


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
    """The cluster doesn't know who we are, or forbids what a deploy needs.

    Attributes
    ----------
    rule
        The line of a Role that would allow what was forbidden, or None.
    """

    rule: str | None = None


class SecretNotFound(DeployError, LookupError):
    """A secret that is to travel with a service was found neither in its file nor in the environment."""


class NotDeployedError(DeployError):
    """A call on a handle that hasn't been sent anywhere yet."""

    def _say(self) -> str:
        return f'"{self.service or "this function"}" has not been deployed: call .to(kt.Compute(...)) on it first'


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

    call_id: str | None = None


class CallTimeoutError(CallError, TimeoutError):
    """The call ran longer than its ``timeout``; it has been cancelled in the pod.

    Attributes
    ----------
    timeout
        The limit in seconds.
    """

    timeout: float | None = None

    def _say(self) -> str:
        limit = f"its timeout of {self.timeout:g} s" if self.timeout is not None else "its timeout"
        return (
            f"the call{of_service(self.service)} ran longer than {limit} and has been cancelled; "
            "give it more with .options(timeout=...)"
        )


class CallCancelledError(CallError):
    """The call was cancelled, by `Call.cancel`, by Stop, or because nobody waits for it any more."""

    reason: str | None = None

    def _say(self) -> str:
        return f"the call{of_service(self.service)} was cancelled"


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

    cause: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    limit: int | None = None
    detail: str | None = None

    def _say(self) -> str:
        what, todo = describe_death(self.cause, self.exit_code, self.signal, self.limit)
        more = f" ({self.detail})" if self.detail else ""
        return f"the worker{of_service(self.service)} {what}{more}. {todo}."


class PodLostError(CallError):
    """The pod that ran the call is gone, and with it all that is known of the call: it may have run, or a part of it.

    Attributes
    ----------
    reason
        Why, as far as the backend knows.
    """

    reason: str | None = None

    def _say(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        return (
            f"the pod{of_service(self.service)} was lost while the call ran{why}. The call may have run in part; "
            "call again, or use .options(retries=...) if running it twice does no harm."
        )


class PodTerminatedError(PodLostError):
    """The cluster ended the pod while the call ran.

    Attributes
    ----------
    evicted, oom_killed
        What the cluster says of it.
    events
        The pod's last events, oldest first, as lines.
    """

    evicted: bool = False
    oom_killed: bool = False
    events: Sequence[str] = ()

    def _say(self) -> str:
        self.reason = self.reason or (
            "it was evicted" if self.evicted else "its memory ran out" if self.oom_killed else None
        )
        return super()._say()


class RecordExpiredError(CallError, LookupError):
    """The call has ended, but its result or log is no longer kept."""

    def _say(self) -> str:
        return (
            f"the pod{of_service(self.service)} no longer keeps the record of call {self.call_id or '(unknown)'}: "
            "results that nobody reads are kept for an hour. Call again."
        )


class UnknownCallError(CallError, LookupError):
    """No call of that id is known to the service."""

    def _say(self) -> str:
        which = self.call_id or "of that id"
        return f"no call {which} is known{of_service(self.service)}; kt.calls() lists those that are"


class WorkerMembershipChanged(CallError):
    """Replicas joined or left while a call ran on all of them.

    Attributes
    ----------
    added, removed, previous, current
        Names of pods.
    """

    added: Sequence[str] = ()
    removed: Sequence[str] = ()
    previous: Sequence[str] = ()
    current: Sequence[str] = ()

    def _say(self) -> str:
        changes = f"{len(self.added)} came, {len(self.removed)} went"
        return f"the pods{of_service(self.service)} changed while the call ran: {changes}"


# Reaching the pod


class ConnectionFailedError(KubetorchError, ConnectionError):
    """The service's address can't be reached, or what answers there isn't a pod of ours.

    Attributes
    ----------
    url
        The address that was tried.
    """

    url: str | None = None


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

    what: str | None = None
    client: str | None = None
    pod: str | None = None

    def _say(self) -> str:
        here, there = self.client or "unknown", self.pod or "unknown"
        return f"{self.what or 'the version'} differs: {here} here, {there} in the pod{of_service(self.service)}"


class SerializationError(KubetorchError):
    """A value can't travel, or can't be rebuilt where it arrived.

    Attributes
    ----------
    type_name
        The type that is in the way.
    path
        Where it sits in the value (``"args[0].model.lock"``).
    """

    type_name: str | None = None
    path: str | None = None


class PayloadTooLargeError(SerializationError):
    """Arguments or a result over 4 GiB.

    Attributes
    ----------
    size, limit
        In bytes.
    """

    size: int | None = None
    limit: int | None = None

    def _say(self) -> str:
        what = f"a {self.type_name}" if self.type_name else "the value"
        return (
            f"{what} of {describe_size(self.size)} can't travel: {describe_size(self.limit)} is the limit. "
            "Write it to storage that both sides see, or send it in parts."
        )


class NotebookError(KubetorchError):
    """Something that works in a notebook only was asked for elsewhere, or the other way round."""


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
        return CallError(f"the pod{of_service(service)} answered with {told}", service=service, call_id=call_id)
    accepted = cls._fields
    data = {key: value for key, value in error.items() if key in accepted}
    for key, value in (("service", service), ("call_id", call_id)):
        if key in accepted and data.get(key) is None:
            data[key] = value
    if cls is WorkerDiedError and data.get("cause"):
        # The sentence is better made here, where the service's name is known.
        data.setdefault("detail", message or None)
        message = ""
    return cls(message, **data)
