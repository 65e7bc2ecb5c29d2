"""Builds that find what another machine built in an object store, and do without where it fails them."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from farcall.builder import finisher
from farcall.builder.images import Image, Python
from farcall.builder.pushing import waiting
from farcall.content.gc import collect
from farcall.content.tiers.places import open_place
from farcall.content.verify import verify
from farcall.spec.image import Copy, Run
from tests.builder.conftest import Workshop
from tests.conftest import short_directory


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """The object store."""
    return tmp_path / "shelf"


@pytest.fixture
def here(programs: Path, shelf: Path) -> Iterator[Workshop]:
    """A machine."""
    with short_directory() as root:
        made = Workshop(root, programs, str(shelf))
        yield made
        made.close()


@pytest.fixture
def there(programs: Path, shelf: Path) -> Iterator[Workshop]:
    """Another machine."""
    with short_directory() as root:
        made = Workshop(root, programs, str(shelf))
        yield made
        made.close()


STEPS = (Run("echo one >/work/one"), Run("cat /work/one /work/one >/work/two"))


def _built_and_pushed(here: Workshop) -> str:
    image = here.build(*STEPS)
    here.run(here.builder.settle())
    assert not waiting(here.store, open_place(here.object_store))
    return image.image_id


def _text(workshop: Workshop, image: Image, path: str) -> str:
    """A file's content, which may be elsewhere still."""
    with workshop.store.lease("test") as lease:
        workshop.run(workshop.builder.elsewhere.bring(lease, [image.tree], print))
        return workshop.text(image, path)


def test_what_one_machine_built_another_fetches(here: Workshop, there: Workshop) -> None:
    image_id = _built_and_pushed(here)
    found = there.build(*STEPS)
    assert found.image_id == image_id
    assert there.states == ["cached"] * 4 + ["done"], "no step was done; the image was fetched"
    assert _text(there, found, "/work/two") == "one\none\n"
    assert there.build(*STEPS) == found
    assert there.states == []
    # It stays as one that was built here, through another server's life and a collection.
    collect(there.store)
    assert not verify(there.store).damaged
    assert there.run(there.build_async(there.spec(*STEPS), builder=there.another())) == found
    assert there.states == ["cached"] * 4


def test_a_build_goes_on_where_another_machine_ended(here: Workshop, there: Workshop) -> None:
    _built_and_pushed(here)
    grown = there.build(*STEPS, Run("cat /work/one /work/two >/work/three"))
    assert there.states == ["cached"] * 4 + ["done"]
    assert _text(there, grown, "/work/three") == "one\n" * 3
    there.run(there.builder.settle())
    # And back: the first machine has all of the new image but its last step.
    assert here.build(*STEPS, Run("cat /work/one /work/two >/work/three")).image_id == grown.image_id
    assert here.states == ["cached"] * 5 + ["done"]


def test_copying_from_an_image_that_is_elsewhere(here: Workshop, there: Workshop) -> None:
    _built_and_pushed(here)
    stage = there.spec(*STEPS)
    copied = there.build(Copy(target="/copied", sources=("/work/two",), stage=stage))
    assert _text(there, copied, "/copied") == "one\none\n"
    assert there.states.count("done") == 1, "the copy, and no step of the stage"


def test_an_object_store_that_has_lost_something_is_done_without(here: Workshop, there: Workshop, shelf: Path) -> None:
    _built_and_pushed(here)
    shutil.rmtree(shelf / "packs")
    steps = (*STEPS, Run("cat /work/two >/work/three"))
    found = there.build(*steps)
    assert there.text(found, "/work/three") == "one\none\n"
    assert there.states == ["cached"] + ["done"] * 4, "it was tried, and then built here"
    assert not verify(there.store).damaged


def test_an_object_store_that_cannot_be_used_is_done_without(there: Workshop, shelf: Path) -> None:
    shelf.write_text("no directory")
    found = there.build(*STEPS)
    assert _text(there, found, "/work/two") == "one\none\n"


def test_force_builds_here(here: Workshop, there: Workshop) -> None:
    _built_and_pushed(here)
    there.build(*STEPS, force=True)
    assert there.states == ["cached", "done", "done", "done"]


def test_a_builder_that_is_closed_pushes_nothing(here: Workshop) -> None:
    """Else its server, whose work ends as it closes, would leave a job behind that nobody waits for."""
    here.build(*STEPS)

    async def close() -> set[Any]:
        await here.builder.close()
        here.builder.elsewhere.push()
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert here.run(close()) == set()


PYTHON = Run("printf '#!/bin/sh\\necho bytecode > /work/bytecode\\n' > /bin/python3; chmod 755 /bin/python3")


@pytest.fixture
def pythonic(here: Workshop, there: Workshop, monkeypatch: pytest.MonkeyPatch) -> Callable[[Image], Image]:
    """Says of an image that it has a Python, whose compiler leaves a file behind; it has not been compiled."""
    monkeypatch.setattr(finisher.private, "existing", lambda details: Path("/nonexistent"))

    def pythonic(image: Image) -> Image:
        python = Python("/bin/python3", "3.11", "cpython-311", ".so", "/", ())
        here.builder.images.put(msgspec.structs.replace(image, python=python))
        return here.builder.images.get(image.image_id)

    return pythonic


def _is_partial(workshop: Workshop, image: Image) -> bool:
    return workshop.store.partial_path(image.tree).exists()


def _pushed(workshop: Workshop) -> None:
    workshop.builder.elsewhere.push()
    workshop.run(workshop.builder.settle())


def test_bytecode_is_waited_for_from_who_built_the_image(
    here: Workshop, there: Workshop, pythonic: Callable[[Image], Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than made of source that is not here."""
    monkeypatch.setattr(finisher, "_LOOK_SECONDS", 0.0)
    built = pythonic(here.build(*STEPS, PYTHON))
    _pushed(here)
    found = there.build(*STEPS, PYTHON)
    if not _is_partial(there, found):
        pytest.skip("images do not start before they have arrived here")
    there.run(there.builder.settle())
    assert not there.builder.images.get(found.image_id).compiled and _is_partial(there, found)

    async def compile_here() -> None:
        here.builder._finisher.compile(built)
        await here.builder.settle()

    here.run(compile_here())
    compiled = here.builder.images.get(built.image_id)
    assert compiled.compiled
    there.build(*STEPS, PYTHON)
    there.run(there.builder.settle())
    adopted = there.build(*STEPS, PYTHON)
    assert adopted.compiled and adopted.root == compiled.root
    assert there.store.tree(adopted.root).get(b"work/bytecode") is not None
    assert _is_partial(there, adopted), "and nothing of it was fetched for that"


def test_bytecode_that_nobody_else_makes_is_made_here(
    here: Workshop, there: Workshop, pythonic: Callable[[Image], Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finisher, "_ELSEWHERE_SECONDS", 0.0)
    pythonic(here.build(*STEPS, PYTHON))
    _pushed(here)
    there.build(*STEPS, PYTHON)
    there.run(there.builder.settle())
    compiled = there.build(*STEPS, PYTHON)
    assert compiled.compiled
    assert there.store.tree(compiled.root).get(b"work/bytecode") is not None
