"""``python -m benchmarks.peers.serve MODULE``: one peer in its own environment, asked as the package says."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Start the peer, answer until the input ends, end it."""
    # What libraries print must not get among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    module = importlib.import_module(f"benchmarks.peers.{sys.argv[1]}")
    start = time.perf_counter()
    peer = module.Peer()
    try:
        peer.call()
        say({"first": time.perf_counter() - start, "version": module.VERSION})
        for line in sys.stdin:
            question, *arguments = json.loads(line)
            try:
                say({"value": getattr(peer, question)(*arguments)})
            except Exception as e:
                say({"error": f"{type(e).__name__}: {e}".splitlines()[0][:200]})
    finally:
        peer.close()


if __name__ == "__main__":
    main()
