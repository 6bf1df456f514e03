"""What a real cluster said, in situations that were provoked on it: ``recorded/*.json``.

Job, pods and events as the API gives them, cut down to what a diagnosis looks at; ``at`` is when they were read.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubetorch_jupyter.backends.kubernetes.diagnosis import Diagnosis, Facts, diagnose

RECORDED = Path(__file__).parent / "recorded"


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text())
    return found


def diagnosed(name: str, facts: Facts | None = None, **changes: Any) -> Diagnosis:
    seen = {**recorded(name), **changes}
    facts = facts or Facts("train", "team-a", replicas=seen["job"]["spec"]["completions"] if seen["job"] else 1)
    return diagnose(facts, seen["job"], seen["pods"], seen["events"], now=seen["at"])


def unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def api_time(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).isoformat()
