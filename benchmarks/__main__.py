"""``python -m benchmarks [W1 …]``: measure, print, and end with 1 when a goal isn't reached."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import kubetorch_jupyter as kt

from . import guard, machine, places, report, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12
from .peers import PEERS
from .rows import Row, measure

WORKLOADS: dict[str, Sequence[Row]] = {
    f"W{number}": module.ROWS
    for number, module in enumerate((w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12), start=1)
}
#: In one turn, since some peers take longer to start than to answer.
_TOGETHER = (("W2", "W3", "W5"), ("W6", "W7"))
_DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    """Do what the command line says."""
    given = _arguments()
    machine.unset_what_changes_the_figures()
    run = _read(given.read) if given.read else _measured(given)
    if given.markdown:
        given.markdown.write_text(report.markdown(run))
    if given.picture:
        _draw(run, given.picture)
    if given.write_docs:
        report.write_docs(_DOCS / "performance.md", run)
        _draw(run, _DOCS / "images" / "performance.svg")
        guard.remember(run)
    sys.exit(1 if any(goal["reached"] is False for row in run["rows"] for goal in row["goals"]) else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="W", help=f"of {', '.join(WORKLOADS)}; default all")
    parser.add_argument("--peers", action="store_true", help="beside other libraries, each in its own environment")
    parser.add_argument("--cluster", action="store_true", help="also on the kubeconfig's cluster, namespace and image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures, written after each workload")
    parser.add_argument("--read", type=Path, nargs="+", metavar="FILE", help="measure nothing: what --json has written")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the tables")
    parser.add_argument("--picture", type=Path, metavar="FILE", help=".svg or .png")
    parser.add_argument("--write-docs", action="store_true", help="into docs/performance.md, and the guard's bounds")
    given = parser.parse_args()
    if given.write_docs and given.names:
        parser.error("--write-docs takes a full run, or several with --read")
    if unknown := set(given.names) - set(WORKLOADS):
        parser.error(f"there is no workload {', '.join(sorted(unknown))}")
    return given


def _draw(run: dict[str, Any], file: Path) -> None:
    # matplotlib takes half a second that a run without a picture needn't spend.
    from .picture import draw

    draw(run, file)


def _read(files: Sequence[Path]) -> dict[str, Any]:
    """Several runs as one; of a row that several have, the last."""
    runs = [json.loads(file.read_text()) for file in files]
    rows = {(row["name"], row["place"]): row for run in runs for row in run["rows"]}
    return {
        **runs[0],
        "runs": len(runs),
        "peers": {name: version for run in runs for name, version in run["peers"].items()},
        "rows": sorted(rows.values(), key=_position),
    }


def _position(row: dict[str, Any]) -> int:
    return [row.name for rows in WORKLOADS.values() for row in rows].index(row["name"])


def _turns(names: Sequence[str]) -> Iterator[list[Row]]:
    """The rows that are measured in turn with each other."""
    left = list(names)
    while left:
        together = next((group for group in _TOGETHER if left[0] in group), (left[0],))
        yield [row for name in together if name in left for row in WORKLOADS[name]]
        left = [name for name in left if name not in together]


def _measured(given: argparse.Namespace) -> dict[str, Any]:
    run: dict[str, Any] = {"machine": machine.look(), "rounds": given.rounds, "peers": {}, "rows": []}
    print(machine.described(run["machine"]))
    with ExitStack() as stack:
        there: list[places.Place] = [stack.enter_context(places.local())]
        if given.cluster:
            there += stack.enter_context(places.cluster(_on_the_cluster()))
        for rows in _turns(given.names or list(WORKLOADS)):
            results = measure(rows, there, PEERS if given.peers else (), given.rounds)
            for result in results:
                row = result.summary()
                run["rows"].append(row)
                run["peers"] |= result.versions
                print(report.line(row), flush=True)
            for peer, why in sorted({pair for result in results for pair in result.left_out.items()}):
                print(f"   without {peer}: {why}", flush=True)
            run["rows"].sort(key=_position)
            # After each, for who stops it.
            if given.json:
                given.json.write_text(json.dumps(run, indent=1))
    return run


def _on_the_cluster() -> kt.Compute:
    """A service of the cluster, while one without a namespace stays on this machine."""
    kt.config.backend = "auto"
    return kt.Compute(namespace=kt.config.namespace or _current_namespace())


def _current_namespace() -> str:
    from kubetorch_jupyter.backends.kubernetes.backend import kubernetes_backend
    from kubetorch_jupyter.transport.portal import get_portal

    kt.config.backend = "kubernetes"
    namespace = get_portal().run(kubernetes_backend(kt.Compute()).space()).namespace
    kt.config.backend = "auto"
    return namespace


if __name__ == "__main__":
    main()
