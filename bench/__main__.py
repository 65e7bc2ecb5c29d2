"""`python -m bench calls`, `images`, `scale` or `elsewhere`: measure, print the table, write JSON and a plot."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from bench import burst, calls, coldstart, elsewhere, images, report, scale, timeline
from bench.measure import ROOT, run_rounds

RESULTS = ROOT / "bench" / "results"


def main() -> int:
    """Runs the command line and returns its exit code: 0, 130 when interrupted. A missed target is no failure."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    names.add_parser("calls", help="calls, maps, starts, large values, command line, memory")
    names.add_parser("images", help="the content store: taking files in, hashing; builds")
    names.add_parser("elsewhere", help="a server on another machine, over ssh with a delay")
    names.add_parser(
        "scale", help="containers for a load, spawned calls, the scheduler and the autoscaler alone, an idle server"
    )
    for name, options in names.choices.items():
        options.add_argument("--rounds", type=_positive, default=4, metavar="N", help="how many rounds (default 4)")
        options.add_argument(
            "--only", action="append", metavar="ROW", help="only rows whose name begins so; repeatable"
        )
        options.add_argument("--no-ray", action="store_true", help="leave Ray out")
        options.add_argument("--no-celery", action="store_true", help="leave Celery out")
        options.add_argument("--json", type=Path, default=RESULTS / f"{name}.json", metavar="PATH")
        options.add_argument("--plot", type=Path, default=RESULTS / f"{name}.png", metavar="PATH")
    options = names.add_parser("timeline", help="the start of a container from an image, step by step, as a picture")
    options.add_argument("--plot", type=Path, default=RESULTS / "timeline.png", metavar="PATH")
    options = names.add_parser("burst", help="load, containers and latency over a burst, as a picture")
    options.add_argument("--plot", type=Path, default=RESULTS / "burst.png", metavar="PATH")
    options = names.add_parser(
        "coldstart", help="the first start on a machine that has nothing of an image, as a picture"
    )
    options.add_argument("--plot", type=Path, default=RESULTS / "coldstart.png", metavar="PATH")
    given = parser.parse_args()
    pictures = {"timeline": timeline, "burst": burst, "coldstart": coldstart}
    if given.benchmark in pictures:
        pictures[given.benchmark].main(given.plot)
        return 0

    benchmark = {"calls": calls, "elsewhere": elsewhere, "images": images, "scale": scale}[given.benchmark]
    rows = [row for row in benchmark.ROWS if not given.only or row.name.startswith(tuple(given.only))]
    if not rows:
        names_of_rows = ", ".join(row.name for row in benchmark.ROWS)
        parser.error(f"no row begins with {' or '.join(given.only)}; rows: {names_of_rows}")
    left_out = {calls.RAY: given.no_ray, scale.CELERY: given.no_celery}
    peers = [peer for peer in benchmark.PEERS if not left_out.get(peer)]
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
