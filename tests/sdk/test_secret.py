"""`Secret` as far as it needs no server: where values come from, which are refused, and that they are shown nowhere."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import farcall
from farcall.errors import InvalidError, NotFoundError, UnimplementedError
from farcall.sdk import build, secret
from farcall.sdk.secret import Secret
from farcall.spec.secret import SecretSpec

NEEDLE = "needle-77a1"


def values(made: Secret) -> dict[str, str]:
    return secret.values_of(made)


def test_from_dict() -> None:
    made = Secret.from_dict({"A": "1", "B": None, "C": ""})
    assert values(made) == {"A": "1", "C": ""}
    assert made.name is None
    assert values(Secret.from_dict()) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"A": 1}, "from_dict: 'A' has a int; names and values are strings"),
        ({1: "a"}, "from_dict: 1 has a str"),
        ({"A-B": NEEDLE}, "from_dict: 'A-B' cannot name an environment variable"),
        ({"": NEEDLE}, "from_dict: '' cannot name"),
        ({"A": NEEDLE + "\0"}, "the value of A has a zero byte"),
        ({"A": NEEDLE + "\udc80"}, "the value of A is no text"),
        ({"A": NEEDLE * 10_000}, r"from_dict has 110,001 bytes; the limit is 65,536"),
        ([("A", "1")], "from_dict takes a dict"),
    ],
)
def test_values_that_cannot_be_variables_are_named_but_not_shown(given: Any, message: str) -> None:
    with pytest.raises(InvalidError, match=message) as raised:
        Secret.from_dict(given)
    assert NEEDLE not in str(raised.value)


def test_a_functions_env_is_checked_alike() -> None:
    with pytest.raises(InvalidError, match=r"@app\.function: env=: 'A=B' cannot name"):
        farcall.App().function(env={"A=B": "c"})


def test_from_dotenv_finds_the_nearest_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / ".env").write_text("WHERE=outer\n")
    (tmp_path / "a" / "other.env").write_text("WHERE=other\n")
    monkeypatch.chdir(inner)
    assert values(Secret.from_dotenv()) == {"WHERE": "outer"}
    assert values(Secret.from_dotenv(filename="other.env")) == {"WHERE": "other"}
    assert values(Secret.from_dotenv(tmp_path / "a" / "other.env")) == {"WHERE": "other"}
    assert values(Secret.from_dotenv(str(inner))) == {"WHERE": "outer"}
    with pytest.raises(NotFoundError, match=r"no none\.env in .*b or a folder above it"):
        Secret.from_dotenv(filename="none.env")
    with pytest.raises(NotFoundError, match="no file or folder"):
        Secret.from_dotenv(tmp_path / "missing")
    (inner / ".env").write_bytes(b"A=\xff\n")
    with pytest.raises(InvalidError, match=r"\.env is no text in UTF-8"):
        Secret.from_dotenv()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A=1\n\n# comment\nexport B = two words \n", {"A": "1", "B": "two words"}),
        ("A=one # comment\nB=one#none\n", {"A": "one", "B": "one#none"}),
        ('A=\'as $it \\n is\'\nB="a\\tb\\"c\\\\"\n', {"A": "as $it \\n is", "B": 'a\tb"c\\'}),
        ('A="two\nlines" # comment\nB=1', {"A": "two\nlines", "B": "1"}),
        ("A=1\nA=2\n", {"A": "2"}),
        ("A=\n", {"A": ""}),
        ("\ufeffA=a=b\n", {"A": "a=b"}),
        ("", {}),
    ],
)
def test_dotenv_syntax(tmp_path: Path, text: str, found: dict[str, str]) -> None:
    (tmp_path / ".env").write_text(text, encoding="utf-8")
    assert values(Secret.from_dotenv(tmp_path)) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"A=1\n{NEEDLE}\n", r"\.env, line 2 is not NAME=value"),
        (f"A=1\n\nB='{NEEDLE}\n", r"\.env, line 3: the quote is not closed"),
        (f"1A={NEEDLE}\n", r"\.env, line 1 is not NAME=value"),
    ],
)
def test_dotenv_errors_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / ".env").write_text(text)
    with pytest.raises(InvalidError, match=message) as raised:
        Secret.from_dotenv(tmp_path)
    assert NEEDLE not in str(raised.value)


def test_from_local_environ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", NEEDLE)
    assert values(Secret.from_local_environ(["HERE"])) == {"HERE": NEEDLE}
    with pytest.raises(InvalidError, match="not set here: NOT_HERE, NOR_THIS") as raised:
        Secret.from_local_environ(["HERE", "NOT_HERE", "NOR_THIS"])
    assert NEEDLE not in str(raised.value)
    with pytest.raises(InvalidError, match="'HERE' is no list"):
        Secret.from_local_environ("HERE")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Secret.from_dict({"TOKEN": NEEDLE}),
        lambda: Secret.from_local_environ(["TOKEN"]),
        lambda: Secret.from_dotenv("token.env"),
    ],
)
def test_values_are_not_shown_and_do_not_travel(
    make: Callable[[], Secret], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKEN", NEEDLE)
    Path("token.env").write_text(f"TOKEN={NEEDLE}\n")
    made = make()
    assert "TOKEN" in repr(made)
    assert NEEDLE not in repr(made) + str(made) + repr(made.spec) + str(made.spec.__rich_repr__())
    assert NEEDLE.encode() not in pickle.dumps(made)
    assert values(pickle.loads(pickle.dumps(made))) == {}


def test_a_named_secret_travels_as_its_name() -> None:
    made = Secret.from_name("openai", required_keys=["A", "B"])
    assert repr(made) == "<farcall.Secret from_name('openai'): A, B>"
    travelled = pickle.loads(pickle.dumps(made))
    assert travelled.spec == made.spec == SecretSpec("openai", ("A", "B"))
    assert travelled.name == "openai"


def test_misuse_says_what_to_write() -> None:
    app = farcall.App()
    with pytest.raises(InvalidError, match=r"@app\.function: secrets= has a str; write .*\.from_name\('x'\)"):
        app.function(secrets=["x"])  # type: ignore[list-item]
    with pytest.raises(InvalidError, match=r"secrets=.* is no list: write secrets=\[\.\.\.\]"):
        app.cls(secrets=Secret.from_dict())  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="App: secrets= has a dict; write farcall"):
        farcall.App(secrets=[{"A": "1"}])  # type: ignore[list-item]
    with pytest.raises(InvalidError, match="takes the name of a secret, not ''"):
        Secret.from_name("")
    with pytest.raises(InvalidError, match="required_keys='KEY' is no list"):
        Secret.from_name("x", required_keys="KEY")
    with pytest.raises(UnimplementedError, match="environment_name='dev'"):
        Secret.from_name("x", environment_name="dev")
    with pytest.raises(InvalidError, match=r"Secret\.from_dict is not stored on the server, and has no update"):
        Secret.from_dict({}).update({"A": "1"})


def test_the_order_in_which_they_win() -> None:
    """The image's, the app's, the function's, and `env=` last."""
    app = farcall.App(
        image=farcall.Image.host().env({"A": "image"}),
        secrets=[Secret.from_name("one"), Secret.from_dict({"A": "1"})],
    )

    @app.function(secrets=[Secret.from_name("two")], env={"A": "env"}, serialized=True)
    def function() -> None: ...

    (spec,) = build.Preparation(app, "ap-test", build.Surroundings(local=True)).functions()
    assert spec.env == {"A": "image"}
    assert spec.secrets == (
        SecretSpec("one"),
        SecretSpec(values={"A": "1"}),
        SecretSpec("two"),
        SecretSpec(values={"A": "env"}),
    )
    assert spec.without_secrets().secrets == ()
    assert NEEDLE not in repr(spec)
