from __future__ import annotations

import builtins
import copy
import pickle
import re

import pytest

import pod_server.exceptions
from kubetorch_jupyter import errors
from kubetorch_jupyter import remote_error as remote_errors
from kubetorch_jupyter.errors import (
    CallError,
    CallTimeoutError,
    Cancelled,
    ConfigError,
    DeployError,
    KubetorchError,
    NotDeployedError,
    PayloadTooLargeError,
    PodLostError,
    PodTerminatedError,
    RecordExpiredError,
    RemoteError,
    UnknownCallError,
    WorkerDiedError,
    from_wire,
    remote_error,
)

CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, KubetorchError)]

KUBETORCH_NAMES = [
    "ImagePullError",
    "KubernetesCredentialsError",
    "PodContainerError",
    "ResourceNotAvailableError",
    "ServiceHealthError",
    "ServiceTimeoutError",
    "StartupError",
    "PodTerminatedError",
    "NotebookError",
    "VersionMismatchError",
    "SecretNotFound",
    "SerializationError",
    "WorkerMembershipChanged",
]


def test_kubetorchs_names_are_kept() -> None:
    assert set(KUBETORCH_NAMES) <= set(errors.__all__)


def test_the_docstring_draws_the_tree_as_it_is() -> None:
    drawn: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"( *)[*+-] `(\w+)`(?: \((\w+)\))?", line)
        if match is None:
            continue
        depth, name, builtin = len(match[1]), match[2], match[3]
        while above and above[-1][0] >= depth:
            above.pop()
        drawn[name] = above[-1][1] if above else "-"
        above.append((depth, name))
        if builtin:
            assert issubclass(getattr(errors, name), getattr(builtins, builtin)), line
    assert set(drawn) == {c.__name__ for c in CLASSES} | {"Cancelled"}
    for name, parent in drawn.items():
        if parent != "-":
            assert getattr(errors, name).__bases__[0] is getattr(errors, parent)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_survives_a_pickle(cls: type[KubetorchError]) -> None:
    # Every keyword that the class takes gets a value of its own, so that a lost one shows.
    keywords = {key: f"<{key}>" for key in cls._fields}
    for name in ("events", "added", "removed", "previous", "current"):
        if name in keywords:
            keywords[name] = ["one", "two"]  # type: ignore[assignment]
    if cls is RemoteError:
        keywords["base"] = "Exception"
    error = cls("what happened; what to do", **keywords)  # type: ignore[arg-type]
    error.add_note("a note")
    for twin in (*(pickle.loads(pickle.dumps(error, p)) for p in range(2, 6)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is cls
        assert str(twin) == twin.message == "what happened; what to do"
        assert vars(twin) == vars(error)
        assert twin.__notes__ == ["a note"]
    for key, value in keywords.items():
        assert getattr(error, key) == value


def test_messages_are_plain_also_where_the_builtin_would_quote_them() -> None:
    assert str(UnknownCallError("no such call")) == "no such call"  # a KeyError's or OSError's str would differ


def test_cancelled_is_the_pods_and_no_exception() -> None:
    assert Cancelled is pod_server.exceptions.Cancelled
    assert not issubclass(Cancelled, Exception)


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (
            WorkerDiedError(service="x", cause="oom", limit=512 * 2**20),
            ['service "x"', "memory_limit of 512Mi", "kt.Compute("],
        ),
        (WorkerDiedError(service="x", cause="signal", signal=11), ["SIGSEGV", "native code", "next call"]),
        (WorkerDiedError(service="x", cause="signal", signal=9), ["SIGKILL", "memory ran out"]),
        (WorkerDiedError(service="x", cause="signal", signal=200), ["signal 200"]),
        (WorkerDiedError(service="x", cause="exit", exit_code=3), ["exit code 3", "os._exit"]),
        (WorkerDiedError(cause="restart"), ["restarted on request"]),
        (WorkerDiedError(), ["died"]),
        (WorkerDiedError(cause="exit", exit_code=3, detail="while it loaded"), ["(while it loaded)"]),
        (CallTimeoutError(service="x", timeout=2.5), ['service "x"', "2.5 s", ".options(timeout=...)"]),
        (CallTimeoutError(), ["its timeout"]),
        (NotDeployedError(service="train"), ['"train"', ".to(kt.Compute(...))"]),
        (PodLostError(service="x", reason="it was evicted"), ["it was evicted", "retries"]),
        (PodTerminatedError(service="x", oom_killed=True), ["its memory ran out"]),
        (
            PayloadTooLargeError(type_name="ndarray", size=5 * 2**30, limit=4 * 2**30),
            ["a ndarray of 5Gi", "4Gi is the limit"],
        ),
        (RecordExpiredError(call_id="x/01"), ["x/01", "an hour"]),
        (UnknownCallError(service="x", call_id="x/01"), ["x/01", "kt.calls()"]),
    ],
)
def test_what_an_error_says(error: KubetorchError, parts: list[str]) -> None:
    for part in parts:
        assert part in str(error)


