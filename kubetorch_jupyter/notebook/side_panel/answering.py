"""`answer`: one JSON text in, one out, at once. What is to be done is done by threads, and told in a later answer.

A question is ``{"v": 1, "client": ..., "do": "look", ...}``; `_Desk` has what can be asked for. The front end has the
same as types (``labextension/src/protocol.ts``).
"""

from __future__ import annotations

import itertools
import json
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import kubetorch_jupyter as kt

from .. import progress
from ..panel import doing
from ..panel.doing import one_line
from ..panel.looking import CallRow, ServiceRow
from .code import call_code, service_code
from .listening import Listener
from .watching import Seen, Watcher

__all__ = ["answer", "install", "uninstall"]

#: What the two sides must agree on.
PROTOCOL = 1
#: Panels that are looked for at once, and outcomes that are kept for each kernel.
_CLIENTS, _OUTCOMES = 8, 50


class _Text:
    """An answer. Where IPython shows it, it is its own text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text

    def __str__(self) -> str:
        return self._text


class _Mistake(Exception):
    """A question that can't be answered, and why."""


class _Desk:
    """Answers the panels of one kernel.

    Parameters
    ----------
    namespace
        The notebook's variables: handles that must learn that their service was torn down.
    """

    def __init__(self, namespace: dict[str, Any]) -> None:
        self._namespace = namespace
        self._lock = threading.Lock()
        self._watchers: dict[str, Watcher] = {}
        self._life = uuid.uuid4().hex
        self._numbers = itertools.count(1)
        #: What is being done to what, in words: to a service, by its name, or to a call, by its id.
        self._busy: dict[str, str] = {}
        self._outcomes: deque[dict[str, Any]] = deque(maxlen=_OUTCOMES)

    def answer(self, text: str) -> dict[str, Any]:
        """What a question's answer says."""
        question = _read(text)
        verb = question.get("do")
        if verb == "look":
            return self._look(question)
        if verb == "stop":
            name, call = _word(question, "service"), _word(question, "call")
            return self._begin(question, call, "is being cancelled", lambda: doing.cancel(name, call))
        if verb in ("restart", "down"):
            name, created = _word(question, "service"), question.get("created")
            words = "is being restarted" if verb == "restart" else "is being torn down"

            def end() -> str:
                _check_life(name, created)
                return doing.restart(name) if verb == "restart" else doing.tear_down(name, self._namespace)

            return self._begin(question, name, words, end)
        if verb == "code":
            name, id = _word(question, "service"), question.get("call")
            if isinstance(id, str):
                function = _word(question, "function")
                return self._begin(question, "", "", lambda: call_code(name, id, function))
            return self._begin(question, "", "", lambda: service_code(name))
        raise _Mistake(f"there is nothing to do that is called {verb!r}")

    # -- looking -----------------------------------------------------------------------------------------------------

    def _look(self, question: Mapping[str, Any]) -> dict[str, Any]:
        client = _word(question, "client")
        selected, log_of = _name(question, "service"), _name(question, "log")
        seen = self._watcher(client).ask(selected, log_of)
        since = question.get("since")
        generation, at = (_number(since, "log"), _number(since, "at")) if isinstance(since, dict) else (0, 0)
        heard = question.get("heard")
        # Numbers begin anew with each kernel.
        known = _number(heard, "n") if isinstance(heard, dict) and heard.get("life") == self._life else 0
        with self._lock:
            busy = dict(self._busy)
            outcomes = [each for each in self._outcomes if each["client"] == client and each["n"] > known]
        told: dict[str, Any] = {"life": self._life, "busy": busy, "outcomes": outcomes, "progress": _progress()}
        return {**told, **_seen(seen, generation, at)} if seen is not None else told

    def _watcher(self, client: str) -> Watcher:
        with self._lock:
            watcher = self._watchers.pop(client, None)
            if watcher is None:
                watcher = Watcher("kubetorch-side-panel")
                idle = [name for name, each in self._watchers.items() if each.idle]
                for name in idle or list(self._watchers)[: max(0, len(self._watchers) - _CLIENTS + 1)]:
                    del self._watchers[name]
            self._watchers[client] = watcher  # the newest last
            return watcher

    # -- doing -------------------------------------------------------------------------------------------------------

    def _begin(self, question: Mapping[str, Any], what: str, words: str, work: Callable[[], str]) -> dict[str, Any]:
        """Have it done by a thread of its own; the outcome is told in the answers to the same client's looks."""
        client = _word(question, "client")
        with self._lock:
            if what in self._busy:
                raise _Mistake(f'"{what}" {self._busy[what]} already')
            if what:
                self._busy[what] = words
        outcome: dict[str, Any] = {"client": client, "id": question.get("id"), "do": question["do"]}

        def run() -> None:
            try:
                outcome["text"] = work()
            except Exception as e:  # all of it is to be shown
                outcome["error"] = one_line(e)
            with self._lock:
                self._busy.pop(what, None)
                self._outcomes.append({**outcome, "n": next(self._numbers)})
                watchers = list(self._watchers.values())
            for watcher in watchers:
                watcher.soon()

        threading.Thread(target=run, name="kubetorch-side-panel-action", daemon=True).start()
        return {"begun": True}


