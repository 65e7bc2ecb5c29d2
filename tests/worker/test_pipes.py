"""Raw output of containers, through real pipes."""

import asyncio
import os
from collections.abc import Callable

from farcall.worker import pipes
from farcall.worker.pipes import LINE_LIMIT, OutputPipe
from tests.conftest import open_descriptors


def read(write: Callable[[int], None]) -> list[str]:
    """What a pipe hands on of what `write` writes into it before it is closed."""

    async def main() -> list[str]:
        texts: list[str] = []
        ended = asyncio.Event()
        ours, theirs = os.pipe()
        mine = {(str(fd), os.readlink(f"/proc/self/fd/{fd}")) for fd in (ours, theirs)}
        OutputPipe(ours, texts.append, ended.set)

        def work() -> None:
            try:
                write(theirs)
            finally:
                os.close(theirs)

        await asyncio.get_running_loop().run_in_executor(None, work)
        await asyncio.wait_for(ended.wait(), 60)
        assert not mine & open_descriptors()
        return texts

    return asyncio.run(main())


def test_text_comes_in_whole_lines_and_the_last_one_without_its_end_too() -> None:
    def write(fd: int) -> None:
        for part in (b"one\ntw", b"o\nthr", b"ee"):
            os.write(fd, part)

    texts = read(write)
    assert "".join(texts) == "one\ntwo\nthree"
    assert all(text.endswith("\n") for text in texts[:-1])


def test_a_character_that_is_torn_apart_is_put_together_again() -> None:
    encoded = "ä€😀\n".encode()

    def write(fd: int) -> None:
        for position in range(len(encoded)):
            os.write(fd, encoded[position : position + 1])

    assert "".join(read(write)) == "ä€😀\n"


def test_bytes_that_are_no_text_are_replaced() -> None:
    def write(fd: int) -> None:
        os.write(fd, b"a\xff\xfeb\n")

    assert "".join(read(write)) == "a\ufffd\ufffdb\n"


def test_a_line_without_end_is_split() -> None:
    def write(fd: int) -> None:
        os.write(fd, b"x" * 50_000)
        os.write(fd, b"x" * 50_000 + b"\n")

    texts = read(write)
    assert "".join(texts).replace("\n", "") == "x" * 100_000
    assert all(len(line) <= LINE_LIMIT for text in texts for line in text.splitlines())


def test_a_prompt_without_its_lines_end_is_not_held_back_for_long() -> None:
    async def main() -> None:
        ours, theirs = os.pipe()
        arrived: asyncio.Queue[str] = asyncio.Queue()
        OutputPipe(ours, arrived.put_nowait, lambda: None)
        os.write(theirs, b"continue? ")
        assert await asyncio.wait_for(arrived.get(), pipes.PARTIAL_SECONDS + 10) == "continue? "
        os.close(theirs)

    asyncio.run(main())
