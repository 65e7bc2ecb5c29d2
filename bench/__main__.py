"""`python -m bench calls`: measure, print the table, write JSON and a plot."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from bench import calls, report
from bench.measure import ROOT, run_rounds

RESULTS = ROOT / "bench" / "results"


def main() -> int:
    """Runs the command line and returns its exit code: 0, 130 when interrupted. A missed target is no failure."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    options = names.add_parser("calls", help="calls, maps, starts, large values, command line, memory")
    options.add_argument("--rounds", type=_positive, default=4, metavar="N", help="how many rounds (default 4)")
    options.add_argument("--only", action="append", metavar="ROW", help="only rows whose name begins so; repeatable")
    options.add_argument("--no-ray", action="store_true", help="leave Ray out")
    options.add_argument("--json", type=Path, default=RESULTS / "calls.json", metavar="PATH")
    options.add_argument("--plot", type=Path, default=RESULTS / "calls.png", metavar="PATH")
    given = parser.parse_args()

    rows = [row for row in calls.ROWS if not given.only or row.name.startswith(tuple(given.only))]
    if not rows:
        parser.error(f"no row begins with {' or '.join(given.only)}; rows: {', '.join(row.name for row in calls.ROWS)}")
    peers = [peer for peer in calls.PEERS if not (given.no_ray and peer == calls.RAY)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    measured = run_rounds(rows, peers, given.rounds, lambda line: print(line, file=sys.stderr))
    print(report.table(measured))
    report.write_json(measured, given.json)
    print(f"\n{given.json}")
    if report.write_plot(measured, given.plot):
        print(given.plot)
    return 0 if measured.rounds == given.rounds else 130


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
