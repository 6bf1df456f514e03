"""Tab completion of ``%kt`` and ``%%kt``: commands, options, names of services and variables. Asks no pod."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher

from ..config import settings
from .commands import COMMANDS
from .options import COMPUTE

__all__ = ["make_matcher"]

_COMPUTE = [f"--{name.replace('_', '-')}" for name in COMPUTE]
_RUN = ["-n", "--name", "-i", "--in", "-o", "--out", "--bg", "--timeout", "--fresh", "--local", "--help", *_COMPUTE]
_DEPLOY = ["--only", "--name", "--init", "--help", *_COMPUTE]
_NOT_THEIRS = frozenset(("In", "Out", "exit", "quit", "get_ipython", "open"))
_OPTIONS = {
    "logs": ["-f", "--follow"],
    "attach": ["--wait"],
    "cancel": ["--all"],
    "down": ["--all"],
    "config": ["--save"],
    "fetch": ["-n", "--name"],
}


def make_matcher(shell: Any, known: Callable[[], Iterable[str]]) -> Any:
    """The matcher for IPython's completer.

    Parameters
    ----------
    shell
        The running IPython.
    known
        Gives the names of services without asking any of them.
    """

    @context_matcher()  # type: ignore[untyped-decorator]
    def kt_matcher(context: CompletionContext) -> SimpleMatcherResult:
        line = context.line_with_cursor[: context.cursor_position]
        words = line.split()
        if not words or words[0] not in ("%kt", "%%kt", "kt") or line == words[0]:
            return {"completions": []}
        token = "" if line[-1].isspace() else words[-1]
        before = words[1:] if token == "" else words[1:-1]
        found = _candidates(words[0], before, shell, known)
        # A list of names: the part after the last comma.
        head, comma, part = token.rpartition(",")
        return {
            "completions": [
                SimpleCompletion(text=f"{head}{comma}{each}", type="kt") for each in found if each.startswith(part)
            ],
            "suppress": True,
            "matched_fragment": token,
        }

    return kt_matcher


def _candidates(magic: str, before: list[str], shell: Any, known: Callable[[], Iterable[str]]) -> list[str]:
    variables = [
        name for name in shell.user_ns if not name.startswith("_") and name not in ("In", "Out", "exit", "quit")
    ]
    last = before[-1] if before else ""
    if magic == "%%kt":
        if last in ("-i", "--in", "-o", "--out"):
            return sorted(variables)
        if last in ("-n", "--name"):
            return sorted(known())
        first = before[0] if before else ""
        if first == "deploy":
            return _DEPLOY
        return _RUN if before else ["run", "deploy", *_RUN]
    if not before:
        return [*COMMANDS, "help"]
    command = before[0]
    options = [*_OPTIONS.get(command, []), "--help"]
    if command == "config":
        return [*settings(), *options] if len(before) == 1 else options
    if command == "asyncio":
        return ["own", "nest", *options]
    if command in ("preview", "fetch"):
        return [*sorted(variables), *options]
    if command in ("down", "restart", "logs", "calls", "cancel", "attach"):
        return [*sorted(set(known())), *options]
    return options
