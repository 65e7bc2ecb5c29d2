"""Cls: parameters, hooks, methods, the real object and the handle."""

import asyncio
import pickle
from collections.abc import AsyncGenerator, Generator
from typing import Any

import pytest

import farcall
from farcall.errors import InvalidError, UnimplementedError
from farcall.sdk import build
from farcall.sdk.cls import Cls, Instance, target_of
from farcall.spec.gpu import GpuRequest

app = farcall.App("classes")


class Base:
    size: int = farcall.parameter(default=2)
    hooks: list[str]

    @farcall.enter()
    def up_base(self) -> None:
        self.hooks = [*getattr(self, "hooks", []), "base"]

    @farcall.exit()
    def down_base(self) -> None:
        self.hooks.append("down base")

    @farcall.method()
    def area(self) -> int:
        return self.size**2

    @farcall.method()
    def overridden(self) -> str:
        return "base"


@app.cls(cpu=2)
class Model(Base):
    """A model."""

    name: str = farcall.parameter()
    flag: bool = farcall.parameter(default=False)
    raw_bytes: "bytes" = farcall.parameter(default=b"x")
    ignored: list[int] = farcall.parameter(init=False)
    limit = 10

    @farcall.enter(snap=True)
    def up_first(self) -> None:
        self.hooks = ["snap"]

    @farcall.enter()
    async def up(self) -> None:
        await asyncio.sleep(0)
        self.hooks.append("own")

    @farcall.method()
    def describe(self, x: int) -> str:
        return f"{self.name} {self.size} {x} {self.hooks}"

    @farcall.method()
    async def describe_later(self, x: int) -> str:
        return self.describe.local(x)

    @farcall.method()
    def items(self) -> Generator[str, None, None]:
        yield from self.hooks

    @farcall.method()
    async def later_items(self) -> AsyncGenerator[str, None]:
        for hook in self.hooks:
            yield hook

    def overridden(self) -> str:
        return "own"

    def helper(self) -> int:
        return self.size


@app.cls()
class Older:
    def __init__(self, rate: float, *, name: str = "x") -> None:
        self.rate, self.name = rate, name

    @farcall.method()
    def show(self) -> str:
        return f"{self.rate} {self.name}"


@app.cls()
class Empty:
    @farcall.method()
    def show(self) -> str:
        return "empty"


def as_cls(decorated: Any) -> Cls[..., Any]:
    """The decorated class as what it is at run time."""
    assert isinstance(decorated, Cls)
    return decorated


def params_of(instance: Any) -> bytes:
    return target_of(instance, "describe" if isinstance(instance, as_cls(Model)) else "show").params  # type: ignore[arg-type]


@pytest.fixture
def running() -> Any:
    """The classes with their ids, without a server."""
    for cls in app.registered_classes.values():
        cls.bind("ap-test")
    yield
    for cls in app.registered_classes.values():
        cls.unbind()


def test_local_methods_run_after_the_enter_hooks_once() -> None:
    model = Model(name="m")
    expected = "m 2 1 ['snap', 'base', 'own']"
    assert model.describe.local(1) == expected
    assert model.describe.local(1) == expected
    assert asyncio.run(Model(name="m").describe_later.local(1)) == expected
    assert list(Model(name="m").items.local()) == ["snap", "base", "own"]

    async def collect() -> list[str]:
        return [item async for item in Model(name="m").later_items.local()]

    assert asyncio.run(collect()) == ["snap", "base", "own"]


def test_local_sync_methods_work_inside_a_loop() -> None:
    async def main() -> str:
        return Model(name="m").describe.local(1)

    assert asyncio.run(main()) == "m 2 1 ['snap', 'base', 'own']"


def test_plain_attributes_exist_here() -> None:
    model = Model(name="m", size=5)
    assert (model.size, model.helper(), model.limit) == (5, 5, 10)
    model.size = 6
    assert model.helper() == 6
    with pytest.raises(AttributeError, match="nothing"):
        _ = model.nothing  # type: ignore[attr-defined]


