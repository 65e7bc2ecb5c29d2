"""An app whose containers have a volume, and run what they are told to."""

import os
from typing import Any

import farcall

NAME, OTHER = "conformance-volume", "conformance-volume-other"
volume = farcall.Volume.from_name(NAME, create_if_missing=True)
app = farcall.App("volumes", volumes={"/vol": volume})
SELDOM = {"FARCALL_VOLUME_COMMIT_SECONDS": "3600"}


class ToldError(Exception):
    pass


def _run(code: str, given: Any) -> Any:
    names: dict[str, Any] = {"os": os, "volume": volume, "given": given, "farcall": farcall, "ToldError": ToldError}
    exec(code, names)
    return names.get("result")


@app.cls(env=SELDOM)
class Box:
    """One container for each `name`."""

    name: str = farcall.parameter()

    @farcall.method()
    def run(self, code: str, given: Any = None) -> Any:
        return _run(code, given)

    @farcall.method()
    async def run_async(self, code: str) -> Any:
        names: dict[str, Any] = {"os": os, "volume": volume}
        exec(f"async def main():\n    {code}", names)
        return await names["main"]()


@app.function(env=SELDOM, single_use_containers=True)
def once(code: str, given: Any = None) -> Any:
    return _run(code, given)


@app.function(env={"FARCALL_VOLUME_COMMIT_SECONDS": "0.2"}, timeout=60)
def committing_by_itself(code: str) -> Any:
    return _run(code, None)


@app.function(env=SELDOM, volumes={"/vol": volume.read_only()})
def read_only(code: str) -> Any:
    return _run(code, None)


@app.cls(env=SELDOM)
class Failing:
    @farcall.enter()
    def fail(self) -> None:
        with open("/vol/from-enter", "w") as file:
            file.write("enter")
        raise ToldError("enter")

    @farcall.method()
    def never(self) -> None: ...


@app.function(env=SELDOM, retries=farcall.Retries(max_retries=5, initial_delay=0.0))
def train(steps: int, deadly: list[int]) -> tuple[int, int]:
    """A sum that is committed after each step; the n-th container dies in step deadly[n], with the step half done."""
    volume.reload()
    step = total = starts = 0
    if os.path.exists("/vol/state"):
        with open("/vol/state") as file:
            step, total, starts = map(int, file.read().split())
    dies_in = deadly[starts] if starts < len(deadly) else -1
    starts += 1
    while True:
        with open("/vol/state", "w") as file:
            file.write(f"{step} {total} {starts}")
        volume.commit()
        if step == steps:
            return total, starts
        total += step * step
        with open("/vol/state", "w") as file:
            file.write("half")
        if step == dies_in:
            os.kill(os.getpid(), 9)
        step += 1
