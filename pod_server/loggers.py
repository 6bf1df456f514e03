"""The notebook's logging, as far as a pod can have it: levels, and handlers that write to standard output or error.

The client describes its root logger with each deploy, and others where code captures them. A pod takes that on, unless
the code has set up something else there.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["describe", "find_logger", "reduce_logger", "set_up"]

_STYLES: dict[type, str] = {
    logging.PercentStyle: "%",
    logging.StrFormatStyle: "{",
    logging.StringTemplateStyle: "$",
}
#: In a pod: what each logger was given here, its level and handlers; None elsewhere.
_given: dict[str, tuple[int, list[logging.Handler]]] | None = None


# -- in the client -----------------------------------------------------------------------------------------------------


def describe(logger: logging.Logger) -> dict[str, Any] | None:
    """What has been set of a logger; None when nothing has.

    Examples
    --------
    >>> describe(logging.getLogger("nobody's"))
    >>> logging.getLogger("mine").setLevel("INFO")
    >>> describe(logging.getLogger("mine"))
    {'name': 'mine', 'level': 20, 'propagate': True, 'handlers': []}
    """
    handlers = [row for row in map(_describe_handler, logger.handlers) if row is not None]
    if logger.level == _default(logger) and not handlers and logger.propagate:
        return None
    return {"name": logger.name, "level": logger.level, "propagate": logger.propagate, "handlers": handlers}


def _default(logger: logging.Logger) -> int:
    return logging.WARNING if logger is logging.root else logging.NOTSET


def _describe_handler(handler: logging.Handler) -> dict[str, Any] | None:
    """A handler that a pod can have; None for files, sockets and classes of somebody's own."""
    if type(handler) is not logging.StreamHandler or not any(handler.stream is s for s in (sys.stdout, sys.stderr)):
        return None
    row: dict[str, Any] = {
        "stream": "stdout" if handler.stream is sys.stdout else "stderr",
        "level": handler.level,
    }
    formatter = handler.formatter
    if type(formatter) is logging.Formatter and (style := _STYLES.get(type(formatter._style))) is not None:
        row["format"] = [formatter._fmt, formatter.datefmt, style]
    return row


def reduce_logger(logger: logging.Logger) -> Any:
    """A captured logger goes by its name, with what has been set of it and of those above it."""
    rows = []
    above: logging.Logger | None = logger
    while above is not None and above is not logging.root:
        row = describe(above)
        if row is not None:
            rows.append(row)
        above = above.parent
    return (find_logger, (logger.name, rows)) if rows else logger.__reduce__()


# -- in the pod --------------------------------------------------------------------------------------------------------


def set_up(root: Mapping[str, Any] | None) -> None:
    """Be a pod, whose root logger is as the client's; None: nothing has been set of that."""
    global _given
    if _given is None:
        _given = {}
    if root is not None:
        _take_on(root)
    elif "root" in _given:
        _take_on({"name": "root", "level": logging.WARNING, "propagate": True, "handlers": []})


def find_logger(name: str, rows: list[dict[str, Any]]) -> logging.Logger:
    """The logger of this name; in a pod as the client's, elsewhere as it is."""
    if _given is not None:
        for row in rows:
            _take_on(row)
    return logging.getLogger(name)


def _take_on(row: Mapping[str, Any]) -> None:
    assert _given is not None
    logger = logging.getLogger(row["name"])
    level, handlers = _given.get(row["name"], (_default(logger), []))
    for handler in handlers:
        logger.removeHandler(handler)
    if logger.level == level:  # else the code has set another one here
        level = row["level"]
        logger.setLevel(level)
        logger.propagate = row["propagate"]
    handlers = [] if logger.handlers else [_make_handler(given) for given in row["handlers"]]
    for handler in handlers:
        logger.addHandler(handler)
    _given[row["name"]] = level, handlers


def _make_handler(row: Mapping[str, Any]) -> logging.Handler:
    handler = logging.StreamHandler(getattr(sys, row["stream"]))
    handler.setLevel(row["level"])
    if "format" in row:
        format, datefmt, style = row["format"]
        handler.setFormatter(logging.Formatter(format, datefmt, style))
    return handler
