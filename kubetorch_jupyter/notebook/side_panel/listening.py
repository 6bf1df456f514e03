"""How the panel's questions reach us without side effects on what runs.

They are execute requests, because those are what a subshell answers while a cell blocks. To IPython each one is an
execution like any other, once a second, beside the cell that runs: its ``post_execute`` has matplotlib show, and close,
the figures that the cell is still drawing; ipykernel 7 sends what threads of the user print to the newest request, so
that it appears nowhere; and each counts as activity of the kernel, which is then never culled as idle (all measured,
ipykernel 6.31 to 7.4). So the kernel hands ours over before any of that.

Where the kernel is made otherwise than ipykernel's, nothing is changed, and the questions are executed as they stand.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

__all__ = ["KEY", "Listener", "argument"]

#: The name of the panel's expression in an execute request.
KEY = "kubetorch_side_panel"
#: What stands before and after the argument in it; the front end has the same (``labextension/src/question.ts``).
PREFIX = (
    '(lambda s, t: s.modules["kubetorch_jupyter.notebook.side_panel"].answer(t) '
    'if "kubetorch_jupyter.notebook.side_panel" in s.modules '
    'else __import__("importlib.util").util.find_spec("kubetorch_jupyter") is not None)'
    '(__import__("sys"), '
)
SUFFIX = ")"

#: Whether the message that is being handled here is one of ours.
_ours: ContextVar[bool] = ContextVar("kubetorch_side_panel_ours", default=False)


def argument(content: Any) -> str | None:
    """The panel's JSON text in an execute request's content; None for any other request.

    Examples
    --------
    >>> argument({"code": "", "user_expressions": {KEY: PREFIX + '"{}"' + SUFFIX}})
    '{}'
    >>> argument({"code": "", "user_expressions": {KEY: "exit()"}}) is None
    True
    """
    if not isinstance(content, dict) or content.get("code") != "":
        return None
    expressions = content.get("user_expressions")
    if not isinstance(expressions, dict) or list(expressions) != [KEY]:
        return None
    text = expressions[KEY]
    if not isinstance(text, str) or not (text.startswith(PREFIX) and text.endswith(SUFFIX)):
        return None
    try:
        value = ast.literal_eval(text[len(PREFIX) : len(text) - len(SUFFIX)])
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, str) else None


class Listener:
    """Takes the panel's questions out of a kernel's execute requests.

    Parameters
    ----------
    kernel
        ipykernel's.
    answer
        Gives the text for a text; called on the thread of the shell that was asked.
    """

    def __init__(self, kernel: Any, answer: Callable[[str], str]) -> None:
        self._kernel = kernel
        self._answer = answer
        self._execute: Callable[..., Any] | None = None

    def install(self) -> None:
        """Begin; a second time changes nothing, nor does it where the kernel isn't made as it should be."""
        kernel = self._kernel
        handlers = getattr(kernel, "shell_handlers", None)
        known = all(callable(getattr(kernel, name, None)) for name in ("set_parent", "_publish_status"))
        if self._execute is not None or not known or not isinstance(handlers, dict):
            return
        execute = handlers.get("execute_request")
        if execute is None:
            return
        self._execute = execute
        set_parent, publish_status = kernel.set_parent, kernel._publish_status

        def set_parent_of_others(ident: Any, parent: Any, channel: str = "shell") -> None:
            ours = channel == "shell" and isinstance(parent, dict) and argument(parent.get("content")) is not None
            if channel == "shell":
                _ours.set(ours)
            if not ours:
                set_parent(ident, parent, channel)

        def publish_status_of_others(status: str, channel: str, parent: Any = None) -> None:
            if channel != "shell" or not _ours.get():
                publish_status(status, channel, parent)

        kernel.set_parent = set_parent_of_others
        kernel._publish_status = publish_status_of_others
        handlers["execute_request"] = self._handle

    def uninstall(self) -> None:
        """Take it back, unless somebody has put something on top."""
        kernel = self._kernel
        if self._execute is None or kernel.shell_handlers.get("execute_request") != self._handle:
            return
        kernel.shell_handlers["execute_request"] = self._execute
        self._execute = None
        for name in ("set_parent", "_publish_status"):
            delattr(kernel, name)  # the class's own comes back

    def _handle(self, stream: Any, ident: Any, parent: dict[str, Any]) -> Any:
        text = argument(parent.get("content"))
        if text is None:
            assert self._execute is not None
            return self._execute(stream, ident, parent)
        shown = {"status": "ok", "data": {"text/plain": self._answer(text)}, "metadata": {}}
        count = getattr(getattr(self._kernel, "shell", None), "execution_count", 1) - 1
        content: dict[str, Any] = {
            "status": "ok",
            "execution_count": count,
            "user_expressions": {KEY: shown},
            "payload": [],
        }
        self._kernel.session.send(stream, "execute_reply", content, parent, ident=ident)
        return None
