"""The examples do what they say, for a user who runs them."""

import json
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.cluster.machines import workers_of
from tests.conftest import Installation, leftovers, short_directory, snapshot
from tests.link.conftest import make_box

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def laptop(shared: Path) -> Iterator[Installation]:
    """A machine with two profiles: `box`, which ssh reaches, and `cluster`, the same with two workers and none of its
    own. Nothing may stay behind on any of them."""
    with short_directory() as root:
        before = snapshot(root)
        machine = Installation.under(root / "laptop", shared)
        box = make_box(root / "box")
        head = make_box(root / "head", "head", FARCALL_LISTEN="0.0.0.0:0", FARCALL_OWN_WORKER="false")
        names = root / "ssh_config"
        names.write_text(f"Include {box.root}/ssh_config\nInclude {head.root}/ssh_config\n")
        machine.environment["FARCALL_SSH"] = f"ssh -F {names}"
        machine.farcall("profile", "add", "box", "ssh://box")
        machine.farcall("profile", "add", "cluster", "ssh://head")
        cluster = Installation(machine.root, machine.environment | {"FARCALL_PROFILE": "cluster"})
        try:
            cluster.farcall("server", "start", timeout=600)
            log = Path(head.environment["FARCALL_STATE_DIR"], "server.log")
            with workers_of(cluster, log, root, shared):
                yield machine
        finally:
            for profile in ((), ("--profile", "box"), ("--profile", "cluster")):
                machine.farcall("server", "stop", "--force", *profile, timeout=600)
        if left := leftovers(root, before):
            pytest.fail("stayed behind on one of the machines:\n  " + "\n  ".join(left), pytrace=False)


class Farcall(Protocol):
    root: Path

    def farcall(
        self, *arguments: str | Path, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]: ...


def test_hello(server: Farcall) -> None:
    assert "Hello, Ada!" in server.farcall("run", EXAMPLES / "hello.py", "--name", "Ada").stdout


def test_word_count_over_300_files(server: Farcall, tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number}.txt").write_text("container " * number + "of a few words")
    output = server.farcall("run", EXAMPLES / "word_count.py", "--folder", tmp_path, "--top", "1").stdout
    total = sum(range(300))
    assert f"{total + 300:,} words in 300 files" in output
    assert re.search(rf"{total:,} container$", output, re.MULTILINE)


