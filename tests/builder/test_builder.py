"""Builds through real containers: order, caching, sharing, failures."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from farcall.builder.progress import count_steps
from farcall.errors import ImageBuildError, InvalidError, NotFoundError
from farcall.spec.image import (
    BuiltBase,
    Configure,
    Copy,
    ImageSpec,
    InlineFile,
    RegistryBase,
    Run,
    RunMount,
    ScratchBase,
)
from tests.builder.conftest import Workshop

Context = Callable[[dict[str, str]], str]


def env(**pairs: str) -> Configure:
    return Configure("env", pairs=pairs)


def test_steps_lie_on_each_other(workshop: Workshop) -> None:
    image = workshop.build(
        Run("echo one > /root/a; mkdir /opt; echo old > /opt/b"),
        env(NAME="Ada Lovelace"),
        Run('rm /root/a; echo "$NAME" > /opt/b; ls /opt; id'),
    )
    assert workshop.text(image, "/opt/b") == "Ada Lovelace\n"
    assert b"root/a" not in workshop.tree(image)
    assert workshop.output == "b\nuid=0(root) gid=0(root) groups=0(root)\n"
    assert workshop.states == ["cached", "done", "done", "done"]


def test_what_was_done_is_not_done_again(workshop: Workshop) -> None:
    first = workshop.build(Run("echo x > /x"), Run("echo y > /y"))
    assert workshop.build(Run("echo x > /x"), Run("echo y > /y"), builder=workshop.another()) == first
    assert set(workshop.states) == {"cached"}
    # Another step at the end leaves the beginning as it is; one at the beginning leaves nothing.
    workshop.build(Run("echo x > /x"), Run("echo z > /z"))
    assert workshop.states == ["cached", "cached", "cached", "done"]
    workshop.build(Run("echo other > /x"), Run("echo y > /y"))
    assert workshop.states == ["cached", "cached", "done", "done"]


def test_a_step_counts_by_what_it_makes(workshop: Workshop) -> None:
    """Two ways to the same files have everything after them in common."""
    workshop.build(Run("echo same > /same"), Run("cat /same > /copy"))
    workshop.build(Run("echo  same  > /same; touch -d @0 /same"), Run("touch -d @0 /same; touch /mark"))
    before = workshop.build(Copy(target="/f", files=(InlineFile("f", "1"),)), Run("cat /f"))
    assert workshop.build(Copy(target="/f", files=(InlineFile("other", "1"),)), Run("cat /f")).tree == before.tree
    assert workshop.states[-1] == "cached"


def test_force_does_a_step_and_all_after_it_again(workshop: Workshop) -> None:
    steps = Run("seq 3 > /n"), Run("seq 4 > /m")
    workshop.build(*steps)
    workshop.build(msgspec.structs.replace(steps[0], force=True), steps[1])
    assert workshop.states == ["cached", "cached", "done", "done"]
    workshop.build(*steps, force=True)
    assert workshop.states[2:] == ["done", "done"]


def test_a_failing_step_shows_its_command_and_its_last_lines(workshop: Workshop) -> None:
    with pytest.raises(ImageBuildError) as failure:
        workshop.build(Run("echo before > /before"), Run("seq 100; echo oh no >&2; exit 3"))
    message = str(failure.value)
    assert "`seq 100; echo oh no >&2; exit 3` ended with status 3" in message
    assert message.endswith("  100\n  oh no")
    assert "  50\n" not in message
    assert failure.value.step == "RUN seq 100; echo oh no >&2; exit 3"
    assert workshop.states == ["cached", "cached", "done", "failed"]
    # What was done before it is kept.
    workshop.build(Run("echo before > /before"))
    assert set(workshop.states) == {"cached"}


def test_a_command_that_is_not_there(workshop: Workshop) -> None:
    with pytest.raises(ImageBuildError, match=r"`nonsense --flag` ended with status 127.*\n  nonsense: No such file"):
        workshop.build(Run(("nonsense", "--flag")))


def test_two_builds_at_once_share_the_work(workshop: Workshop, tmp_path: Path) -> None:
    spec = workshop.spec(Run("echo begun; sleep 0.5; cat /proc/sys/kernel/random/uuid > /uuid"))
    other = msgspec.structs.replace(spec, steps=(*spec.steps, Run("touch /other")))

    async def both() -> None:
        heard: list[list[str]] = [[], []]
        first, second = await asyncio.gather(
            *(
                workshop.builder.build(one, {}, False, lambda event, lines=lines: lines.append(event.text))
                for one, lines in zip((spec, other), heard, strict=True)
            )
        )
        assert workshop.text(first, "/uuid") == workshop.text(second, "/uuid")
        assert ["begun\n" in lines for lines in heard] == [True, True]

    workshop.run(both())


def test_a_cancelled_build_leaves_nothing_and_goes_on_where_it_was(workshop: Workshop) -> None:
    steps = Run("echo kept > /kept"), Run("echo begun; sleep 60")

    async def cancel() -> None:
        begun = asyncio.Event()
        build = asyncio.ensure_future(
            workshop.builder.build(
                workshop.spec(*steps), {}, False, lambda event: begun.set() if "begun" in event.text else None
            )
        )
        await begun.wait()
        build.cancel()
        with pytest.raises(asyncio.CancelledError):
            await build

    workshop.run(cancel())
    assert workshop.builder.busy == 0
    assert not list((workshop.store.root / "incoming").iterdir())
    workshop.build(steps[0])
    assert set(workshop.states) == {"cached"}


def test_secrets_are_seen_and_not_kept(workshop: Workshop) -> None:
    step = Run('echo "${#TOKEN} letters"; touch /made', secrets={"TOKEN": "handle"})
    image = workshop.build(step, secrets={"handle": "squeamish ossifrage"})
    assert workshop.output == "19 letters\n"
    # Another value is the same step.
    assert workshop.build(step, secrets={"handle": "another"}, builder=workshop.another()) == image
    for path in workshop.root.rglob("*"):
        if path.is_file():
            assert b"squeamish" not in path.read_bytes(), path
    with pytest.raises(InvalidError, match="no value came along for the secret variables TOKEN"):
        workshop.build(step, force=True)


def test_mounts_of_a_step(workshop: Workshop) -> None:
    cache = RunMount("cache", "/cache", "mine")
    workshop.build(Run("echo first >> /cache/log", mounts=(cache,)))
    image = workshop.build(
        Run("cat /cache/log > /seen; cat /run/token > /length", mounts=(cache, RunMount("secret", "/run/token", "t"))),
        secrets={"t": "squeamish"},
    )
    assert workshop.text(image, "/seen") == "first\n"
    assert b"cache/log" not in workshop.tree(image)
    tmpfs = workshop.build(Run("touch /scratch/x; ls /scratch", mounts=(RunMount("tmpfs", "/scratch"),)))
    assert b"scratch/x" not in workshop.tree(tmpfs)


def test_copy_counts_only_what_it_copies(workshop: Workshop, context: Context) -> None:
    one = context({"requirements.txt": "six\n", "main.py": "1\n"})
    copies = Copy(target="/app/", sources=("requirements.txt",), tree=one), Run("cat /app/requirements.txt")
    image = workshop.build(*copies, Copy(target="/app", sources=(".",), tree=one))
    assert workshop.text(image, "/app/main.py") == "1\n"
    other = context({"main.py": "2\n"})
    changed = msgspec.structs.replace(copies[0], tree=other), copies[1]
    again = workshop.build(*changed, Copy(target="/app", sources=(".",), tree=other))
    assert workshop.states == ["cached", "cached", "cached", "cached", "done"]
    assert workshop.text(again, "/app/main.py") == "2\n"


def test_copy_owner_mode_and_names(workshop: Workshop, context: Context) -> None:
    tree = context({"a.txt": "a", "b.txt": "b", "deep/c.txt": "c"})
    image = workshop.build(
        Configure("workdir", words=("/work",)),
        Copy(target="renamed", sources=("a.txt",), tree=tree, owner="ada:music", mode=0o640),
        Copy(target="some/", sources=("*.txt",), tree=tree, owner="5:6"),
        Copy(target="all", sources=("deep",), tree=tree),
        Run("stat -c '%U %u:%g %a %n' renamed some/*; ls all"),
    )
    assert workshop.output == (
        "ada 1000:50 640 renamed\nUNKNOWN 5:6 644 some/a.txt\nUNKNOWN 5:6 644 some/b.txt\nc.txt\n"
    )
    del image
    with pytest.raises(ImageBuildError, match=r"COPY a.text: there is no such file; did you mean a.txt"):
        workshop.build(Copy(target="/", sources=("a.text",), tree=tree))
    with pytest.raises(ImageBuildError, match="there is no user 'nobody'"):
        workshop.build(Copy(target="/", sources=("a.txt",), tree=tree, owner="nobody"))


def test_steps_are_counted_before_they_come(workshop: Workshop) -> None:
    stage = ImageSpec(ScratchBase(), (Run("a"), Configure("user", ("b",))))
    copies = Copy("/", (".",), stage=stage), Copy("/", (".",), image=RegistryBase("c")), Copy("/", (".",), tree="d")
    assert count_steps(ImageSpec(RegistryBase("e", add_python="3.12"), copies)) == 2 + 3 + 2 + 1
    workshop.build(Copy("/b/", (".",), stage=workshop.spec(Run("true"))))
    assert {event.steps for event in workshop.events} == {max(event.step for event in workshop.events)}


def test_stages(workshop: Workshop) -> None:
    compile_stage = workshop.spec(Run("mkdir /out; echo binary > /out/program; chmod 755 /out/program"))
    image = workshop.build(Copy(target="/usr/bin/", sources=("/out/program",), stage=compile_stage))
    assert workshop.text(image, "/usr/bin/program") == "binary\n"
    assert b"out" not in workshop.tree(image)


def test_an_image_on_an_image_that_is_built(workshop: Workshop) -> None:
    first = workshop.build(Run("echo base > /base"), env(A="1"))
    spec = ImageSpec(BuiltBase(first.image_id), (Run('cat /base; echo "$A"'),))
    image = workshop.run(workshop.build_async(spec))
    assert workshop.output == "base\n1\n"
    assert image.config.env["A"] == "1"
    workshop.builder.images.publish(first.image_id, "team/base:v1")
    workshop.run(workshop.build_async(msgspec.structs.replace(spec, base=BuiltBase("team/base:v1"))))
    with pytest.raises(NotFoundError, match="there is no image named 'team/base'; known: team/base:v1"):
        workshop.run(workshop.build_async(msgspec.structs.replace(spec, base=BuiltBase("team/base"))))


def test_a_user_of_the_image_runs_its_commands(workshop: Workshop) -> None:
    workshop.build(Configure("user", words=("ada",)), Run("id; echo $HOME"))
    assert workshop.output == "uid=1000(ada) gid=1001(ada) groups=1001(ada),50(music)\n/home/ada\n"


def test_the_shell_and_exec_forms(workshop: Workshop) -> None:
    workshop.build(
        Run(("sh", "-c", "echo '$0 is not expanded'")),
        Configure("shell", words=("/bin/sh", "-e", "-c")),
        Run("echo with -e: $-"),
    )
    assert "$0 is not expanded" in workshop.output
    assert "with -e: e" in workshop.output


def test_arguments_are_seen_by_later_steps_only(workshop: Workshop) -> None:
    image = workshop.build(
        Configure("arg", pairs={"VERSION": "7"}),
        Run("echo version $VERSION"),
        Copy(target="/v$VERSION", files=(InlineFile("v", "$VERSION", expand=True),), expand="\\"),
    )
    assert workshop.output == "version 7\n"
    assert workshop.text(image, "/v7") == "7"
    assert image.config.args == {}


def test_nothing_at_all(workshop: Workshop) -> None:
    image = workshop.run(workshop.build_async(ImageSpec(ScratchBase())))
    assert len(workshop.tree(image)) == 1
    assert image.python is None


def test_the_owner_and_mode_of_the_root_directory_are_kept(workshop: Workshop) -> None:
    steps = Run("chown ada:music / && chmod 1711 /"), Run("echo later > /later")
    root = workshop.tree(workshop.build(*steps)).entries[0]
    assert (oct(root.mode), root.uid, root.gid) == ("0o41711", 1000, 50)
    workshop.build(*steps, Run("stat -c '%a %u:%g' /"))
    assert "1711 1000:50" in workshop.output


def test_an_image_shows_nothing_of_others_or_of_the_host(workshop: Workshop, tmp_path: Path) -> None:
    other = workshop.build(Run("echo of another image > /hidden"))
    hidden = workshop.tree(other).get(b"hidden")
    passwd = workshop.tree(other).get(b"etc/passwd")
    assert hidden is not None and passwd is not None
    objects = [workshop.store.path_of(entry.digest) for entry in (hidden, passwd)]
    before = [(path.read_bytes(), path.stat().st_mode, path.stat().st_mtime_ns) for path in objects]
    places = [*objects, workshop.store.root, workshop.root, tmp_path, "/hidden", "/home", "/boot", "/var/lib/dpkg"]
    image = workshop.build(
        Run(f"for place in {' '.join(map(str, places))}; do [ ! -e $place ] || echo seen $place; done"),
        Run("cat /proc/self/mountinfo /proc/mounts"),
        Run("ls /; echo changed > /etc/passwd; chmod 777 /etc/passwd; touch /etc/passwd; rm -r /root; true"),
    )
    assert "seen" not in workshop.output
    assert str(workshop.root) not in workshop.output
    assert workshop.text(image, "/etc/passwd") == "changed\n"
    assert [(path.read_bytes(), path.stat().st_mode, path.stat().st_mtime_ns) for path in objects] == before
