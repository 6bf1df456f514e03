"""Tracebacks as plain data, and real traceback objects made of them again in another process.

A frame can't travel, but code that raises at a given place of a given file can be compiled: its frame has the file, the
line, the columns and the name that the original had, which is all that a traceback shows.
"""

from __future__ import annotations

import ast
import linecache
import os
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["FrameData", "capture", "format_frames", "is_framework", "rebuild"]

#: ``[file, line, function, qualified name, first line of the function, last line, column, last column, sources,
#: module]``; sources are ``[first line number, [text, ...]]`` around the line.
FrameData = list[Any]

#: Frames of these packages are ours, or serve us, and say nothing to the user.
_FRAMEWORK = frozenset(("pod_server", "kubetorch_jupyter", "cloudpickle"))
#: A traceback of more frames keeps its first and last ones.
_MAX_FRAMES = 400
#: How many lines before and after the line itself travel.
_AROUND = 2
_MAX_LINE = 1000


def is_framework(frame: types.FrameType) -> bool:
    """Whether a frame is this project's own, or one between it and the user's."""
    name = frame.f_globals.get("__name__")
    # Python leaves out the frames of an import itself, but only where the import is a statement.
    return isinstance(name, str) and (name.partition(".")[0] in _FRAMEWORK or name.startswith("importlib._bootstrap"))


def capture(tb: types.TracebackType | None) -> list[FrameData]:
    """The user's frames of a traceback, outermost first."""
    frames: list[tuple[types.TracebackType, types.CodeType]] = []
    while tb is not None:
        if not is_framework(tb.tb_frame):
            frames.append((tb, tb.tb_frame.f_code))
        tb = tb.tb_next
    if len(frames) > _MAX_FRAMES:
        frames[_MAX_FRAMES // 2 : -_MAX_FRAMES // 2] = []
    for file in {code.co_filename for _, code in frames}:
        linecache.checkcache(file)
    return [_capture_frame(tb, code) for tb, code in frames]


def _capture_frame(tb: types.TracebackType, code: types.CodeType) -> FrameData:
    line = tb.tb_lineno or code.co_firstlineno
    end, col, end_col = line, None, None
    if hasattr(code, "co_positions") and tb.tb_lasti >= 0:
        for i, position in enumerate(code.co_positions()):
            if i == tb.tb_lasti // 2:
                start_line, end_line, start, stop = position
                if start_line == line and end_line is not None:
                    end, col, end_col = end_line, start, stop
                break
    first = max(1, line - _AROUND)
    lines = [
        linecache.getline(code.co_filename, n, tb.tb_frame.f_globals).rstrip("\n")[:_MAX_LINE]
        for n in range(first, min(end, line + 20) + _AROUND + 1)
    ]
    while lines and not lines[-1]:
        lines.pop()
    qualname = getattr(code, "co_qualname", code.co_name)
    return [
        code.co_filename,
        line,
        code.co_name,
        qualname,
        code.co_firstlineno,
        end,
        col,
        end_col,
        [first, lines],
        module if isinstance(module := tb.tb_frame.f_globals.get("__name__"), str) else "",
    ]


def format_frames(frames: Iterable[FrameData]) -> str:
    """Frames as Python's traceback text, without its first line."""
    out: list[str] = []
    for file, line, name, _, _, _, _, _, (first, lines), _ in frames:
        out.append(f'  File "{file}", line {line}, in {name}\n')
        at = line - first
        if 0 <= at < len(lines) and lines[at].strip():
            out.append(f"    {lines[at].strip()}\n")
    return "".join(out)


def rebuild(frames: Iterable[FrameData]) -> types.TracebackType | None:
    """A real traceback object with these frames.

    Raises
    ------
    Exception
        When the data isn't what `capture` makes.
    """
    tb: types.TracebackType | None = None
    for data in reversed(list(frames)):
        frame, lasti = _make_frame(data, _known_file(data))
        tb = types.TracebackType(tb, frame, lasti, int(data[1]))
    return tb


def _known_file(data: FrameData) -> str:
    """The file name under which the frame's lines can be read here; lines that only the other side has are added."""
    file, line, (first, lines), module = str(data[0]), int(data[1]), data[8], str(data[9])
    at = line - first
    text = lines[at] if 0 <= at < len(lines) else ""
    # A local module was unpacked there and is the user's own file here.
    own = getattr(sys.modules.get(module), "__file__", None)
    if text and own and own != file and os.path.basename(own) == os.path.basename(file):
        linecache.checkcache(own)
        if linecache.getline(own, line).rstrip("\n")[:_MAX_LINE] == text:
            return str(own)
    linecache.checkcache(file)
    here = linecache.getline(file, line).rstrip("\n")[:_MAX_LINE]
    if not text or here == text:
        return file
    if here:
        file = f"pod:{file}"  # the same path, but another file: its own lines must not be shown for the pod's
    _add_lines(file, first, lines)
    return file


def _add_lines(file: str, first: int, lines: list[str]) -> None:
    entry = linecache.cache.get(file)
    known: list[str] = list(entry[2]) if entry is not None and len(entry) == 4 else []
    end = first - 1 + len(lines)
    known += ["\n"] * (end - len(known))
    known[first - 1 : end] = [f"{text}\n" for text in lines]
    # A modification time of None keeps linecache from looking for the file and dropping the entry.
    linecache.cache[file] = (sum(map(len, known)), None, known, file)


class _Here(Exception):
    """What the made frames raise."""


def _make_frame(data: FrameData, file: str) -> tuple[types.FrameType, int]:
    _, line, name, qualname, first, end, col, end_col, _, module = data
    line, first, end = int(line), max(1, min(int(first), int(line))), max(int(end), int(line))
    if col is None or end_col is None:
        col, end_col, end = *_whole_line(file, line), line  # Python draws no carets under a whole line
    where: dict[str, Any] = {"lineno": line, "end_lineno": end, "col_offset": col, "end_col_offset": end_col}
    raising = ast.Raise(exc=ast.Name(id="_Here", ctx=ast.Load(), **where), cause=None, **where)
    arguments = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    function = _function_def(arguments, raising, first, end)
    module = compile(ast.Module(body=[function], type_ignores=[]), file, "exec")
    code = next(c for c in module.co_consts if isinstance(c, types.CodeType))
    changes: dict[str, Any] = {"co_name": str(name)}
    if sys.version_info >= (3, 11):
        changes["co_qualname"] = str(qualname)
    code = code.replace(**changes)
    try:  # with the module's name the frame counts as the user's also when the exception travels on
        exec(code, {"_Here": _Here, "__name__": str(module) or "__main__", "__file__": file})
    except _Here as e:
        tb = e.__traceback__
        inner = tb.tb_next if tb is not None else None
        if inner is not None:
            return inner.tb_frame, inner.tb_lasti
    raise AssertionError("the frame's code didn't raise")


def _whole_line(file: str, line: int) -> tuple[int, int]:
    """First and last column of a line's text, in bytes as the compiler counts them."""
    text = linecache.getline(file, line).rstrip()
    return len(text) - len(text.lstrip()), len(text.encode("utf-8", "surrogatepass"))


def _function_def(arguments: ast.arguments, raising: ast.Raise, first: int, end: int) -> ast.FunctionDef:
    extra: Mapping[str, Any] = {"type_params": []} if sys.version_info >= (3, 12) else {}
    return ast.FunctionDef(
        name="f",
        args=arguments,
        body=[raising],
        decorator_list=[],
        returns=None,
        type_comment=None,
        lineno=first,
        end_lineno=end,
        col_offset=0,
        end_col_offset=0,
        **extra,
    )
