"""`python -m bench timeline`: the start of a container from an image, step by step, as a picture of a real run.

Debian with numpy; the module that the container loads says when its first line runs and when numpy is imported. The
container drawn is the one with the median time of several, after one that nobody looks at.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from bench.peers.builds import Workshop
from farcall.content.ingest import ingest_directory
from farcall.interpreters import private
from farcall.spec.container import Interpreter
from farcall.spec.function import FunctionSpec, MethodSpec, Source, TreeRef
from farcall.spec.image import Pip
from farcall.wire import messages
from farcall.worker.container import Container, End
from farcall.worker.filesystems import Root

STARTS = 9
_MODULE = """\
import time
print("first line", time.monotonic())
import numpy
print("numpy imported", time.monotonic())
def function():
    return numpy.zeros(1)
"""
# The launcher's steps, in the words of the picture.
_STEPS = {
    "cgroup": "request, cgroup, network",
    "init": "fork of pid 1",
    "namespaces": "namespaces",
    "root file system": "mount of the image, overlay, /proc, /dev",
    "cgroups": "enter cgroups",
    "user namespace": "user namespace, seccomp",
    "seccomp": "user namespace, seccomp",
    "runner": "exec of the image's Python",
}


class Span(NamedTuple):
    """A part of a start: what it is, from when to when, in milliseconds since the request."""

    name: str
    begin: float
    end: float


class _Watcher:
    """Hears what one container has to say while it starts."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.loaded: asyncio.Future[None] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self.said: dict[str, float] = {}

    def on_made(self, container: Container) -> None:
        pass

    def on_stopping(self, container: Container) -> None:
        pass

    def on_loaded(self, container: Container, error: bytes | None) -> None:
        if error is None:
            self.loaded.set_result(None)
        else:
            self.loaded.set_exception(RuntimeError("the module could not be imported"))

    def on_message(self, container: Container, message: Any, fds: tuple[int, ...]) -> None:
        if isinstance(message, messages.Print):
            for line in message.text.splitlines():
                what, _, when = line.rpartition(" ")
                if what:
                    self.said[what] = float(when)

    def on_gone(self, container: Container, end: End, started: list[Any], unstarted: list[Any]) -> None:
        if not self.loaded.done():
            self.loaded.set_exception(RuntimeError(end.describe()))
        self.gone.set_result(None)


async def _start(workshop: Workshop, function: FunctionSpec, number: int) -> list[Span]:
    """Starts a container and ends it; what its start was made of."""
    watcher = _Watcher()
    container = workshop.worker.start(f"ta-timeline{number}", "ap-timeline", function, b"", watcher)
    await watcher.loaded
    spans: list[Span] = []
    at = 0.0
    for step, end in container.timeline.items():
        name = _STEPS.get(step)
        if name is None:
            continue
        if spans and spans[-1].name == name:
            spans[-1] = spans[-1]._replace(end=1e3 * end)
        else:
            spans.append(Span(name, at, 1e3 * end))
        at = 1e3 * end
    for name, what in (
        ("Python starts, farcall's runner is imported", "first line"),
        ("import numpy", "numpy imported"),
    ):
        end = 1e3 * (watcher.said[what] - container.created_at)
        spans.append(Span(name, at, end))
        at = end
    workshop.worker.kill(container, "seen")
    await watcher.gone
    return spans


def measure(scratch: Path) -> list[list[Span]]:
    """The starts, fastest first."""
    workshop = Workshop(scratch)
    try:
        image = workshop.build(Pip("pip", ("numpy",)))
        workshop.settle()
        image = workshop.builder.images.get(image.image_id)
        assert image.python is not None
        details = image.python.details()
        interpreter = Interpreter(details.executable, details.version, details.tag, (), str(private.existing(details)))
        root = Root(image.root, interpreter, image.config.env, image.config.workdir, image.config.entrypoint)
        workshop.worker.find_root = lambda image_id: root
        (scratch / "source").mkdir()
        (scratch / "source" / "timeline_module.py").write_text(_MODULE)
        with workshop.store.lease("timeline") as lease:
            tree = ingest_directory(lease, scratch / "source")
            function = FunctionSpec(
                function_id="fu-timeline",
                name="function",
                source=Source("timeline_module", "function", paths=("/code",)),
                methods=(MethodSpec(""),),
                image_id=image.image_id,
                trees=(TreeRef(tree, "/code"),),
            )
            starts = [workshop.run(_start(workshop, function, number)) for number in range(STARTS + 1)]
        return sorted(starts[1:], key=lambda spans: spans[-1].end)
    finally:
        workshop.close()


def draw(spans: list[Span], path: Path) -> None:
    """The start as bars, one below the other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 0.42 * len(spans) + 1.2))
    for row, span in enumerate(spans):
        axes.barh(
            row, span.end - span.begin, left=span.begin, color="tab:orange" if row < len(spans) - 2 else "tab:blue"
        )
        axes.text(span.end + 1, row, f"{span.end - span.begin:.1f} ms", va="center", fontsize=9)
    axes.set_yticks(range(len(spans)), [span.name for span in spans])
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds since the request", xlim=(0, spans[-1].end * 1.12))
    axes.set_title(f"A container from an image of Debian and numpy, {os.cpu_count()} processors", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(path: Path) -> None:
    """Measures, prints, draws."""
    with tempfile.TemporaryDirectory(prefix="timeline-") as scratch:
        starts = measure(Path(scratch))
    median = starts[len(starts) // 2]
    for span in median:
        print(f"{span.begin:8.1f} {span.end:8.1f} ms  {span.name}")
    draw(median, path)
    print(path)