def test_an_override_stays_a_remote_method() -> None:
    assert Model(name="m").overridden.local() == "own"  # type: ignore[attr-defined]
    assert set(as_cls(Model).shape.methods) >= {"area", "overridden", "describe"}


def test_the_real_object_as_a_container_makes_it(running: None) -> None:
    cls = as_cls(Model)
    made = cls.construct(params_of(Model(name="m", size=3)))
    assert type(made) is cls.raw
    assert (made.name, made.size, made.flag, made.raw_bytes) == ("m", 3, False, b"x")
    assert [hook.__name__ for hook in cls.enter_hooks] == ["up_first", "up_base", "up"]
    assert [hook.__name__ for hook in cls.exit_hooks] == ["down_base"]
    made.hooks = ["there"]
    assert cls.methods["describe"](made, 1) == "m 3 1 ['there']"
    assert cls.methods["overridden"](made) == "own"
    assert target_of(made.describe._instance, "describe").params == params_of(Model(name="m", size=3))


def test_equal_parameters_are_equal_bytes(running: None) -> None:
    def text(*parts: str) -> str:
        return "".join(parts)  # a new object each time

    first = params_of(Model(name=text("a", "b"), size=2))
    assert first == params_of(Model(size=2, name="ab")) == params_of(Model(name="ab", flag=False))
    assert first != params_of(Model(name="ab", size=3))
    shared = text("long", "er")
    assert params_of(Older(1.0, name=shared)) == params_of(Older(1.0, name=text("longe", "r")))
    assert params_of(Empty()) == b""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Model(), "needs the parameter name"),  # type: ignore[call-arg]
        (lambda: Model("m"), "by keyword"),  # type: ignore[misc, arg-type]
        (lambda: Model(name=5), "the parameter name is a str; 5 is a int"),  # type: ignore[arg-type]
        (lambda: Model(name="m", size=True), "is a int; True is a bool"),
        (lambda: Model(name="m", sise=1), "has no parameter sise; it has"),  # type: ignore[call-arg]
        (lambda: Older(), "missing a required argument: 'rate'"),  # type: ignore[call-arg]
        (lambda: Empty(1), "takes no arguments"),  # type: ignore[call-arg]
    ],
)
def test_wrong_arguments_are_refused_where_they_are_given(make: Any, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        make()


def test_init_arguments_travel(running: None) -> None:
    made = as_cls(Older).construct(params_of(Older(0.5, name="y")))
    assert as_cls(Older).methods["show"](made) == "0.5 y"


def declare(body: dict[str, Any], annotations: dict[str, Any] | None = None) -> Any:
    raw = type("Declared", (), {"__annotations__": annotations or {}, "__module__": __name__, **body})
    return farcall.App().cls()(raw)


@pytest.mark.parametrize(
    ("body", "annotations", "message"),
    [
        ({"a": farcall.parameter()}, {}, r"Declared\.a has no annotation: write `a: str"),
        ({"a": farcall.parameter()}, {"a": float}, "annotated float; parameters are str, int, bytes or bool"),
        ({"a": farcall.parameter(default=1)}, {"a": str}, "is a str; 1 is a int"),
        (
            {"a": farcall.parameter(), "__init__": lambda self: None},
            {"a": str},
            r"both parameter\(\) and its own __init__",
        ),
    ],
)
def test_wrong_parameters_are_refused_where_they_are_declared(
    body: dict[str, Any], annotations: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidError, match=message):
        declare(body, annotations)


def test_wrong_classes_are_refused() -> None:
    own = farcall.App()
    with pytest.raises(InvalidError, match=r"for functions write @app\.function\(\)"):
        own.cls()(params_of)  # type: ignore[arg-type]

    class Local:
        pass

    with pytest.raises(InvalidError, match=r"defined inside a function.*serialized=True"):
        own.cls()(Local)
    assert isinstance(own.cls(serialized=True)(Local), Cls)
    with pytest.raises(InvalidError, match="has no parameter 'schedule'"):
        own.cls(schedule=farcall.Period(days=1))  # type: ignore[call-arg]
    with pytest.raises(InvalidError, match="cannot be both a remote method and"):
        farcall.enter()(farcall.method()(lambda self: None))
    with pytest.raises(InvalidError, match="cannot be a generator"):
        farcall.enter()(count)
    with pytest.raises(InvalidError, match=r"for the class Local write @app\.cls\(\)"):
        farcall.method()(Local)


def count() -> Generator[int, None, None]:
    yield 1


def test_calling_on_the_class_says_that_parentheses_are_missing() -> None:
    with pytest.raises(AttributeError, match=r"write Model\(\)\.describe"):
        _ = as_cls(Model).describe
    assert as_cls(Model).limit == 10


def test_isinstance_and_subclasses() -> None:
    assert isinstance(Model(name="m"), Model)
    assert not isinstance(Older(1.0), Model)

    class Sub(Model):
        pass

    assert Sub.__mro__[1] is as_cls(Model).raw


def test_handles_travel(running: None) -> None:
    model = Model(name="m", size=4)
    copy: Any = pickle.loads(pickle.dumps(model))
    assert isinstance(copy, Instance)
    assert copy == model
    assert hash(copy) == hash(model)
    assert pickle.loads(pickle.dumps(Model)) is Model
    data = pickle.dumps((model, model.describe, Model))
    as_cls(Model).unbind()
    handle, method, cls = pickle.loads(data)
    assert handle.describe.object_id == method.object_id == cls.object_id
    assert target_of(handle, "describe") == target_of(method._instance, "describe")
    assert repr(handle) == "<farcall instance Model(flag=False, name='m', raw_bytes=b'x', size=4)>"
    with pytest.raises(AttributeError, match="has no method 'helper'"):
        handle.helper()
    assert cls(name="n", size=1).area.object_id == cls.object_id
    with pytest.raises(InvalidError, match="needs the parameter name"):
        cls()


def test_specs() -> None:
    spec = next(
        spec
        for spec in build.Preparation(app, "ap-x", build.Surroundings(local=True)).functions()
        if spec.name == "Model"
    )
    assert spec.is_class
    assert spec.function_id.startswith("cs-")
    assert spec.source.qualname == "Model"
    found = {method.name: (method.is_generator, method.is_async) for method in spec.methods}
    assert found == {
        "area": (False, False),
        "overridden": (False, False),
        "describe": (False, False),
        "describe_later": (False, True),
        "items": (True, False),
        "later_items": (True, True),
    }


def test_a_decorated_method_of_a_plain_object_says_so() -> None:
    with pytest.raises(InvalidError, match=r"was not made by a class under @app\.cls\(\)"):
        _ = Base().area


def test_outside_a_running_app_a_call_says_what_to_do() -> None:
    with pytest.raises(InvalidError, match=r"Empty cannot be called: its app is not running"):
        Empty().show.remote()


def test_variants(running: None) -> None:
    variant = as_cls(Model).with_options(memory=256)
    assert variant.declaration.memory == (256, 256)
    assert variant.object_id not in ("", as_cls(Model).object_id)
    assert variant(name="m") == as_cls(Model).with_options(memory=256)(name="m") != Model(name="m")
    assert pickle.loads(pickle.dumps(variant(name="m"))) == variant(name="m")
    assert as_cls(Model).with_options(gpu=["H100", "any"]).declaration.gpus == (GpuRequest("H100"), GpuRequest("any"))
    with pytest.raises(UnimplementedError, match=r"Cls\.from_name\('a', 'B'\)"):
        Cls.from_name("a", "B")().anything.remote()