def test_render_writes_the_picture(server: Farcall, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    server.farcall("run", EXAMPLES / "render.py", "--width", "100", "--out", picture)
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    start = content.index(b"IDAT") + 4
    rows = zlib.decompress(content[start : content.index(b"IEND")])
    assert len(rows) == 80 * (1 + 100)
    row = rows[40 * 101 + 1 : 41 * 101]  # the real axis, from -2.2 to 0.8: outside, inside up to 0.25, outside
    assert row[0] > 0
    assert row[70] == 0
    assert row[99] > 0


def test_counter_keeps_its_state_between_calls(server: Farcall) -> None:
    output = server.farcall("run", EXAMPLES / "counter.py").stdout
    assert "visit 3 of /" in output
    assert "{'/': 3, '/about': 1, '/docs': 1}" in output


def test_generator_yields_and_is_closed(server: Farcall) -> None:
    output = server.farcall("run", EXAMPLES / "generator.py", "--above", "1000", "--count", "3").stdout
    assert [line for line in output.splitlines() if line.isdigit()] == ["1009", "1013", "1019"]
    assert "the generator was closed" in output


def test_error_is_shown_with_the_users_code(server: Farcall) -> None:
    completed = server.farcall("run", EXAMPLES / "error.py", check=False)
    assert completed.returncode == 1
    assert "JSONDecodeError" in completed.stdout
    assert "3.0" in completed.stdout
    assert "ZeroDivisionError: division by zero" in completed.stderr
    assert "return total / len(values)" in completed.stderr
    assert "src/farcall/" not in completed.stderr
    assert "farcall logs" in completed.stderr


def test_near_duplicates_in_two_stages_with_retries(server: Farcall, tmp_path: Path) -> None:
    text = "Opens the file at the path that is given and returns all of its lines but the empty ones, {}."
    for number, ending in enumerate(["stripped", "unchanged", "stripped"]):
        (tmp_path / f"{number}.py").write_text(f'def lines():\n    """{text.format(ending)}"""\n')
    (tmp_path / "other.py").write_text('"""Nothing that any of the others has to say is said in here again."""\n')
    (tmp_path / "broken.py").write_text("def broken(:\n")
    out = tmp_path / "out.jsonl"
    command = ("run", EXAMPLES / "near_duplicates.py", "--folder", tmp_path, "--out", out, "--danger", "0.1")
    output = server.farcall(*command).stdout
    assert "4 docstrings in 5 files" in output
    assert output.count(" was left out: ") == 1
    assert "broken.py was left out: " in output  # for what its last attempt failed of, which chance decides, too
    groups = [json.loads(line)["names"] for line in out.read_text().splitlines()]
    assert groups[0] == ["0.py:lines", "1.py:lines", "2.py:lines"]
    assert not any("other.py:" in group for group in groups)


def test_orders_and_the_app_s_own_tests(server: Farcall) -> None:
    assert "234.0 EUR; no rate for the orders 4" in server.farcall("run", EXAMPLES / "orders/orders.py").stdout
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLES / "orders"]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=EXAMPLES)
    assert completed.returncode == 0, completed.stdout
    assert "6 passed" in completed.stdout


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_resumable_training(server: Farcall) -> None:
    output = server.farcall("run", EXAMPLES / "resumable_training.py", "--danger", "0.3", timeout=900).stdout
    assert "the losses of all epochs are the same" in output
    assert "killed in epoch" in output
    assert json.loads(server.farcall("volume", "ls", "example-training", "--json").stdout) == []


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_digits_are_learnt_in_an_image_with_torch(server: Farcall, tmp_path: Path) -> None:
    picture = tmp_path / "loss.png"
    output = server.farcall("run", EXAMPLES / "train_digits.py", "--out", picture, timeout=1700).stdout
    found = re.search(r"^(\d+\.\d)% of the digits it has not seen are read right", output, re.MULTILINE)
    assert found is not None and float(found[1]) > 90
    losses = [float(loss) for loss in re.findall(r"^epoch \d+: loss (\S+)$", output, re.MULTILINE)]
    assert losses[0] > losses[-1]
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_text_is_found_by_what_it_means(server: Farcall, tmp_path: Path) -> None:
    """The nearest passage has no word of the question in it."""
    for name, text in {
        "bread": "Flour, water, salt and yeast become a dough that rises for an hour before it goes into the hot oven.",
        "volcano": "Molten rock reaches the surface through a crack, and ash falls on villages around the mountain.",
        "ships": "A captain keeps the log of a voyage: the wind, the course, the speed, and who stood watch at night.",
    }.items():
        (tmp_path / f"{name}.txt").write_text(text)
    command = ("run", EXAMPLES / "search_text.py", "--question", "How do I bake a loaf?", "--folder", tmp_path)
    header, *lines = server.farcall(*command, timeout=1700).stdout.splitlines()
    assert header == "3 passages; nearest to 'How do I bake a loaf?':"
    assert lines[0].split()[1] == "bread.txt:"
    scores = [float(line.split()[0]) for line in lines]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_same_program_here_there_and_on_two_workers(laptop: Installation, tmp_path: Path) -> None:
    """Its source is unchanged: only the profile says where its functions run."""
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text("container " * number + "of a few words")
    words = ("run", EXAMPLES / "word_count.py", "--folder", tmp_path, "--top", "3")
    pictures: set[bytes] = set()
    counted: set[str] = set()
    for profile in ((), ("--profile", "box"), ("--profile", "cluster")):
        picture = tmp_path / "picture.png"
        laptop.farcall("run", *profile, EXAMPLES / "render.py", "--width", "100", "--out", picture, timeout=900)
        pictures.add(picture.read_bytes())
        picture.unlink()
        counted.add(laptop.farcall(words[0], *profile, *words[1:], timeout=900).stdout)
    assert len(pictures) == 1
    assert len(counted) == 1
    listed = json.loads(laptop.farcall("worker", "list", "--json", "--profile", "cluster").stdout)
    assert {"w1", "w2"} <= {worker["name"] for worker in listed}
    assert laptop.farcall("worker", "list", "--profile", "box").stdout.count("\n") <= 2
