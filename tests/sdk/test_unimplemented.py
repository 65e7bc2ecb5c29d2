"""Features that are not there yet: they can be declared, and are named when they are used."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

import farcall
from farcall.errors import InvalidError, UnimplementedError
from farcall.sdk import build
from farcall.sdk.function import Function

app = farcall.App("unimplemented")
DEBIAN = farcall.Image.debian_slim()


def f(x: int) -> int:
    return x


def declared(*decorators: Any, **options: Any) -> Function[..., Any, Any]:
    """A function of an app of its own, as far as the app would have to know it to run."""
    own = farcall.App()
    target: Any = f
    for decorator in decorators:
        target = decorator(target)
    function = own.function(**options)(target)
    function.bind("ap-test")
    build.Preparation(own, "ap-test", build.Surroundings(local=True))
    return function


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"volumes": {"/data": farcall.Volume.from_name("v")}}, r"volumes= \(with --local"),
        ({"proxy": farcall.Proxy.from_name("p")}, "proxy="),
        ({"enable_memory_snapshot": True}, "enable_memory_snapshot=True"),
        ({"restrict_modal_access": True}, "restrict_modal_access=True"),
        ({"i6pn": True}, "i6pn=True"),
        ({"network_file_systems": {"/n": farcall.NetworkFileSystem.from_name("n")}}, "network_file_systems="),
        ({"image": farcall.Image.micromamba()}, r"Image\.micromamba\(\)"),
        ({"image": DEBIAN.micromamba_install("a", ["b"])}, r"Image\.micromamba_install\(a, b\)"),
        ({"image": DEBIAN.pip_install("a", gpu="T4")}, r"Image\.pip_install\(gpu='T4'\)"),
    ],
)
def test_declared_features_are_named_when_the_function_is_called(options: dict[str, Any], named: str) -> None:
    function = declared(**options)
    for call in (function.remote, function.spawn, function.map):
        with pytest.raises(UnimplementedError, match=f"f cannot be called: it is declared with .*{named}"):
            call([1])
    with pytest.raises(UnimplementedError, match=named):
        asyncio.run(function.remote.aio(1))
    assert function.local(3) == 3


@pytest.mark.parametrize(
    ("decorator", "named"),
    [
        (farcall.fastapi_endpoint(method="POST"), "@fastapi_endpoint"),
        (farcall.asgi_app(), "@asgi_app"),
        (farcall.wsgi_app(), "@wsgi_app"),
        (farcall.web_server(8000), "@web_server"),
        (farcall.clustered(size=2), r"@clustered\(size=2\)"),
        (farcall.sessioned(), "@sessioned"),
    ],
)
def test_decorators_register_and_are_named_when_the_function_is_called(decorator: Any, named: str) -> None:
    function = declared(decorator)
    with pytest.raises(UnimplementedError, match=named):
        function.remote(1)
    assert function.local(3) == 3


def test_specs_carry_what_is_missing() -> None:
    own = farcall.App(volumes={"/data": farcall.Volume.from_name("v")})
    own.function(i6pn=True)(farcall.clustered(size=2)(f))
    (spec,) = build.Preparation(own, "ap-test", build.Surroundings(local=True)).functions()
    assert spec.unimplemented == ("i6pn=True", "@clustered(size=2)", "volumes= (with --local nothing is mounted)")


def test_hints_are_accepted() -> None:
    function = declared(cloud="aws", region="eu", routing_region="eu", nonpreemptible=True, experimental_options={})
    assert function.marks == ()


@farcall.App().cls()
@farcall.clustered(size=3)
class Clustered:
    @farcall.method()
    def f(self) -> None: ...


def test_a_clustered_class_is_named() -> None:
    with pytest.raises(UnimplementedError, match=r"Clustered cannot be used: .*@clustered\(size=3\)"):
        Clustered().f.remote()


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: farcall.web_server(0), "not 1 to 65535"),
        (lambda: farcall.asgi_app(custom_domains="a.example")(f), "not one string"),
        (lambda: farcall.Cron("* * * *"), "has 4 fields"),
        (lambda: farcall.Cron("61 * * * *"), "'61' is not a minute from 0 to 59"),
        (lambda: farcall.Cron("* * * * *", timezone="Nowhere/None"), "no time zone"),
        (lambda: farcall.Period(), "is empty"),
        (lambda: farcall.Period(days=1.5), "not a whole number"),  # type: ignore[arg-type]
        (lambda: farcall.CloudBucketMount("b", key_prefix="x"), "does not end in a slash"),
    ],
)
def test_what_is_declared_is_checked(declare: Any, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        declare()


@pytest.mark.parametrize(
    "use",
    [
        lambda: farcall.Sandbox.create("ls", app=app),
        lambda: farcall.Sandbox.create.aio("ls"),
        lambda: farcall.Sandbox.from_id("sb-1").exec("ls"),
        lambda: farcall.Dict.from_name("d", create_if_missing=True)["key"],
        lambda: farcall.Dict.from_name("d").put("key", 1),
        lambda: farcall.Dict.objects.list(),
        lambda: "key" in farcall.Dict.from_name("d"),
        lambda: farcall.Queue.from_name("q").put(1),
        lambda: farcall.Queue.ephemeral().__enter__(),
        lambda: farcall.Volume.from_id("vo-1"),
        lambda: farcall.Volume.from_name("v").with_mount_options(sub_path="a"),
        lambda: farcall.Environment.from_context().roles.list(),
        lambda: farcall.Workspace.from_context().members.list(),
        lambda: farcall.Image.micromamba().build(),
        lambda: DEBIAN.logs.fetch(),
        lambda: farcall.App.lookup("a", create_if_missing=True),
        lambda: app.deploy(),
        lambda: app.logs.tail(),
        lambda: farcall.interact(),
        lambda: farcall.forward(8000),
        lambda: farcall.experimental.get_cluster_info(),
        lambda: farcall.billing.workspace_billing_report(start=None),
        lambda: declared().stats(),
        lambda: farcall.FunctionCall.from_id("fc-1").get_call_graph(),
    ],
)
def test_names_exist_and_say_so_when_they_are_used(use: Any) -> None:
    with pytest.raises(UnimplementedError, match=r"is not available in farcall \d"):
        use()


def test_value_types() -> None:
    assert repr(farcall.Cron("0 9 * * mon-fri", timezone="Europe/Berlin")).startswith("Cron('0 9")
    assert repr(farcall.Period(hours=1, seconds=0.5)) == "Period(hours=1, seconds=0.5)"
    assert repr(farcall.Volume.from_name("v")) == "<farcall.Volume.from_name('v')>"
    assert farcall.Tunnel("h.example", 443).url == "https://h.example"
    with pytest.raises(InvalidError, match="encrypted only"):
        _ = farcall.Tunnel("h.example", 443).tcp_socket
    assert farcall.types.InputStatus.__name__ == "InputStatus"


# --- patterns


def test_patterns() -> None:
    matcher = farcall.FilePatternMatcher("**/*.pyc", "build", "!build/keep.txt", "a?c.[tx]*")
    matched = ["x.pyc", "deep/er/x.pyc", "build", "build/x/y", "abc.txt", "abc.x"]
    assert [path for path in matched if not matcher(Path(path))] == []
    assert [path for path in ("x.py", "build/keep.txt", "abbc.txt", "src/build") if matcher(Path(path))] == []
    assert (~matcher)(Path("x.py"))
    assert not matcher.can_prune_directories()
    assert farcall.FilePatternMatcher("*.py").can_prune_directories()


# --- secrets
