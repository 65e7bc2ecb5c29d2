"""How images are being built, as a run shows it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from farcall.cli.output import Renderer
from farcall.cli.terminal import Style
from farcall.sdk.events import BuildEnd, BuildStep


class Shown:
    """A renderer, and builds that tell it how they go on."""

    def __init__(self, screen: Any, *, terminal: bool, quiet: bool = False) -> None:
        self.now = 1000.0
        self.err = screen(terminal=terminal)
        self.out = screen(terminal=terminal, screen=self.err if terminal else None)
        self.render = Renderer(
            self.out, self.err, quiet=quiet, clock=lambda: self.now, width=lambda: 100, style=Style(False)
        )

    def step(
        self,
        number: int,
        state: str,
        text: str = "",
        *,
        image: str = "",
        title: str = "pip_install numpy",
        key: str = "",
        progress: str = "",
        seconds: float = 0.0,
    ) -> None:
        self.render(BuildStep(image, number, 3, title, state, text, progress, seconds, key))  # pyright: ignore[reportArgumentType]


Show = Callable[..., Shown]


@pytest.fixture
def show(fake_terminal: Any) -> Show:
    return partial(Shown, fake_terminal)


def test_lines_where_there_is_no_terminal(show: Show) -> None:
    shown = show(terminal=False)
    shown.step(1, "cached", title="debian_slim")
    shown.step(2, "queued")
    shown.step(2, "running")
    shown.step(2, "running", "Collecting numpy\n\x1b[2KInstalling\n")
    shown.now += 12
    shown.step(2, "done", seconds=12)
    shown.step(3, "running", title="RUN true")
    shown.now += 1
    shown.step(3, "done", title="RUN true", seconds=0.5)
    shown.render(BuildEnd("", True))
    assert shown.err.written == (
        "image: step 2 of 3: pip_install numpy\n"
        "  Collecting numpy\n"
        "  Installing\n"
        "image: step 2 of 3 done in 12 s\n"
        "image: step 3 of 3: RUN true\n"
        "image: step 3 of 3 done in 0.5 s\n"
        "image: built in 13 s\n"
    )
    assert shown.out.written == ""


def test_what_is_cached_is_not_worth_a_line(show: Show) -> None:
    shown = show(terminal=False)
    for number in (1, 2, 3):
        shown.step(number, "cached")
    shown.render(BuildEnd("", True))
    assert shown.err.written == ""


def test_a_failure(show: Show) -> None:
    shown = show(terminal=False)
    shown.step(2, "running")
    shown.step(2, "running", "no such package\n")
    shown.step(2, "failed", seconds=3)
    shown.render(BuildEnd("", False))
    assert shown.err.written.splitlines()[-1] == "image: step 2 of 3 failed after 3.0 s: pip_install numpy"


def test_quiet_shows_nothing(show: Show) -> None:
    shown = show(terminal=False, quiet=True)
    shown.step(2, "running")
    shown.step(2, "running", "text\n")
    shown.step(2, "failed", seconds=3)
    assert shown.err.written == shown.out.written == ""


def test_on_a_terminal_the_step_is_drawn_in_place(show: Show) -> None:
    shown = show(terminal=True)
    shown.step(1, "queued")
    assert shown.err.seen() == ["image: step 1 of 3: pip_install numpy, waiting"]
    shown.step(1, "running")
    shown.step(1, "running", "Collecting numpy\n")
    shown.step(1, "running", progress="3 of 12 MiB")
    shown.now += 4
    shown.step(1, "running", progress="6 of 12 MiB")
    assert shown.err.seen() == ["  Collecting numpy", "image: step 1 of 3: pip_install numpy, 4.0 s (6 of 12 MiB)"]
    shown.step(1, "done", seconds=5)
    assert shown.err.seen() == ["  Collecting numpy", "image: step 1 of 3: pip_install numpy, 5.0 s"]
    shown.step(2, "running", title="RUN true")
    shown.render.finish()
    assert shown.err.seen() == ["  Collecting numpy", "image: step 1 of 3: pip_install numpy, 5.0 s"]


def test_progress_without_a_terminal_is_told_now_and_then(show: Show) -> None:
    shown = show(terminal=False)
    shown.step(1, "running", title="FROM debian")
    for seconds in range(25):
        shown.now = 1000.0 + seconds
        shown.step(1, "running", title="FROM debian", progress=f"{seconds} MiB")
    assert shown.err.written.splitlines() == [
        "image: step 1 of 3: FROM debian",
        "image: step 1 of 3: 10 MiB",
        "image: step 1 of 3: 20 MiB",
    ]


def test_a_step_that_two_images_share_is_told_once(show: Show) -> None:
    shown = show(terminal=False)
    for state, text in (("running", ""), ("running", "a line\n"), ("done", "")):
        for image in ("f", "g, h"):
            shown.step(1, state, text, image=image, key="k1", seconds=1)
    shown.step(2, "running", image="g, h", key="k2", title="RUN g")
    assert shown.err.written.splitlines() == [
        "image of f: step 1 of 3: pip_install numpy",
        "  a line",
        "image of f: step 1 of 3 done in 1.0 s",
        "image of g, h: step 2 of 3: RUN g",
    ]
