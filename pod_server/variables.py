"""References to environment variables in the values of others, as ``set_env_vars`` of an image has them."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["expand"]

_VARIABLE = re.compile(r"\\\$|\$(?:\{(\w+)\}|(\w+))")


def expand(value: str, known: Mapping[str, str]) -> str:
    r"""``$NAME`` and ``${NAME}`` replaced by what they stand for, ``\$`` by a dollar; unknown names stay.

    Examples
    --------
    >>> expand(r"$HOME/bin:${NOWHERE}:\$HOME", {"HOME": "/root"})
    '/root/bin:${NOWHERE}:$HOME'
    """

    def one(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name is None:
            return "$"
        return known.get(name, match[0])

    return _VARIABLE.sub(one, value)
