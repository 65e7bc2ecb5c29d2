"""`farcall secret`: values come in without being shown, and are not listed."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, Dialog
from tests.conftest import Installation


@pytest.fixture
def secret(on_server: Cli) -> Cli:
    """Runs `farcall secret ARGUMENTS`."""
    return partial(on_server, "secret")


@pytest.fixture
def values(server: Installation) -> Callable[[str], dict[str, str]]:
    """The values of a stored secret, as a container would get them."""

    def read(name: str) -> dict[str, str]:
        code = (
            "import json, farcall\nfrom farcall.sdk.secret import values_of\n"
            f"print(json.dumps(values_of(farcall.Secret.from_name({name!r}))))"
        )
        ended = subprocess.run(
            [sys.executable, "-c", code], env=server.environment, capture_output=True, text=True, check=True
        )
        return json.loads(ended.stdout)

    return read


def test_create_update_list_delete(secret: Cli, values: Callable[[str], dict[str, str]]) -> None:
    created = secret("create", "life", "A=1", "B=x=y")
    assert (created.returncode, created.stdout) == (0, "")
    assert created.stderr.splitlines() == [
        "stored secret life: A, B",
        'use it: @app.function(secrets=[farcall.Secret.from_name("life")])',
    ]
    again = secret("create", "life", "A=2")
    assert again.returncode == 1
    assert "farcall secret update life KEY=-" in again.stderr
    assert secret("update", "life", "B=2", "C=3").returncode == 0
    assert values("life") == {"A": "1", "B": "2", "C": "3"}
    assert secret("create", "life", "D=4", "--force").returncode == 0
    assert values("life") == {"D": "4"}
    table = secret("list").stdout.splitlines()
    assert table[0].split() == ["NAME", "CREATED", "UPDATED", "KEYS"]
    assert [line.split()[-1] for line in table if line.startswith("life ")] == ["D"]
    (listed,) = [each for each in json.loads(secret("list", "--json").stdout) if each["name"] == "life"]
    assert set(listed) == {"name", "secret_id", "keys", "created_at", "updated_at"}
    assert listed["keys"] == ["D"]
    assert listed["created_at"] < listed["updated_at"]
    assert secret("delete", "life").returncode == 2  # nobody there to ask
    assert secret("delete", "life", "--yes").returncode == 0
    assert secret("delete", "life", "--yes").returncode == 1
    assert secret("delete", "life", "--yes", "--allow-missing").returncode == 0
    missing = secret("update", "life", "A=1")
    assert missing.returncode == 1
    assert "there is no secret 'life'" in missing.stderr


def test_all_sources_of_values(secret: Cli, values: Callable[[str], dict[str, str]], tmp_path: Path) -> None:
    (tmp_path / "some.env").write_text("DOTENV='a b'\n")
    (tmp_path / "some.json").write_text('{"JSON": "ü"}')
    (tmp_path / "key.pem").write_text("line one\nline two\n")
    made = secret(
        *("create", "sources", "GIVEN=1", "READ=-", "--from-dotenv", "some.env"),
        *("--from-json", "some.json", "--from-file", "PEM=key.pem"),
        stdin="from stdin\n",
    )
    assert made.returncode == 0, made.stderr
    assert values("sources") == {
        "GIVEN": "1",
        "READ": "from stdin",
        "DOTENV": "a b",
        "JSON": "ü",
        "PEM": "line one\nline two\n",
    }
    assert secret("create", "piped", "--from-dotenv", "-", stdin="A=1\nB=2\n").returncode == 0
    assert secret("update", "piped", "--from-json", "-", stdin='{"B": "3"}').returncode == 0
    assert values("piped") == {"A": "1", "B": "3"}


@pytest.mark.parametrize(
    ("arguments", "stdin", "status", "message"),
    [
        (["x"], "", 2, "no values for secret 'x'"),
        (["x", "hunter2"], "", 2, "value 1 is not KEY=VALUE; to be asked for a value, write KEY=-"),
        (["x", "A=-"], "", 2, "nothing came from standard input for A=-"),
        (["x", "A=-", "B=-"], "hunter2", 2, "A=- and B=- cannot both be read from standard input"),
        (["x", "A=hunter2", "A=hunter2"], "", 2, "A is given twice"),
        (["x", "A-B=hunter2"], "", 1, "secret 'x': 'A-B' cannot name an environment variable"),
        (["x/y", "A=hunter2"], "", 1, "'x/y' cannot name a secret"),
        (["x", "--from-json", "-"], '{"A": 1}', 1, "standard input: the value of A is no string"),
        (["x", "--from-json", "-"], '["hunter2"]', 1, "standard input holds no JSON object"),
        (["x", "--from-json", "-"], '{"A": hunter2}', 1, "standard input is no JSON"),
        (["x", "--from-dotenv", "-"], "hunter2\n", 1, "standard input, line 1 is not NAME=value"),
        (["x", "--from-dotenv", "no.env"], "", 1, "no.env cannot be read: No such file"),
        (["x", "--from-file", "A=no.pem"], "", 1, "no.pem cannot be read: No such file"),
        (["x", "--from-file", "no.pem"], "", 2, "--from-file 'no.pem' is not KEY=FILE"),
    ],
)
def test_what_is_wrong_is_said_without_values(
    secret: Cli, arguments: list[str], stdin: str, status: int, message: str
) -> None:
    ended = secret("create", *arguments, stdin=stdin)
    assert (ended.returncode, ended.stdout) == (status, "")
    assert message in ended.stderr
    assert "hunter2" not in ended.stderr


def test_on_a_terminal_values_are_asked_for_unseen(
    server: Installation, values: Callable[[str], dict[str, str]]
) -> None:
    creating = Dialog(server.environment, "secret", "create", "typed", "A=-", "B=-")
    creating.until("A (not shown): ")
    creating.say("first\n")
    creating.until("B (not shown): ")
    creating.say("second\n")
    assert creating.end() == 0
    assert "first" not in creating.shown
    assert values("typed") == {"A": "first", "B": "second"}
    for answer, status, told in (("\n", 1, "nothing was deleted"), ("y\n", 0, "deleted secret typed")):
        deleting = Dialog(server.environment, "secret", "delete", "typed")
        deleting.until("[y/N] ")
        deleting.say(answer)
        deleting.until(told)
        assert deleting.end() == status
