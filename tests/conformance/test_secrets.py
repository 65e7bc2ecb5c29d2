"""Semantics: secrets. Environment variables of containers, later ones winning; encrypted at rest, never shown."""

import asyncio
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import secrets_app
from secrets_app import one

import farcall
from farcall import Secret, errors
from tests.conformance.conftest import until_it_says

if TYPE_CHECKING:
    from tests.conftest import Installation

NEEDLE = f"needle-{secrets.token_hex(12)}"


@pytest.fixture(scope="module", autouse=True)
def runs(connected: "Installation", app_runs: None) -> Iterator[None]:
    """The module's app, which needs its secrets to start."""
    Secret.objects.create("conformance-one", {"TOKEN": NEEDLE})
    Secret.objects.create("conformance-two", {"B": "two", "C": "two", "D": "two"})
    with secrets_app.app.run():
        yield
    for name in ("conformance-one", "conformance-two"):
        Secret.objects.delete(name, allow_missing=True)


def test_later_ones_win() -> None:
    """The app's, then the function's in their order, then `env=`."""
    assert secrets_app.order.remote() == ["app", "two", "dict", "env"]


def test_values_are_those_at_the_start_of_a_container() -> None:
    service = secrets_app.Service()
    assert service.show.remote() == [NEEDLE, NEEDLE]
    one.update({"TOKEN": NEEDLE + "-new", "OTHER": "x"})
    try:
        assert secrets_app.token.remote() == NEEDLE + "-new"
        assert service.show.remote() == [NEEDLE, NEEDLE]
        assert one.info().keys == ("OTHER", "TOKEN")
    finally:
        one.update({"TOKEN": NEEDLE})


def test_the_stored_ones_can_be_managed_from_a_program() -> None:
    begun = time.time()
    Secret.objects.create("conformance-managed", {"A": "1", "B": "2"})
    with pytest.raises(errors.AlreadyExistsError, match="farcall secret update conformance-managed KEY=-"):
        Secret.objects.create("conformance-managed", {"A": "3"})
    Secret.objects.create("conformance-managed", {"A": "3"}, allow_existing=True)
    managed = Secret.objects.list(max_objects=1)[0]
    assert managed.name == "conformance-managed"
    info = managed.info()
    assert (info.name, info.keys) == ("conformance-managed", ("A", "B"))
    assert begun - 1 < info.created_at.timestamp() == info.updated_at.timestamp() < time.time() + 1
    managed.update({"C": "3"})
    info = managed.info()
    assert info.keys == ("A", "B", "C")
    assert info.created_at < info.updated_at
    assert "conformance-managed" not in [one.name for one in Secret.objects.list(created_before=info.created_at)]

    async def awaited() -> list[str | None]:
        await Secret.objects.delete.aio("conformance-managed")
        names = [one.name for one in await Secret.objects.list.aio()]
        return [name for name in names if (name or "").startswith("conformance-")]

    assert asyncio.run(awaited()) == ["conformance-two", "conformance-one"]
    Secret.objects.delete("conformance-managed", allow_missing=True)
    for missing in (lambda: Secret.objects.delete("conformance-managed"), lambda: managed.update({"A": "1"})):
        with pytest.raises(errors.NotFoundError, match="there is no secret 'conformance-managed'"):
            missing()
    with pytest.raises(errors.NotFoundError, match="farcall secret create conformance-managed KEY=-"):
        managed.info()


@pytest.mark.parametrize("name", ["a/b", ".a", "a b", "x" * 65, "../x"])
def test_names_that_could_be_mistaken_are_refused(name: str) -> None:
    with pytest.raises(errors.InvalidError, match="cannot name a secret"):
        Secret.objects.create(name, {"A": "1"})


# --- what is missing

PROGRAM = """
import os
import farcall

app = farcall.App("wanting")

@app.function(secrets=[farcall.Secret.from_name({name!r}, required_keys={keys!r})])
def wanting():
    return sorted(set(os.environ) & {{"A", "B", "C"}})

with app.run():
    print(wanting.remote())
"""


