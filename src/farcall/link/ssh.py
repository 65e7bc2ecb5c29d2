"""The system's `ssh`, and what it says: commands on the other machine, and why one could not be run.

The user's own configuration, jump hosts, keys and agent are used as they are. Nobody is asked anything: farcall has no
terminal here, so what `ssh` would ask must be settled by hand once.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from typing import NamedTuple, NoReturn

from farcall import errors
from farcall.link.address import Address
from farcall.link.far import MARK
from farcall.link.stream import LIMIT, PipeStream

CONNECT_SECONDS = 15  # for one attempt to connect
_LEFT_SECONDS = 5.0  # for what an ssh that was ended has left to read
FAILED = 255  # ssh's own exit code
_EXIT_SECONDS = 2.0  # for an `ssh` to end that says nothing more
_REMEDY = re.compile(r"^\s*(ssh-keygen -f .+)$", re.MULTILINE)
_NOISE = 64  # lines that a login may print before ours


class Command:
    """How `ssh` is run: `command` is the user's setting, a program and its options."""

    def __init__(self, address: Address, command: str = "ssh") -> None:
        self.address = address
        self.by_hand = shlex.join([*shlex.split(command), *address.arguments])
        self._command = shlex.split(command)

    def arguments(self, script: str, *words: str, terminal: bool = False) -> list[str]:
        """The command line that runs a shell script there; `words` are its $1, $2, ..."""
        if "'" in script:
            raise ValueError("the script cannot be quoted for every shell")  # csh and fish have other rules
        return [
            *self._command,
            # With a terminal it would say at the end that the connection is closed.
            *(("-t", "-o", "LogLevel=ERROR") if terminal else ("-T",)),
            *("-o", "BatchMode=yes"),
            *("-o", f"ConnectTimeout={CONNECT_SECONDS}"),
            *("-o", "ServerAliveInterval=5"),
            *("-o", "ServerAliveCountMax=3"),
            *self.address.arguments,
            " ".join((f"exec sh -c '{script}' farcall", *map(shlex.quote, words))),
        ]

    async def start(self, script: str, *words: str, input: int = PIPE) -> Process:
        """Starts a shell script there. Raises InvalidError where there is no `ssh`."""
        arguments = self.arguments(script, *words)
        try:
            return await asyncio.create_subprocess_exec(
                *arguments, stdin=input, stdout=PIPE, stderr=PIPE, limit=LIMIT, start_new_session=True
            )
        except OSError as error:
            raise errors.InvalidError(
                f"{arguments[0]} cannot be run: {error.strerror}. A server on another machine is reached by ssh: "
                "install it (Debian: apt install openssh-client)"
            ) from error


class Complaints:
    """What an `ssh` says of itself: the end of it."""

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self._kept = b""
        self._reading = asyncio.ensure_future(self._read(stream))

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(4096):
            self._kept = (self._kept + data)[-8192:]

    async def text(self) -> str:
        """All of that, of an `ssh` that has ended: also where something else goes on and could say more, as the master
        of a shared connection."""
        await asyncio.wait([self._reading], timeout=_LEFT_SECONDS)
        self._reading.cancel()
        return self._kept.decode(errors="replace").strip()


class Attached(NamedTuple):
    """A script on the other machine that has said its first word."""

    process: Process
    word: str
    stream: PipeStream
    complaints: Complaints


async def attach(command: Command, script: str, *words: str) -> Attached:
    """Starts a script there and waits for its first line, which begins with `MARK`; what a login prints before that is
    skipped. Raises ConnectionError, or another error that says what is to be done, where it does not come."""
    process = await command.start(script, *words)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    complaints = Complaints(process.stderr)
    word = last = ""
    try:
        async with asyncio.timeout(4 * CONNECT_SECONDS):
            for _ in range(_NOISE):
                line = await process.stdout.readline()
                if line.startswith(MARK.encode()):
                    word = line[len(MARK) :].decode(errors="replace").strip()
                    break
                if not line:
                    break
                last = line.decode(errors="replace").strip() or last
    except (TimeoutError, ValueError):
        pass
    if not word:
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _EXIT_SECONDS)  # with a code of its own
        await end(process)
        # An account that may not log in says so as commands say what they have to.
        explain(command, process.returncode, f"{await complaints.text()}\n{last}")
    return Attached(process, word, PipeStream(process.stdout, process.stdin), complaints)


async def end(process: Process) -> None:
    """Ends an `ssh`, however it is, and what it has started: a jump host's `ssh`, or a proxy, would hold on to where
    this one says what is wrong."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # it was made the leader of a group of its own
    await process.wait()


class Ran(NamedTuple):
    """What a script on the other machine printed. `code` is its exit code, or None where it took too long."""

    code: int | None
    out: str
    complaints: str


async def run(command: Command, script: str, *words: str, data: bytes = b"", seconds: float) -> Ran:
    """Runs a script there with `data` as its input, to its end, or for so many seconds: then it is ended here, and
    hears of that when it next writes."""
    process = await command.start(script, *words, input=PIPE if data else DEVNULL)
    talking = asyncio.ensure_future(process.communicate(data or None))
    code: int | None = None
    try:
        done, _ = await asyncio.wait([talking], timeout=seconds)
        if done:
            code = process.returncode
    finally:
        if not talking.done():
            await end(process)
            # What has left the group, as the master of a shared connection, may hold on to the streams.
            await asyncio.wait([talking], timeout=_LEFT_SECONDS)
            talking.cancel()
    if not talking.done() or talking.cancelled():
        return Ran(None, "", "")
    out, complaints = talking.result()
    return Ran(code, out.decode(errors="replace"), complaints.decode(errors="replace"))


def explain(command: Command, code: int | None, said: str) -> NoReturn:
    """Raises what an `ssh` that did not come through means, with what helps."""
    where = str(command.address)
    lines = [line.strip() for line in said.splitlines() if line.strip() and not set(line.strip()) <= {"@"}]
    last = lines[-1] if lines else "it said nothing"
    if "HOST IDENTIFICATION HAS CHANGED" in said:
        remedy = _REMEDY.search(said)  # it knows in which file and by which name, some do
        removal = remedy.group(1).strip() if remedy is not None else f"ssh-keygen -R {command.address.host}"
        raise errors.AuthError(
            f"{where} is not the machine it was: its host key has changed. If that is as it should be, remove the old "
            f"one ({removal}) and connect once by hand: {command.by_hand}"
        )
    if "Host key verification failed" in said:
        raise errors.AuthError(f"the host key of {where} is not known here; connect once by hand: {command.by_hand}")
    if "Permission denied" in said:
        raise errors.AuthError(
            f"{where} lets nobody in with the keys at hand ({last}); add one to the agent (ssh-add), and see that this "
            f"works without a question: {command.by_hand}"
        )
    if code == FAILED or code is None or code < 0:
        raise errors.ConnectionError(f"{where} cannot be reached: {last}; by hand: {command.by_hand}")
    raise errors.ConnectionError(f"{where} ends each command at once (exit code {code}): {last}")
