"""Images as values: what decides whether a step is the same, and what configuration steps do."""

import msgspec
import pytest

from farcall.errors import InvalidError
from farcall.spec.function import FunctionSpec, Source
from farcall.spec.image import (
    Apt,
    BuiltBase,
    Call,
    Configure,
    Copy,
    DebianBase,
    Download,
    ImageConfig,
    ImageSpec,
    InlineFile,
    Pip,
    RegistryBase,
    Run,
    RunMount,
    ScratchBase,
    Step,
    UvSync,
    configured,
    encode,
    identity,
)

FUNCTION = FunctionSpec("fu-1", "prepare", Source("module", "prepare", paths=("/home/a",)), ())

STEPS: list[Step] = [
    Run("echo", secrets={"TOKEN": "s1"}, mounts=(RunMount("secret", "/run/secrets/t", "s2"),)),
    Run(("echo",)),
    Pip("uv", ("numpy",), secrets={"TOKEN": "s1"}),
    UvSync("1" * 64),
    Apt(("git",)),
    Copy("/a", ("*.py",), tree="1" * 64),
    Copy("/a", stage=ImageSpec(ScratchBase(), (Copy("/", files=(InlineFile("a", "text"),)),)), mode=0o644),
    Download("https://example.org/x", "/x"),
    Configure("env", pairs={"A": "1"}),
    Call(FUNCTION, b"input", "fingerprint", {"TOKEN": "s1"}),
]


def test_a_description_travels() -> None:
    for base in (DebianBase("3.12"), RegistryBase("a/b:c", credentials={"REGISTRY_USERNAME": "s1"}), BuiltBase("im-1")):
        spec = ImageSpec(base, tuple(STEPS))
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=ImageSpec) == spec


def test_steps_differ() -> None:
    assert len({identity(step) for step in STEPS}) == len(STEPS)
    assert identity(Pip("pip", ("a",))) != identity(Pip("uv", ("a",)))
    assert identity(Run("a", env={"A": "1"})) != identity(Run("a", env={"A": "2"}))
    assert identity(Copy("/a", ("b",))) != identity(Copy("/a", ("b",), mode=0o600))


def test_what_does_not_make_a_step_another() -> None:
    moved = msgspec.structs.replace(
        FUNCTION, source=Source("module", "prepare", paths=("/home/b",)), function_id="fu-2"
    )
    same = [
        (Run("a"), Run("a", force=True)),
        (Run("a", env={"A": "1", "B": "2"}), Run("a", env={"B": "2", "A": "1"})),
        (Run("a", secrets={"T": "s1"}), Run("a", secrets={"T": "s2"})),
        (Run("a", mounts=(RunMount("secret", "/s", "s1"),)), Run("a", mounts=(RunMount("secret", "/s", "s2"),))),
        (Copy("/a", ("b",), tree="1" * 64), Copy("/a", ("b",), tree="2" * 64)),
        (UvSync("1" * 64), UvSync("2" * 64)),
        (Call(FUNCTION, b"1", "f"), Call(moved, b"2", "f", force=True)),
        (RegistryBase("a"), RegistryBase("a", credentials={"REGISTRY_USERNAME": "s1"}, force=True)),
        (DebianBase("3.12"), DebianBase("3.12", force=True)),
    ]
    for one, other in same:
        assert identity(one) == identity(other)


def test_which_secrets_a_step_sees_counts() -> None:
    assert identity(Run("a", secrets={"T": "s1"})) != identity(Run("a", secrets={"U": "s1"}))
    assert identity(Run("a", secrets={"T": "s1"})) != identity(Run("a"))
    assert b"s1" not in identity(Run("a", secrets={"T": "s1"}))
    assert identity(Call(FUNCTION, b"", "f")) != identity(Call(FUNCTION, b"", "g"))


def test_caches_of_a_command_count() -> None:
    assert identity(Run("a", mounts=(RunMount("cache", "/c", "x"),))) != identity(
        Run("a", mounts=(RunMount("cache", "/c", "y"),))
    )


def after(*steps: Configure, config: ImageConfig | None = None) -> ImageConfig:
    made = config or ImageConfig()
    for step in steps:
        made = configured(made, step)
    return made


def test_configuration_steps() -> None:
    made = after(
        Configure("env", pairs={"A": "$X"}),
        Configure("label", pairs={"who": "me"}),
        Configure("workdir", ("/srv",)),
        Configure("workdir", ("app/../lib",)),
        Configure("user", ("nobody",)),
        Configure("shell", ("/bin/bash", "-c")),
        Configure("cmd", ("old",)),
        Configure("entrypoint", ("run",)),
    )
    assert made == ImageConfig(
        env={"A": "$X"},
        labels={"who": "me"},
        workdir="/srv/lib",
        user="nobody",
        shell=("/bin/bash", "-c"),
        entrypoint=("run",),
    )


def test_one_instruction_sees_the_variables_before_it() -> None:
    made = after(
        Configure("arg", pairs={"V": "1"}, expand="\\"),
        Configure("env", pairs={"A": "'$V'", "B": '"$V $A"'}, expand="\\"),
        Configure("env", pairs={"C": "$A"}, expand="\\"),
        Configure("workdir", ("/$V/${B# }",), expand="\\"),
        config=ImageConfig(env={"A": "0"}),
    )
    assert made.env == {"A": "$V", "B": "1 0", "C": "$V"}
    assert made.workdir == "/1/1 0"


def test_env_goes_before_arg() -> None:
    steps = [Configure("arg", pairs={"V": "1"}), Configure("label", pairs={"v": "$V"}, expand="\\")]
    assert after(*steps, config=ImageConfig(env={"V": "0"})).labels == {"v": "0"}
    assert after(*steps, Configure("end-args")).args == {}


def test_a_line_for_the_shell() -> None:
    made = after(Configure("shell", ("bash", "-ec")), Configure("cmd", ("serve $PORT",), in_shell=True))
    assert made.cmd == ("bash", "-ec", "serve $PORT")


def test_a_bad_word_is_named() -> None:
    with pytest.raises(InvalidError, match="not closed"):
        after(Configure("env", pairs={"A": "'"}, expand="\\"))


def test_what_is_equal_is_encoded_equally() -> None:
    """However it came to be: values that equal the defaults without being them, and variables in another order."""
    shell = tuple(["/bin/sh", "-c"][:])
    one = ImageConfig(env={"A": "1", "B": "2"})
    other = configured(ImageConfig(env={"B": "2", "A": "1"}, shell=("bash",)), Configure("shell", shell))
    assert one == other
    assert msgspec.msgpack.encode(one, order="sorted") == msgspec.msgpack.encode(other, order="sorted")
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode({"shell": shell, "env": one.env}), type=ImageConfig)
    assert msgspec.msgpack.encode(decoded) == msgspec.msgpack.encode(one)
    run, same = Run("true", env={"A": "1", "B": "2"}), Run("true", env={"B": "2", "A": "1"})
    assert encode(ImageSpec(DebianBase("3.12"), (run,))) == encode(ImageSpec(DebianBase("3.12"), (same,)))
