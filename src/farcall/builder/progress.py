"""What whoever waits for a build is told of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from farcall.spec.image import Configure, Copy, ImageSpec
from farcall.wire.builds import BuildEvent

_State = Literal["queued", "cached", "running", "done", "failed"]

TEXT_LIMIT = 64 * 1024  # characters in one event
PROGRESS = "\r"  # in front of a line that the next such line overwrites


def count_steps(spec: ImageSpec) -> int:
    """The base, a Python that is added to it, and all steps that do something; those of the stages and images that are
    copied from as well."""
    steps = 1 + bool(getattr(spec.base, "add_python", ""))
    for step in spec.steps:
        if isinstance(step, Copy) and step.stage is not None:
            steps += count_steps(step.stage)
        elif isinstance(step, Copy) and step.image is not None:
            steps += 1
        steps += not isinstance(step, Configure)
    return steps


class Progress:
    """The steps of one build, numbered as they come. `send` is given events whose `seq` is 0."""

    def __init__(self, steps: int, send: Callable[[BuildEvent], None]) -> None:
        self._described = self._steps = steps
        self._send = send
        self._number = 0

    def step(self, title: str, key: str) -> StepProgress:
        """The next step."""
        self._number += 1
        return StepProgress(self._number, max(self._steps, self._number), title, key, self._send)

    def more(self) -> None:
        """There is one step more than the description says."""
        self._steps += 1

    def restart(self) -> None:
        """The build begins anew."""
        self._number, self._steps = 0, self._described

    def again(self) -> None:
        """The next step takes the place of the last, which has failed."""
        self._number -= 1


class StepProgress:
    """One step of one build."""

    def __init__(self, number: int, steps: int, title: str, key: str, send: Callable[[BuildEvent], None]) -> None:
        self._number = number
        self._steps = steps
        self._title = title
        self._key = key
        self._send = send
        self._begun = 0.0

    def cached(self) -> None:
        """It was done before."""
        self._event("cached")

    def queued(self) -> None:
        """It waits for its turn, or is being done for another build."""
        self._event("queued")

    def running(self) -> None:
        """It begins."""
        self._begun = time.monotonic()
        self._event("running")

    def say(self, text: str) -> None:
        """It has printed something: whole lines. One that begins with `PROGRESS` says how far it is."""
        if text.startswith(PROGRESS):
            self._event("running", progress=text[len(PROGRESS) :].rstrip("\n"))
            return
        for start in range(0, len(text), TEXT_LIMIT):
            self._event("running", text=text[start : start + TEXT_LIMIT])

    def done(self) -> None:
        """It has succeeded."""
        self._event("done")

    def failed(self) -> None:
        """It has not."""
        self._event("failed")

    def _event(self, state: _State, text: str = "", progress: str = "") -> None:
        seconds = time.monotonic() - self._begun if self._begun else 0.0
        self._send(BuildEvent(0, self._number, self._steps, self._title, state, text, progress, seconds, self._key))
