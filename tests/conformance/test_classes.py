"""Semantics: classes, their hooks, parameters and pools."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import classes_app
import pytest
from classes_app import app

import farcall
from farcall import errors
from tests.conformance.conftest import said, until_it_says

if TYPE_CHECKING:
    from tests.conftest import Installation

# --- inheritance


def test_hooks_and_methods_are_inherited() -> None:
    """Hooks and methods of base classes are a class's own; an override takes the place of what it overrides, and needs
    no decorator to stay a remote method. Hooks with snap=True come first, those of a base class first among them."""
    derived = classes_app.Derived()
    expected = ["base snap", "derived snap", "derived enter 3"]
    assert derived.inherited.remote() == expected
    assert derived.inherited.local() == expected
    assert derived.replaced.remote() == "middle"  # type: ignore[attr-defined]
    assert derived.added.remote() == "middle"
    assert classes_app.Derived(kind="other", size=4).added.remote() == "other"
    assert classes_app.Derived(kind="other", size=4).inherited.remote()[-1] == "derived enter 4"


# --- parameters


def test_parameters_travel_as_they_are() -> None:
    """parameter() of str, int, bytes, bool, with any value of these types; init=False is no parameter."""
    for values in (
        {},
        {"text": "ümlaut \0 \N{SNOWMAN}", "number": -(10**40), "data": bytes(range(256)), "flag": True},
    ):
        expected = {"text": "", "number": 0, "data": b"", "flag": False} | values
        assert classes_app.Parameters(**values).values.remote() == (*expected.values(), 5)  # type: ignore[arg-type]


def test_each_set_has_a_pool_of_its_own() -> None:
    """Equal sets share containers, whoever names them and in whichever order; any other set does not."""
    same = [
        classes_app.Parameters(text="a", number=1),
        classes_app.Parameters(number=1, text="a", flag=False),
        classes_app.Parameters(text="".join(["a"]), number=int("1"), data=b""),
    ]
    assert len({one.identity.remote() for one in same}) == 1
    others = [classes_app.Parameters(text="a"), classes_app.Parameters(text="a", number=2), classes_app.Parameters()]
    assert len({one.identity.remote() for one in (*same, *others)}) == 4


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"text": 1}, "Parameters: the parameter text is a str; 1 is a int"),
        ({"number": "1"}, "the parameter number is a int; '1' is a str"),
        ({"number": True}, "the parameter number is a int; True is a bool"),
        ({"number": 1.0}, "the parameter number is a int; 1.0 is a float"),
        ({"data": "x"}, "the parameter data is a bytes"),
        ({"flag": 1}, "the parameter flag is a bool; 1 is a int"),
        ({"text": None}, "the parameter text is a str; None is a NoneType"),
        ({"noted": 6}, "Parameters has no parameter noted; it has text, number, data, flag"),
        ({"text": "x" * 70_000}, r"the arguments of Parameters\(\) have 70,\d\d\d bytes; the limit is 65,536"),
    ],
)
def test_wrong_parameters(arguments: dict[str, Any], match: str) -> None:
    """Wrong types, unknown names and too much of them are refused where the class is called, saying what is allowed."""
    with pytest.raises(errors.InvalidError, match=match):
        classes_app.Parameters(**arguments)
    with pytest.raises(errors.InvalidError, match=r"by keyword: text=\.\.\., number=\.\.\., data="):
        classes_app.Parameters("a")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("annotation", "default", "match"),
    [
        (float, 1.0, "size is annotated float; parameters are str, int, bytes or bool"),
        (list[int], [], r"size is annotated list"),
        (str | None, None, "size is annotated str | None"),
        (int, "1", "size is a int; '1' is a str"),
        (None, 1, "size has no annotation: write `size: str = farcall.parameter"),
    ],
)
def test_wrong_declarations(annotation: Any, default: Any, match: str) -> None:
    """A parameter of another type, or without one, is refused where the class is declared."""
    members: dict[str, Any] = {"size": farcall.parameter(default=default)}
    if annotation is not None:
        members["__annotations__"] = {"size": annotation}
    with pytest.raises(errors.InvalidError, match=match):
        farcall.App().cls(serialized=True)(type("Wrong", (), members))


def test_a_constructor_s_arguments_are_parameters_too() -> None:
    """A class with its own __init__ takes its arguments, of any type that can be pickled; equal ones share."""
    total, identity = classes_app.WithInit([1, 2], scale=2.0).total.remote()
    assert total == 6.0
    assert classes_app.WithInit([1, 2], scale=2.0).total.remote() == (6.0, identity)
    assert classes_app.WithInit((1, 2), scale=2.0).total.remote()[1] != identity
    with pytest.raises(errors.InvalidError, match=r"WithInit\(\): missing a required argument: 'items'"):
        classes_app.WithInit()  # type: ignore[call-arg]


# --- hooks that fail or hang


@pytest.mark.parametrize(
    ("how", "error", "match"),
    [
        ("raise", RuntimeError, "no model here"),
        ("later", LookupError, "no connection"),
        ("exit", errors.ExecutionError, "SystemExit"),
    ],
)
def test_an_enter_hook_that_fails(how: str, error: type[Exception], match: str) -> None:
    """A failure in an @enter hook fails the calls that wait, promptly and each, with that traceback."""
    broken = classes_app.FailsToEnter(how=how)
    began = time.monotonic()
    results = [broken.run.spawn() for _ in range(2)]
    for call in results:
        with pytest.raises(error, match=match):
            call.get(timeout=20)
    assert time.monotonic() - began < 40


@pytest.mark.parametrize("how", ["sync", "async"])
def test_an_enter_hook_that_hangs(how: str) -> None:
    """startup_timeout ends an @enter hook that hangs, apart from `timeout`; once, for all calls that wait."""
    hangs = classes_app.HangsToEnter(how=how)
    for call in [hangs.run.spawn(), hangs.run.spawn()]:
        with pytest.raises(errors.StartupTimeoutError, match=r"HangsToEnter.*1 s \(startup_timeout\)"):
            call.get(timeout=20)
    assert app.app_id is not None
    until_it_says(app.app_id, f"enters {how}")
    assert said(app.app_id).count(f"enters {how}") == 1


def test_inputs_wait_for_asynchronous_enter_hooks() -> None:
    """However many inputs wait for a container, hooks have run once before the first begins, in threads and tasks."""
    entered = classes_app.Entered()
    calls = [entered.plain.spawn(), entered.plain.spawn(), entered.later.spawn()]
    assert farcall.FunctionCall.gather(*calls) == [(1, False), (1, False), 1]


HANGS = """
import time
import farcall
import farcall.sdk.app

farcall.sdk.app.EXIT_GRACE = 1.0
app = farcall.App("hangs")


@app.cls()
class Hangs:
    @farcall.method()
    def work(self):
        return "worked"

    @farcall.exit()
    {0}def end(self):
        print("exit begins", flush=True)
        {1}
        print("exit ends", flush=True)


if __name__ == "__main__":
    with farcall.enable_output(), app.run():
        print(Hangs().work.remote(), flush=True)
        began = time.monotonic()
    print("stopped in time:", 0.9 < time.monotonic() - began < 40, flush=True)
"""


@pytest.mark.parametrize(
    ("asynchronous", "wait"),
    [("", "time.sleep(60)"), ("async ", "import asyncio; await asyncio.sleep(60)")],
    ids=["sync", "async"],
)
def test_an_exit_hook_that_hangs(
    connected: "Installation", program: Callable[[str], Path], asynchronous: str, wait: str
) -> None:
    """An @exit hook has its grace period, and then the container is ended."""
    path = program(HANGS.format(asynchronous, wait))
    done = subprocess.run(
        [sys.executable, str(path)], env=connected.environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == ["worked", "exit begins", "stopped in time: True"], done.stderr
