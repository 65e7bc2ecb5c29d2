"""How images are being built, as lines for people."""

from collections.abc import Callable, Iterator
from typing import Literal

from farcall.sdk.events import BuildEnd, BuildStep

PROGRESS_SECONDS = 10.0  # least time between two lines of one step's progress, where it cannot be drawn in place


class _Step:
    """A step that has begun to run."""

    def __init__(self, event: BuildStep, now: float) -> None:
        self.last = event
        self.began = now - event.seconds
        self.told_at = now

    @property
    def name(self) -> str:
        """Which one it is: "image of f: step 3 of 5"."""
        return f"{_image(self.last.image)}: step {self.last.step} of {self.last.steps}"


class BuildLines:
    """The builds of one program. What comes from the cache is not told; a step that two images share is told once."""

    def __init__(self, clock: Callable[[], float], duration: Callable[[float], str], *, in_place: bool) -> None:
        self._clock = clock
        self._duration = duration
        self._in_place = in_place
        self._running: dict[str, _Step] = {}  # by image
        self._waiting: dict[str, BuildStep] = {}
        self._owners: dict[str, str] = {}  # of steps that two images share: whose events are told
        self._began: dict[str, float] = {}  # images of which a step has run

    @property
    def active(self) -> bool:
        """Whether there is something to draw."""
        return bool(self._running or self._waiting)

    def take(self, event: BuildStep) -> Iterator[tuple[Literal["step", "log"], str]]:
        """What there is to tell of an event: lines of ours, and lines that the step has printed."""
        now = self._clock()
        if event.state == "queued":
            self._waiting[event.image] = event
            return
        self._waiting.pop(event.image, None)
        if event.key and self._owners.setdefault(event.key, event.image) != event.image:
            return
        step = self._running.get(event.image)
        if event.state == "cached":
            return
        if step is None or step.last.step != event.step:
            step = self._running[event.image] = _Step(event, now)
            self._began.setdefault(event.image, step.began)
            if not self._in_place:
                yield "step", f"{step.name}: {event.title}"
        step.last = event
        if event.text:
            step.told_at = now
            for line in event.text.removesuffix("\n").split("\n"):
                yield "log", line
        if event.state == "running":
            if event.progress and not self._in_place and now - step.told_at >= PROGRESS_SECONDS:
                step.told_at = now
                yield "step", f"{step.name}: {event.progress}"
            return
        del self._running[event.image]
        took = self._duration(event.seconds or now - step.began)
        if event.state == "failed":
            yield "step", f"{step.name} failed after {took}: {event.title}"
        elif self._in_place:
            yield "step", f"{step.name}: {event.title}, {took}"
        else:
            yield "step", f"{step.name} done in {took}"

    def end(self, event: BuildEnd) -> Iterator[str]:
        """What there is to tell of an image that is built, or will not be."""
        self._running.pop(event.image, None)
        self._waiting.pop(event.image, None)
        began = self._began.pop(event.image, None)
        if event.built and began is not None:
            yield f"{_image(event.image)}: built in {self._duration(self._clock() - began)}"

    def clear(self) -> None:
        """No more events will come."""
        self._running.clear()
        self._waiting.clear()

    def status(self) -> Iterator[str]:
        """What is being done, a line for each image, to be drawn in place."""
        now = self._clock()
        for step in self._running.values():
            progress = f" ({step.last.progress})" if step.last.progress else ""
            yield f"{step.name}: {step.last.title}, {self._duration(now - step.began)}{progress}"
        for event in self._waiting.values():
            yield f"{_image(event.image)}: step {event.step} of {event.steps}: {event.title}, waiting"


def _image(label: str) -> str:
    return f"image of {label}" if label else "image"
