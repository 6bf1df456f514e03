"""What the calls of `test_output` print, and what of it has to arrive.

`SOURCE` is a cell's text; the test runs it as well, to know what every call prints.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["SOURCE", "assert_complete", "expected"]

SOURCE = r"""
import subprocess
import sys
import threading


def pieces(who, lines, wide):
    '''What one call prints, piece by piece: (how, text).'''
    for i in range(lines):
        at = f"{who} {i:05d}"
        kind = i % 250
        if wide and i in (lines // 3, lines // 2, lines * 2 // 3):
            # 1 MiB in a line: of one-byte, of three-byte and of four-byte characters.
            unit = ("x", "漢", "🎉")[(i > lines // 3) + (i > lines // 2)]
            yield "print", f"{at} {unit * (2**20 // len(unit.encode()))}\n"
        elif kind == 7:
            yield "print", f"{at}  10 %\r{at}  55 %\r"
            yield "print", f"{at} 100 %\r\n"
        elif kind == 11:
            yield "print", f"\x1b[31m{at} red\x1b[0m and \x1b[1;38;5;208morange\x1b[0m\n"
        elif kind == 13:
            yield "print", f"{at} an open end, "
            yield "print", "closed by "
            yield "print", "three pieces\n"
        elif kind == 17:
            yield "print", f"{at} é 漢字 🎉 👩‍🔬 \u202eRTL\n"
        elif kind == 19:
            yield "print", f"{at}\n\n\n"
        elif kind == 23:
            yield "thread", f"{at} from a thread\n"
        elif kind == 29:
            yield "child", f"{at} from a child\n"
        elif kind == 31:
            yield "thread child", f"{at} from a thread's child\n"
        elif kind == 37:
            yield "write", f"{at} by sys.stdout.buffer é\n"
        else:
            yield "print", f"{at} a line\n"
    yield "print", f"{who} the end, and no newline"


def say(how, text):
    if how == "print":
        print(text, end="")
    elif how == "write":
        sys.stdout.buffer.write(text.encode())
    elif how == "child":
        # By a shell: slim images have one, and not always an echo beside it.
        subprocess.run(["sh", "-c", 'echo "$0"', text[:-1]])
    else:
        inner = how.removeprefix("thread").strip() or "print"
        thread = threading.Thread(target=say, args=(inner, text))
        thread.start()
        thread.join()


def speak(who, lines, wide=False):
    for how, text in pieces(who, lines, wide):
        say(how, text)
    return who


async def speak_async(who, lines, wide=False):
    import asyncio
    for n, (how, text) in enumerate(pieces(who, lines, wide)):
        say(how, text)
        if n % 100 == 0:
            await asyncio.sleep(0)
    return who
"""

_PREFIX = re.compile(r"\x1b\[\d+m([\w-]+·\d+)\x1b\[0m ")


def expected(who: str, lines: int, wide: bool = False) -> str:
    """Everything that a call prints."""
    namespace: dict[str, Any] = {}
    exec(SOURCE, namespace)
    make: Callable[..., Iterator[tuple[str, str]]] = namespace["pieces"]
    return "".join(text for _, text in make(who, lines, wide))


def assert_complete(text: str, calls: dict[str, str]) -> int:
    """Assert that a cell's output is exactly what its calls print, each in its order, but for the prefixes.

    Parameters
    ----------
    text
        What the cell shows.
    calls
        What each call prints, by its first word.

    Returns
    -------
    int
        How many lines were ended because another call had something to say: their ends are nobody's bytes.
    """
    # [before the first prefix, prefix, text, prefix, text, ...]
    parts = _PREFIX.split(text)
    segments = [("", parts[0])] if parts[0] else []
    segments += zip(parts[1::2], parts[2::2], strict=True)
    names: dict[str, str] = {}
    at = dict.fromkeys(calls, 0)
    breaks = 0
    for number, (prefix, segment) in enumerate(segments):
        name = names.setdefault(prefix, segment.split(" ", 1)[0])
        assert name in calls, f"nobody's bytes after {prefix!r}: {segment[:200]!r}"
        want, here = calls[name], at[name]
        if want.startswith(segment, here):
            at[name] += len(segment)
            continue
        another = number + 1 < len(segments) and segments[number + 1][0] != prefix
        assert another and segment.endswith("\n") and want.startswith(segment[:-1], here), (  # noqa: PT018
            f"{name} at {here}: {_difference(segment, want[here : here + len(segment)])}"
        )
        at[name] += len(segment) - 1
        breaks += 1
    for name, want in calls.items():
        assert at[name] == len(want), f"{name} ends at {at[name]} of {len(want)}: {want[at[name] :][:200]!r}"
    return breaks


def _difference(have: str, want: str) -> str:
    pairs = enumerate(zip(have, want, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(have), len(want)))
    start = max(first - 40, 0)
    return f"after {first} characters {have[start : first + 80]!r} instead of {want[start : first + 80]!r}"
