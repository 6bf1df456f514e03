"""Run notebooks/demo.ipynb in a real Jupyter kernel and show in this terminal what its cells print, as it arrives.

    python scripts/demo.py [NOTEBOOK]

Ends with 1 when a cell fails. Ctrl-C does what Stop does in a notebook.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

DEMO = Path(__file__).resolve().parent.parent / "notebooks" / "demo.ipynb"


class Terminal:
    """Shows cells and their output, each line of output with the seconds since its cell began."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty()
        self._began = 0.0
        self._at_start = True

    def _dim(self, text: str) -> str:
        return f"\033[2m{text}\033[0m" if self._colour else text

    def cell(self, number: int, code: str) -> None:
        """A cell that is about to run."""
        print()
        for i, line in enumerate(code.splitlines()):
            print(self._dim((f"In [{number}]:" if not i else "...:").rjust(8)), line)
        self._began, self._at_start = time.monotonic(), True

    def message(self, message: dict[str, Any]) -> None:
        """Something that the kernel published."""
        content = message["content"]
        match message["msg_type"]:
            case "stream":
                self._write(content["text"])
            case "display_data" | "update_display_data" | "execute_result":
                self._write(content["data"].get("text/plain", "") + "\n")
            case "error":
                self._write("\n".join(content["traceback"]) + "\n")

    def _write(self, text: str) -> None:
        for line in text.splitlines(keepends=True):
            if self._at_start:
                print(self._dim(f"{time.monotonic() - self._began:6.1f} s"), end=" ")
            print(line, end="")
            self._at_start = line.endswith(("\n", "\r"))
        sys.stdout.flush()


def run(notebook: Path, folder: Path) -> int:
    # A kernel specification of our own, so that it is this interpreter's kernel whatever else is installed here.
    spec = folder / "kernels" / "demo"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "demo", "language": "python"}))
    specs = KernelSpecManager(kernel_dirs=[str(spec.parent)], ensure_native_kernel=False)
    # By Unix sockets in our own folder: nothing for others to read, and no warning of the kernel's that they might.
    manager = KernelManager(
        kernel_name="demo", kernel_spec_manager=specs, transport="ipc", ip=str(folder / "socket"), connection_file=""
    )
    manager.start_kernel(cwd=str(notebook.parent))
    client: BlockingKernelClient = manager.client()
    client.start_channels()
    terminal = Terminal()
    try:
        client.wait_for_ready(timeout=60)
        cells = [c.source for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"]
        for number, code in enumerate(cells, 1):
            terminal.cell(number, code)
            reply = client.execute_interactive(code, allow_stdin=False, output_hook=terminal.message)
            if reply["content"]["status"] != "ok":
                return 1
        return 0
    except KeyboardInterrupt:
        # The kernel is in a process group of its own and has not seen it.
        manager.interrupt_kernel()
        return 130
    finally:
        client.stop_channels()
        manager.shutdown_kernel()


def main() -> int:
    notebook = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else DEMO
    with tempfile.TemporaryDirectory(prefix="kt-demo-") as folder:
        return run(notebook, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
