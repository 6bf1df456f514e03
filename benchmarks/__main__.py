"""``python -m benchmarks [W2 …] [--rounds N] [--json FILE]``."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from . import limits
from .workloads import WORKLOADS, Bench, Workload


def measure(workload: Workload, bench: Bench, rounds: int) -> dict[str, Any]:
    """Limit, ours and peer of each round in turn; medians, spreads and ratios."""
    workload.run(bench)  # the first is for caches and threads
    columns = list(zip(*(workload.run(bench) for _ in range(rounds)), strict=True))
    limit, ours, peer = (statistics.median(column) for column in columns)
    return {
        "name": workload.name,
        "what": workload.what,
        "unit": workload.unit,
        "limit": limit,
        "ours": ours,
        "peer": peer,
        "peer_name": workload.peer,
        "spread": [min(columns[1]), max(columns[1])],
        "ours/limit": ours / limit,
        "ours/peer": ours / peer,
        "promised": workload.promised,
        "reached": ours >= workload.promised if workload.higher_is_better else ours <= workload.promised,
    }


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    """Run the workloads asked for and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="W", help=f"of {', '.join(w.name for w in WORKLOADS)}; default all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    if unknown := set(given.names) - {w.name for w in WORKLOADS}:
        parser.error(f"there is no workload {', '.join(sorted(unknown))}")
    chosen = [w for w in WORKLOADS if not given.names or w.name in given.names]
    load = os.getloadavg()[0]
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, load {load:.1f}")
    rows = []
    # Not fork: this process has threads by then.
    context = multiprocessing.get_context("forkserver")
    with limits.server() as port, ProcessPoolExecutor(2, context) as pool:
        bench = Bench(port, pool)
        try:
            for workload in chosen:
                row = measure(workload, bench, given.rounds)
                rows.append(row)
                low, high = row["spread"]
                print(
                    f"{row['name']}  {row['what']}, {row['unit']}: limit {_number(row['limit'])}, "
                    f"ours {_number(row['ours'])} ({_number(low)}-{_number(high)}), {row['peer_name']} "
                    f"{_number(row['peer'])}; ours/limit {row['ours/limit']:.2f}, ours/peer {row['ours/peer']:.2f}; "
                    f"promised {_number(row['promised'])}: {'reached' if row['reached'] else 'NOT REACHED'}"
                )
        finally:
            bench.close()
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))
    sys.exit(0 if all(row["reached"] for row in rows) else 1)


if __name__ == "__main__":
    main()