@pytest.fixture
def wanting(program: Callable[[str], Path], connected: "Installation") -> Callable[..., str]:
    """Runs a program with a function that names a secret; what it prints, or the last line of its error."""

    def run(name: str, *keys: str) -> str:
        ended = subprocess.run(
            [sys.executable, str(program(PROGRAM.format(name=name, keys=list(keys))))],
            env=connected.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return ended.stdout.strip() or ended.stderr.strip().splitlines()[-1]

    return run


def test_an_app_that_names_a_missing_secret_does_not_start(wanting: Callable[..., str]) -> None:
    Secret.objects.create("very-nearly", {"A": "1"})
    try:
        assert wanting("very-near", "A", "B") == (
            "farcall.errors.NotFoundError: wanting: there is no secret 'very-near'; did you mean 'very-nearly'? Create "
            "it with `farcall secret create very-near A=- B=-`"
        )
        assert wanting("very-nearly", "A", "B", "C") == (
            "farcall.errors.NotFoundError: wanting: secret 'very-nearly' has no B and no C; it has A. "
            "Add with `farcall secret update very-nearly B=- C=-`"
        )
        Secret.from_name("very-nearly").update({"B": "", "C": "3"})
        assert wanting("very-nearly", "A", "B", "C") == "['A', 'B', 'C']"
    finally:
        Secret.objects.delete("very-nearly")


def test_a_secret_deleted_since_fails_the_calls_that_need_a_new_container() -> None:
    Secret.objects.delete("conformance-one")
    try:
        with pytest.raises(errors.NotFoundError, match=r"no secret 'conformance-one'.*create .* TOKEN=-"):
            secrets_app.token.remote()
        Secret.objects.create("conformance-one", {"OTHER": NEEDLE})
        with pytest.raises(errors.NotFoundError, match=r"'conformance-one' has no TOKEN.*it has OTHER") as raised:
            secrets_app.token.remote()
        assert NEEDLE not in str(raised.value)
    finally:
        one.update({"TOKEN": NEEDLE})
    assert secrets_app.token.remote() == NEEDLE


# --- what is not shown


def test_code_in_containers_reaches_no_secret_but_its_own() -> None:
    value, (env, spec), *refused = secrets_app.without.remote()
    assert (value, env, spec) == (None, {}, ())
    assert refused == ["code in a container cannot manage apps, secrets or the server"] * 5


def files_with(needle: bytes, root: Path) -> list[str]:
    found: list[str] = []
    for directory, _, names in os.walk(root):
        for path in (Path(directory, name) for name in names):
            if path.is_file() and needle in path.read_bytes():
                found.append(str(path))
    return found


def processes_with(needle: bytes, file: str) -> set[int]:
    """The processes whose /proc/PID/`file` has the needle."""
    found: set[int] = set()
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and needle in (process / file).read_bytes():
                found.add(int(process.name))
        except OSError:
            continue
    return found


def in_a_container(pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
    except FileNotFoundError:
        return True  # it has ended; those that are looked for have not


def test_values_are_nowhere_but_in_their_containers(
    connected: "Installation", capfd: pytest.CaptureFixture[str]
) -> None:
    """Not in a file of the state directory, a log, a command line, the environment of a process that is no container's,
    or an error: for stored ones and for those that a program brings along, while they are used and afterwards."""
    brought = farcall.App("brought", secrets=[Secret.from_dict({"TOKEN": NEEDLE})])

    @brought.function(name="hold", serialized=True, env={"LC_ALL": "C"})
    def hold(seconds: float) -> int:
        print("started", flush=True)
        time.sleep(seconds)
        return len(os.environ["TOKEN"])

    needle = NEEDLE.encode()
    state = connected.root / "state"
    with brought.run(detach=True):
        calls: list[Any] = [secrets_app.hold.spawn(600.0), hold.spawn(600.0)]
        for call in calls:
            until_it_says(call.object_id)
        holders = processes_with(needle, "environ")
        assert len(holders) >= 2
        assert all(in_a_container(pid) for pid in holders)
        assert processes_with(needle, "cmdline") == set()
        assert files_with(needle, state) == []
        for call in calls:
            call.cancel()
        assert [function.remote(0.0) for function in (secrets_app.hold, hold)] == [len(NEEDLE)] * 2
    with pytest.raises(ValueError, match=r"it shows <farcall\.Secret from_dict: TOKEN>") as raised:
        secrets_app.fail.remote()
    with pytest.raises(errors.ContainerCrashedError) as crashed:
        secrets_app.crash.remote()
    assert NEEDLE not in str(raised.value) + str(crashed.value)
    assert files_with(needle, state) == []
    logs = connected.farcall("logs", "secrets").stdout + connected.farcall("logs", "brought", check=False).stdout
    shown = [logs, connected.farcall("server", "logs").stdout, connected.farcall("secret", "list", "--json").stdout]
    assert NEEDLE not in "".join([*shown, *capfd.readouterr()])
