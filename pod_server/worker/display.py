"""`display` in a pod: a MIME bundle in the call's log, which is displayed in the cell that called."""

from __future__ import annotations

import base64
import builtins
import json
import sys
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from ..wire import LogKind
from .hooks import after_import
from .output import LogHub

__all__ = ["Display", "bundle"]

#: MIME type and the method that gives it, as IPython has them.
_METHODS = (
    ("text/html", "_repr_html_"),
    ("text/markdown", "_repr_markdown_"),
    ("image/svg+xml", "_repr_svg_"),
    ("image/png", "_repr_png_"),
    ("image/jpeg", "_repr_jpeg_"),
    ("application/pdf", "_repr_pdf_"),
    ("text/latex", "_repr_latex_"),
    ("application/json", "_repr_json_"),
    ("application/javascript", "_repr_javascript_"),
)
#: A display of more bytes than this is replaced by a line that says so.
_MAX = 32 << 20


def bundle(obj: Any, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Data and metadata of an object, by MIME type.

    Examples
    --------
    >>> bundle(3)
    ({'text/plain': '3'}, {})
    """
    data: dict[str, Any] = {"text/plain": _text(obj)}
    metadata: dict[str, Any] = {}
    if not isinstance(obj, type):
        for mime, name in _METHODS:
            _add(data, metadata, mime, _call(obj, name))
        _add(data, metadata, "image/png", _figure(obj))
        found = _call(obj, "_repr_mimebundle_", include=include, exclude=exclude)
        if isinstance(found, tuple) and len(found) == 2:
            metadata.update(found[1] or {})
            found = found[0]
        if isinstance(found, Mapping):
            data.update(found)
    # Widgets live where they were made, and that is not the notebook.
    data.pop("application/vnd.jupyter.widget-view+json", None)
    for mime in list(data):
        if (include and mime not in include) or (exclude and mime in exclude):
            del data[mime]
    return data, metadata


def _text(obj: Any) -> str:
    try:
        return repr(obj)
    except Exception as e:  # the user's __repr__
        return f"<{type(obj).__name__}; its repr raised {type(e).__name__}: {e}>"


def _call(obj: Any, name: str, **kwargs: Any) -> Any:
    # From the class, as IPython does: an object that has every attribute (a mock, a proxy) is not asked.
    if not hasattr(type(obj), name):
        return None
    try:
        return getattr(obj, name)(**kwargs)
    except NotImplementedError:
        return None
    except Exception as e:
        print(f"{type(obj).__name__}.{name} raised {type(e).__name__}: {e}", file=sys.stderr)
        return None


def _add(data: dict[str, Any], metadata: dict[str, Any], mime: str, found: Any) -> None:
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict):
        found, metadata[mime] = found
    if found is not None:
        data[mime] = found


def _figure(obj: Any) -> bytes | None:
    module = sys.modules.get("matplotlib.figure")
    if module is None or not isinstance(obj, module.Figure):
        return None
    from .mpl_backend import png

    return png(obj)


def _jsonable(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode()
    return value


class DisplayHandle:
    """What `display(..., display_id=...)` returns: shows something else in the same place.

    Parameters
    ----------
    display
        The function to show with.
    display_id
        The place.
    """

    def __init__(self, display: Callable[..., Any], display_id: str) -> None:
        self._display = display
        self.display_id = display_id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} display_id={self.display_id}>"

    def display(self, obj: Any, **kwargs: Any) -> None:
        """Show in a new place of the same name."""
        self._display(obj, display_id=self.display_id, **kwargs)

    def update(self, obj: Any, **kwargs: Any) -> None:
        """Show in the same place."""
        self._display(obj, display_id=self.display_id, update=True, **kwargs)


class Display:
    """`display` for user code.

    Parameters
    ----------
    hub
        The logs.
    forked
        Whether this is a forked child, which has no way to the notebook but text.
    """

    def __init__(self, hub: LogHub, forked: Callable[[], bool]) -> None:
        self._hub = hub
        self._forked = forked

    def install(self) -> None:
        """Make it a builtin, as in a notebook, and what IPython uses when user code imports that."""
        builtins.display = self.display  # type: ignore[attr-defined]
        after_import("IPython.core.display_functions", self._patch_ipython)
        after_import("tqdm.notebook", _patch_tqdm)

    def _patch_ipython(self, module: Any) -> None:
        module.display = self.display
        module.publish_display_data = self.publish
        module.clear_output = self.clear_output

    def display(
        self,
        *objs: Any,
        include: Any = None,
        exclude: Any = None,
        metadata: dict[str, Any] | None = None,
        transient: dict[str, Any] | None = None,
        display_id: Any = None,
        raw: bool = False,
        clear: bool = False,
        update: bool = False,
        **_: Any,
    ) -> DisplayHandle | None:
        """Show objects in the cell that called, as `IPython.display.display` does.

        Parameters
        ----------
        objs
            What to show.
        include, exclude
            MIME types to send only, or not.
        metadata
            More metadata, by MIME type.
        transient
            More transient data.
        display_id
            Name of the place, or True for a new name.
        raw
            The objects are MIME bundles.
        clear
            Clear the cell first, as `clear_output`.
        update
            Show in the place of that name, instead of a new one.

        Returns
        -------
        DisplayHandle or None
            A handle when `display_id` is given.
        """
        if update and display_id is None:
            raise TypeError("display_id required for update")
        if clear:
            self.clear_output(wait=True)
        transient = dict(transient or {})
        if display_id is not None:
            if display_id is True:
                display_id = uuid.uuid4().hex
            transient["display_id"] = display_id
        for obj in objs:
            found: dict[str, Any] = {}
            data = obj
            if not raw:
                data, found = bundle(obj, include, exclude)
            found.update(metadata or {})
            self.publish(data, found, transient=transient, update=update)
        return DisplayHandle(self.display, display_id) if display_id is not None else None

    def clear_output(self, wait: bool = False) -> None:
        """Clear the cell that called, as `IPython.display.clear_output`; not while other calls write to it too.

        Parameters
        ----------
        wait
            Not before there is something new to show.
        """
        if not self._forked():
            self._hub.current().write(LogKind.DISPLAY, json.dumps({"clear": {"wait": bool(wait)}}).encode())

    def publish(
        self,
        data: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
        source: Any = None,
        *,
        transient: Mapping[str, Any] | None = None,
        update: bool = False,
        **_: Any,
    ) -> None:
        """Show a MIME bundle, as `IPython.display.publish_display_data` does."""
        entry = {
            "data": {mime: _jsonable(value) for mime, value in data.items()},
            "metadata": dict(metadata or {}),
            "transient": dict(transient or {}),
            "update": update,
        }
        if self._forked():
            print(data.get("text/plain", ""))
            return
        raw = json.dumps(entry, default=str, separators=(",", ":")).encode()
        if len(raw) > _MAX:
            print(f"<a display of {len(raw) >> 20} MiB was left out; {_MAX >> 20} MiB is the most>", file=sys.stderr)
            return
        self._hub.current().write(LogKind.DISPLAY, raw)


def _patch_tqdm(module: Any) -> None:
    """A widget can't be shown from a pod: progress bars are text."""
    std = sys.modules["tqdm.std"]
    module.tqdm_notebook = module.tqdm = std.tqdm
    module.tnrange = module.trange = std.trange