def _check_life(name: str, created: Any) -> None:
    """That a service is still in the life that was shown when it was chosen."""
    now = next((info.created for info in kt.services() if info.name == name), None)
    if now is None:
        raise kt.ServiceNotFoundError(f'there is no service "{name}" any more')
    if now != created:
        raise kt.ServiceNotFoundError(f'"{name}" was deployed anew meanwhile, so it was left as it is')


def _progress() -> list[dict[str, Any]]:
    now = time.monotonic()
    return [
        {
            "id": line.id,
            "text": line.status.text,
            "state": line.status.state.value,
            "share": line.status.share,
            "age": now - line.at,
        }
        for line in progress.recent()
    ]


def _seen(seen: Seen, generation: int, at: int) -> dict[str, Any]:
    look, log, now = seen.look, seen.log, time.time()
    begin, text = log.since(generation, at)
    return {
        "age": time.monotonic() - seen.at,
        "problem": look.problem,
        "services": [_service(row, now) for row in look.services],
        "selected": look.selected,
        "calls": [_call(row, now) for row in look.calls],
        "moreCalls": look.more_calls,
        "log": {"of": look.log_of, "generation": log.generation, "begin": begin, "text": text}
        if look.selected is not None
        else None,
    }


def _service(row: ServiceRow, now: float) -> dict[str, Any]:
    # Times as spans: the clocks of the browser and of the kernel may differ.
    return {
        "name": row.name,
        "where": row.where,
        "state": row.state,
        "created": row.created,
        "age": max(0.0, now - row.created),
        "detached": row.detached,
        "asksFor": row.asks_for,
        "owner": row.owner,
        "calls": row.calls,
        "memory": row.memory,
        "cpu": row.cpu,
        "gpus": list(row.gpus),
        "reason": row.reason,
    }


def _call(row: CallRow, now: float) -> dict[str, Any]:
    return {
        "id": row.id,
        "function": row.function,
        "state": row.state,
        "took": None if row.started is None else max(0.0, (row.ended or now) - row.started),
        "log": row.log,
        "owner": row.owner,
        "active": row.active,
    }


# -- questions ---------------------------------------------------------------------------------------------------------


def _read(text: str) -> dict[str, Any]:
    try:
        question = json.loads(text)
    except (TypeError, ValueError, RecursionError) as e:
        raise _Mistake(f"the question is no JSON: {e}") from None
    if not isinstance(question, dict):
        raise _Mistake("the question is no JSON object")
    if question.get("v") != PROTOCOL:
        raise _Mistake(
            f"the side panel asks in version {question.get('v')!r} of its protocol, and kubetorch_jupyter "
            f"{kt.__version__} in this kernel answers in {PROTOCOL}: install the same version in both places, restart "
            "the kernel and reload the page"
        )
    return question


def _name(question: Mapping[str, Any], key: str) -> str | None:
    value = question.get(key)
    if value is not None and not isinstance(value, str):
        raise _Mistake(f"{key} is no text")
    return value


def _word(question: Mapping[str, Any], key: str) -> str:
    value = _name(question, key)
    if not value:
        raise _Mistake(f"{key} is missing")
    return value


def _number(question: Mapping[str, Any], key: str) -> int:
    value = question.get(key, 0)
    return value if type(value) is int else 0


# -- the kernel's one --------------------------------------------------------------------------------------------------

_desk: _Desk | None = None
_listener: Listener | None = None


def _answer(text: str) -> str:
    head = {"v": PROTOCOL, "version": kt.__version__, "loaded": _desk is not None}
    try:
        body = _desk.answer(text) if _desk is not None else {}
    except _Mistake as e:
        body = {"error": str(e)}
    except Exception as e:  # the panel shows it; in the kernel nobody would
        body = {"error": one_line(e)}
    return json.dumps({**head, **body})


def answer(text: str) -> _Text:
    """The answer to a question of the side panel; never raises, and never waits longer than a moment.

    Examples
    --------
    >>> json.loads(str(answer("no JSON")))["loaded"]
    False
    """
    return _Text(_answer(text))


def install(shell: Any) -> None:
    """Begin to answer; a second time changes nothing."""
    global _desk, _listener
    if _desk is not None:
        return
    _desk = _Desk(shell.user_ns)
    kernel = getattr(shell, "kernel", None)
    if kernel is not None:
        _listener = Listener(kernel, _answer)
        _listener.install()


def uninstall() -> None:
    """Answer no more, except that the extension isn't loaded."""
    global _desk, _listener
    if _listener is not None:
        _listener.uninstall()
    _desk = _listener = None