# From the wire


def test_from_wire_knows_every_class_by_name() -> None:
    for cls in CLASSES:
        error = from_wire({"type": cls.__name__, "message": "m", "something new": 1}, service="s", call_id="c")
        assert type(error) is cls
        assert error.service == "s"
        if isinstance(error, CallError):
            assert error.call_id == "c"


def test_from_wire_keeps_data_and_words_a_death_itself() -> None:
    error = from_wire(
        {"type": "WorkerDiedError", "cause": "signal", "signal": 9, "message": "worker 3 died"}, service="x"
    )
    assert isinstance(error, WorkerDiedError)
    assert (error.cause, error.signal, error.detail) == ("signal", 9, "worker 3 died")
    assert 'service "x"' in str(error)


@pytest.mark.parametrize("name", ["", "NoSuchError", "from_wire", "Cancelled", "__doc__", "pickle"])
def test_from_wire_with_a_type_that_is_none(name: str) -> None:
    error = from_wire({"type": name, "message": "hello"}, service="x")
    assert type(error) is CallError
    assert "hello" in str(error) or not name


# The user's own


@pytest.mark.parametrize(
    "base",
    [c for c in vars(builtins).values() if isinstance(c, type) and issubclass(c, BaseException)],
    ids=lambda c: c.__name__,
)
def test_remote_error_derives_from_the_nearest_builtin(base: type[BaseException]) -> None:
    error = remote_error("lib.mod.Spécial", "é: что-то", "Traceback ...", base)
    assert isinstance(error, RemoteError)
    stands_alone = not issubclass(base, Exception) or issubclass(
        base, (StopIteration, StopAsyncIteration, ExceptionGroup)
    )
    assert isinstance(error, Exception if stands_alone else base)
    assert not isinstance(error, (StopIteration, StopAsyncIteration, GeneratorExit, KeyboardInterrupt, SystemExit))
    assert type(error).__name__ == "Spécial"
    assert (str(error), error.type_name, error.remote_traceback) == ("é: что-то", "lib.mod.Spécial", "Traceback ...")
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is type(error)
    assert vars(twin) == vars(error)
    assert str(twin) == str(error)


def test_remote_error_takes_a_name_or_a_users_class() -> None:
    class Own(LookupError, ValueError):
        pass

    assert isinstance(remote_error("a.Own", "m", base=Own), LookupError)
    assert isinstance(remote_error("a.Own", "m", base="KeyError"), KeyError)
    for name in ("NoSuch", "print", "int", "Cancelled"):
        assert type(remote_error("a.Own", "m", base=name)).__bases__ == (RemoteError,)


def test_remote_error_classes_are_shared_and_bounded() -> None:
    assert type(remote_error("a.B", "1")) is type(remote_error("a.B", "2"))
    assert type(remote_error("a.B", "1")) is not type(remote_error("c.B", "1"))
    for number in range(3000):
        remote_error(f"a.B{number}", "m")
    assert len(remote_errors._remote_classes) <= remote_errors._MAX_REMOTE_CLASSES


def test_the_roots() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(CallTimeoutError, TimeoutError)
    assert issubclass(NotDeployedError, DeployError)
    with pytest.raises(KubetorchError):
        raise ConfigError("x")


def test_a_keyword_that_a_class_has_not() -> None:
    with pytest.raises(TypeError, match="CallTimeoutError has no cause"):
        CallTimeoutError(cause="x")  # type: ignore[call-arg]
