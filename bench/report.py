"""What was measured, as a table, as JSON and as a picture."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from bench.measure import ROOT, Bar, Figure, Measured, Row

_NAME_WIDTH = 34


class Verdict(NamedTuple):
    """A bar and whether it is reached; None where that cannot be told, because what it compares with has no figure."""

    text: str
    reached: bool | None

    def __str__(self) -> str:
        return f"{self.text}: {'not judged' if self.reached is None else 'reached' if self.reached else 'MISSED'}"


def verdicts(row: Row, figures: dict[str, Figure]) -> list[Verdict]:
    """What became of the promises of a row."""
    return [Verdict(_describe(row, bar), _is_reached(row, bar, figures)) for bar in row.bars]


def _describe(row: Row, bar: Bar) -> str:
    word = "at least" if row.more_is_better else "at most"
    if bar.of is None:
        return f"{word} {bar.limit:,.10g} {row.unit}"
    if bar.limit < 1:
        return f"{word} 1/{1 / bar.limit:.3g} of {bar.of}"
    return f"{word} {f'{bar.limit:.3g} times ' if bar.limit != 1 else 'that of '}{bar.of}"


def _is_reached(row: Row, bar: Bar, figures: dict[str, Figure]) -> bool | None:
    own = next(iter(figures.values()))
    of = figures[bar.of] if bar.of is not None else None
    if not own.values or (of is not None and not of.values):
        return None
    limit = bar.limit if of is None else bar.limit * of.median
    return own.median >= limit if row.more_is_better else own.median <= limit


def advantage(row: Row, own: Figure, other: Figure) -> float | None:
    """How many times as good the first is as the second, a peer; None where either has no figure."""
    if not own.values or not other.values or min(own.median, other.median) <= 0:
        return None
    return own.median / other.median if row.more_is_better else other.median / own.median


def table(measured: Measured) -> str:
    """All rows with all contenders: minimum, median and maximum over the rounds, and farcall's advantage."""
    return "\n".join(_table(measured))


def _table(measured: Measured) -> Iterator[str]:
    header = f"{'':{_NAME_WIDTH}} {'n':>8} {'min':>11} {'median':>11} {'max':>11}   farcall is better by"
    yield f"rounds: {measured.rounds}; minimum, median and maximum are those of the rounds' figures"
    if measured.load[0] > 0.25 * len(os.sched_getaffinity(0)):
        yield f"NOT QUOTABLE: others were using this machine, its load was {measured.load[0]:.1f} before this began"
    yield header
    for row in measured.rows:
        figures = measured.figures[row.name]
        advantages = _advantages(row, figures)
        yield ""
        yield f"{row.name} [{row.unit}]: {row.what}; {'more' if row.more_is_better else 'less'} is better"
        for contender, figure in figures.items():
            yield f"  {contender:{_NAME_WIDTH - 2}} {_cells(figure, advantages.get(contender))}"
        for verdict in verdicts(row, figures):
            yield f"    {verdict}"
    if measured.isolation:
        off = [kind for kind, there in measured.isolation.items() if not there]
        on = [kind for kind, there in measured.isolation.items() if there]
        yield ""
        yield f"containers had: {', '.join(on)}" + (f"; they had NO {', '.join(off)}" if off else "")


def _cells(figure: Figure, better: float | None) -> str:
    if not figure.values:
        return _short(figure.missing) or "no figure"
    text = f"{figure.count:>8,}" + "".join(
        f" {_number(value):>11}" for value in (min(figure.values), figure.median, max(figure.values))
    )
    if better is not None:
        text += f"   {better:,.3g} times"
    return text + (f"   (not in all rounds: {_short(figure.missing)})" if figure.missing else "")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:60]} ... {line[-135:]}"


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def as_json(measured: Measured) -> dict[str, Any]:
    """Everything, the values of each round included."""
    return {
        "environment": environment() | {"load_before": measured.load},
        "rounds": measured.rounds,
        "isolation": measured.isolation,
        "rows": [
            {
                "name": row.name,
                "unit": row.unit,
                "what": row.what,
                "more_is_better": row.more_is_better,
                "targets": [verdict._asdict() for verdict in verdicts(row, measured.figures[row.name])],
                "contenders": {
                    contender: _figure_as_json(figure) for contender, figure in measured.figures[row.name].items()
                },
                "farcall_is_better_by": _advantages(row, measured.figures[row.name]),
            }
            for row in measured.rows
        ],
    }


def _advantages(row: Row, figures: dict[str, Figure]) -> dict[str, float | None]:
    own, of_own = next(iter(figures.values())), next(iter(row.contenders.values()))
    return {name: advantage(row, own, figures[name]) for name, peer in row.contenders.items() if peer != of_own}


def _figure_as_json(figure: Figure) -> dict[str, Any]:
    if not figure.values:
        return {"missing": figure.missing or "no figure"}
    found: dict[str, Any] = {
        "count": figure.count,
        "min": min(figure.values),
        "median": figure.median,
        "max": max(figure.values),
        "values": figure.values,
    }
    return found | ({"missing": figure.missing} if figure.missing else {})


def environment() -> dict[str, Any]:
    """Where and with what it was measured."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": len(os.sched_getaffinity(0)),
        "memory_mb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 1_000_000,
        "python": platform.python_version(),
        "packages": {
            name: _version(name) for name in ("farcall", "ray", "celery", "redis", "numpy", "msgspec", "uvloop")
        },
    }


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def write_json(measured: Measured, path: Path) -> None:
    """Writes `as_json` to a file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(as_json(measured), indent=1) + "\n")


def write_plot(measured: Measured, path: Path) -> bool:
    """Draws the rows that have figures as a PNG; False where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in measured.rows if any(figure.values for figure in measured.figures[row.name].values())]
    if not rows:
        return False
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    picture, axes = pyplot.subplots(lines, columns, figsize=(6 * columns, 2.6 * lines), squeeze=False)
    for place in axes.flat[len(rows) :]:
        place.axis("off")
    for place, row in zip(axes.flat, rows, strict=False):
        _draw(place, row, measured.figures[row.name])
    found = environment()
    picture.suptitle(
        f"median of the rounds ({measured.rounds}), lines from minimum to maximum; dashed: target"
        f" ({found['processors']} processors, Python {found['python']}, {found['system']})"
    )
    picture.tight_layout(rect=(0, 0, 1, 0.98))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=110)
    pyplot.close(picture)
    return True


def _draw(axes: Any, row: Row, figures: dict[str, Figure]) -> None:
    shown = {contender: figure for contender, figure in figures.items() if figure.values}
    medians = [figure.median for figure in shown.values()]
    spread = [
        [max(0.0, figure.median - min(figure.values)) for figure in shown.values()],
        [max(0.0, max(figure.values) - figure.median) for figure in shown.values()],
    ]
    colours = ["tab:orange" if contender.startswith("farcall") else "tab:gray" for contender in shown]
    bars = axes.barh(list(shown), medians, xerr=spread, color=colours, ecolor="black", capsize=3)
    axes.bar_label(bars, [_number(value) for value in medians], padding=4, fontsize=8)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_title(f"{row.name} [{row.unit}], {'more' if row.more_is_better else 'less'} is better", fontsize=10)
    for bar in row.bars:
        if bar.of is None:
            axes.axvline(bar.limit, color="tab:green", linestyle="--")
    axes.tick_params(labelsize=8)
