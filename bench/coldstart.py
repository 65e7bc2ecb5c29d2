"""`python -m bench coldstart`: the first start on a machine that has nothing of an image, as a picture of real runs.

The image has torch and is in an object store, or a registry, at the other end of a slow line. One bar for each way to
start: all pulled and unpacked first; only what is opened; and that in the order which an earlier start has shown.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bench.peers.cold import Cold, Span

_COLOURS = {
    "pull": "tab:red",
    "unpack": "tab:pink",
    "list of names": "tab:green",
    "container and Python start": "tab:orange",
    "import torch": "tab:blue",
}


def draw(starts: Mapping[str, list[Span]], received: Mapping[str, float], path: Path) -> None:
    """A bar for each, of its parts one after the other, and the bytes that were fetched for it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 0.7 * len(starts) + 1.8))
    longest = max(sum(span.seconds for span in spans) for spans in starts.values())
    for row, (name, spans) in enumerate(starts.items()):
        at = 0.0
        for span in spans:
            axes.barh(row, span.seconds, left=at, color=_COLOURS[span.name])
            at += span.seconds
        axes.text(at + longest / 100, row, f"{at:.1f} s, {received[name] / 1e6:.0f} MB", va="center", fontsize=9)
    axes.set_yticks(range(len(starts)), list(starts))
    axes.invert_yaxis()
    axes.set(xlabel="seconds", xlim=(0, 1.18 * longest))
    axes.set_title(f"import torch on a cold machine (20 ms, 200 MB/s), {os.cpu_count()} processors", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in _COLOURS.values()]
    axes.legend(handles, list(_COLOURS), fontsize=8, loc="upper right")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(path: Path) -> None:
    """Measures and draws."""
    with tempfile.TemporaryDirectory(prefix="coldstart-") as scratch:
        cold = Cold(Path(scratch))
        starts = cold.starts(1)
    for name, [spans] in starts.items():
        print(f"{sum(span.seconds for span in spans):8.1f} s  {name}: {cold.received[name][0] / 1e6:.0f} MB")
        for span in spans:
            print(f"{span.seconds:10.1f} s  {span.name}")
    received = {name: sizes[0] for name, sizes in cold.received.items()}
    draw({name: spans for name, [spans] in starts.items()}, received, path)
    print(path)
