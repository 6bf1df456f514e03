"""Runs in a pod, with nothing of the tests but this file: executes notebooks and scripts there, as somebody would whose
notebook server runs in the cluster.

    python inside.py FOLDER

``FOLDER`` holds notebooks (``*.ipynb``) and scripts (``*.py``); each notebook is executed in place, and beside each
script its output and status are left. Ends with a line that says so.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kubetorch_jupyter as kt

#: How many run at once.
_BESIDE = 3


def execute(path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=120, kernel_name="python3")
    env = {**os.environ, "KT_USERNAME": _user(path)}
    try:
        asyncio.run(client.async_execute(cwd=str(path.parent), env=env))
    except Exception as e:  # what it has shown until then says more, and the test looks at it
        print(f"{path.name}: {e}", flush=True)
    nbformat.write(notebook, path)


def run(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kubetorch_jupyter", str(path)],
        env={**os.environ, "KT_USERNAME": _user(path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    path.with_suffix(".json").write_text(json.dumps({"status": done.returncode, "output": done.stdout}))


def _user(path: Path) -> str:
    """One for each, as if they were several people's: they run beside each other, and call their services the same."""
    return f"{os.environ['KT_USERNAME']}-{path.stem.replace('_', '-')}"


def run_and_end(path: Path) -> None:
    """What it leaves ends with it: together they ask for more than a small node has."""
    began = time.monotonic()
    (execute if path.suffix == ".ipynb" else run)(path)
    for info in kt.services():
        if info.owner.get("user") == _user(path):
            kt.teardown(info.name)
    print(f"{path.name}: {time.monotonic() - began:.1f} s", flush=True)


def main(folder: Path) -> None:
    with ThreadPoolExecutor(_BESIDE) as pool:
        list(pool.map(run_and_end, (*sorted(folder.glob("*.ipynb")), *sorted(folder.glob("*.py")))))
    print("inside: all have run", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
