"""A front end's view of a kernel's widgets: their models, kept up to date from comm messages, and clicks."""

from __future__ import annotations

import html
import re
import time
from typing import Any

from tests.kernel.harness import Kernel

__all__ = ["Widgets"]


class Widgets:
    """The widgets of a kernel, read from what it has published so far.

    Parameters
    ----------
    kernel
        Whose.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.models: dict[str, dict[str, Any]] = {}
        self.closed: set[str] = set()
        self._seen = 0

    def refresh(self) -> None:
        """Take in what has come; the lists of the harness are only appended to."""
        comms = self.kernel.comms
        while self._seen < len(comms):
            kind, content = comms[self._seen]
            self._seen += 1
            id = content["comm_id"]
            if kind == "comm_open":
                self.models[id] = dict(content["data"]["state"])
            elif kind == "comm_close":
                self.models.pop(id, None)
                self.closed.add(id)
            elif content["data"].get("method") in ("update", "echo_update") and id in self.models:
                self.models[id].update(content["data"]["state"])

    # -- finding

    def visible(self, root: str) -> list[str]:
        """The models below a root that are shown, in their order."""
        state = self.models.get(root)
        if state is None or "kt-none" in state.get("_dom_classes", ()):
            return []
        below = [self.visible(child.removeprefix("IPY_MODEL_")) for child in state.get("children", ())]
        return [root, *(id for ids in below for id in ids)]

    def roots(self) -> list[str]:
        """The panels, oldest first."""
        self.refresh()
        return [id for id, state in self.models.items() if "kt-panel" in state.get("_dom_classes", ())]

    def text(self, root: str) -> str:
        """What a panel shows, as plain text."""
        self.refresh()
        parts = []
        for id in self.visible(root):
            state = self.models[id]
            parts.append(str(state.get("description") or ""))
            if state.get("_model_name") == "HTMLModel":
                value = re.sub(r"<style>.*?</style>", "", state["value"], flags=re.S)
                parts.append(html.unescape(re.sub(r"</span>|</div>", " ", value)))
        return "\n".join(re.sub(r"<[^>]+>", "", part) for part in parts if part)

    def find(self, root: str, description: str, kind: str = "ButtonModel") -> str | None:
        """The shown widget of that description."""
        self.refresh()
        for id in self.visible(root):
            if self.models[id].get("description") == description and self.models[id]["_model_name"] == kind:
                return id
        return None

    # -- waiting and doing

    def wait_text(self, root: str, text: str, timeout: float = 15) -> str:
        """Wait until a panel shows the text; all that it shows then."""
        deadline = time.monotonic() + timeout
        while text not in (shown := self.text(root)):
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not appear within {timeout} s:\n{shown}\n{self.kernel.log}"
            count = self._seen
            self.kernel.wait_for_comms(count, left)
        return shown

    def wait_no_text(self, root: str, text: str, timeout: float = 15) -> str:
        """Wait until a panel doesn't show the text any more."""
        deadline = time.monotonic() + timeout
        while text in (shown := self.text(root)):
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} is still there after {timeout} s:\n{shown}"
            self.kernel.wait_for_comms(self._seen, left)
        return shown

    def click(self, root: str, description: str) -> None:
        """Press the button of that description; its first, where there are several."""
        id = self.find(root, description)
        assert id is not None, f"there is no button {description!r}:\n{self.text(root)}"
        self.kernel.send_comm(id, {"method": "custom", "content": {"event": "click"}, "buffers": []})

    def set(self, id: str, **state: Any) -> None:
        """Change what a front end may change."""
        self.kernel.send_comm(id, {"method": "update", "state": state, "buffer_paths": []})

    def fill(self, root: str, description: str, value: Any, kind: str = "TextModel") -> None:
        """Fill in a field."""
        id = self.find(root, description, kind)
        assert id is not None, f"there is no field {description!r}"
        key = "value"
        if kind == "DropdownModel":
            key, value = "index", list(self.models[id]["_options_labels"]).index(value)
        self.set(id, **{key: value})
