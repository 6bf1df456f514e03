"""Run the document's complete example with an interpreter that has only the wheel, in an empty folder.

python scripts/complete_example.py PYTHON
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.docs.examples import COMPLETE, dataset_server

#: The checkout must not be what is imported.
_INSTALLED = """
import kubetorch_jupyter, pod_server, sys
for m in (kubetorch_jupyter, pod_server):
    assert m.__file__.startswith(sys.prefix), m
"""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="kt-example-") as folder, dataset_server() as url:
        script = Path(folder) / "script.py"
        script.write_text(_INSTALLED + COMPLETE.source(url) + COMPLETE.after + "print(result)\n")
        runtime_dir = Path(folder) / "run"
        runtime_dir.mkdir(mode=0o700)
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        done = subprocess.run(
            [sys.argv[1], "-m", "kubetorch_jupyter", str(script)],
            cwd=folder,
            env={**env, "KT_RUNTIME_DIR": str(runtime_dir)},
            stdin=subprocess.DEVNULL,
            timeout=120,
        )
        return done.returncode


if __name__ == "__main__":
    sys.exit(main())
