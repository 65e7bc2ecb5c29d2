"""The blocking side of the wire: one socket, shared by all threads and event loops of a process.

A call must not cross threads: waking another thread costs more than the whole round trip. So whichever thread waits
for a message reads the socket itself. One of them, the leader, reads and hands every message to the handler,
also those for others; when it has what it waited for it passes the lead to a follower. An event loop never leads for
longer than one read: it watches the socket and reads only when no thread does.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from farcall.errors import ConnectionLostError
from farcall.wire import descriptors, processors
from farcall.wire.frames import FrameEncoder
from farcall.wire.incoming import Incoming

if TYPE_CHECKING:
    import asyncio

READ_SIZE = 256 * 1024  # bytes, of one read

SPIN_SECONDS = 600e-6  # twice a short call, also on a worker near by
# The longest sleep. A signal that comes just before it, or that the kernel gives to another thread, does not end it,
# and what the signal's handler raises is raised after it.
SLEEP_SECONDS = 1.0
SLEEPING_READS = 128  # at most, after spins in vain: not one call in a hundred is to look where that does not help

_DONT_WAIT = int(socket.MSG_DONTWAIT)


class Waiter:
    """Something a thread or a task waits for. The connection's handler calls `set` when it is there; once set it stays
    set."""

    __slots__ = ("_future", "_loop", "_loop_thread", "_wake", "done")

    def __init__(self) -> None:
        self.done = False
        self._wake: threading.Lock | None = None
        self._future: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0

    def set(self) -> None:
        """Ends the wait. Any thread; more than once does no harm."""
        self.done = True
        self.wake()

    def clear(self) -> None:
        """Makes the waiter wait again. Only the thread or task that waits may do this."""
        self.done = False

    def wake(self) -> None:
        """Lets the waiting thread look again, done or not."""
        wake = self._wake
        if wake is not None and wake.locked():
            try:
                wake.release()
            except RuntimeError:
                pass  # another thread released it in between
        future, loop = self._future, self._loop
        if future is not None and loop is not None:
            if self._loop_thread == threading.get_ident():
                _resolve(future)
            else:
                try:
                    loop.call_soon_threadsafe(_resolve, future)
                except RuntimeError:
                    pass  # the loop is closed, and with it whoever waited


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Connection:
    """A stream of messages over one Unix socket.

    `on_message(message, fds)` is called by whichever thread or loop is reading, one message at a time, in order; it
    owns the descriptors and must not block. A message whose handling was interrupted by an exception (of a signal's
    handler) comes again. `on_close(error)` is called once, when the peer is gone or `close` was
    called; every waiter must be set by it. A frame that is refused goes to `on_message` as a ProtocolError.
    """

    def __init__(
        self,
        sock: socket.socket,
        messages: Any,
        on_message: Callable[[Any, tuple[int, ...]], None],
        on_close: Callable[[ConnectionLostError], None],
    ) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._on_message = on_message
        self._on_close = on_close
        self._encoder = FrameEncoder()
        self._incoming = Incoming(messages)
        self.longest_sleep = SLEEP_SECONDS
        self.spins = False  # whether a wait looks for a while before it sleeps
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._sleep_reads = 0  # how many reads are to sleep at once
        self._slept = 0  # how many were to, after the last spin in vain
        self._buffer = bytearray(READ_SIZE)
        self._view = memoryview(self._buffer)
        # What has been read and not been handled.
        self._received: tuple[int, descriptors.Ancillary, int, Any] | None = None
        self._handling: tuple[Any, tuple[int, ...]] | None = None
        self._interrupted = False  # an exception left some of it behind
        self._send_lock = threading.Lock()
        self._unsent = b""  # rest of a frame whose sending was interrupted by an exception in a signal handler
        self._mutex = threading.Lock()  # guards the followers, and who becomes the leader
        self._leading = False
        self._followers: list[Waiter] = []
        self._watchers: dict[asyncio.AbstractEventLoop, int] = {}
        self._closed: ConnectionLostError | None = None
        self._over = False  # closed, and everyone has been told

    @property
    def closed(self) -> bool:
        """Whether the connection is over."""
        return self._closed is not None

    def fileno(self) -> int:
        """The socket's descriptor, -1 once closed."""
        return self._sock.fileno()

    # --- sending

    def send(self, message: Any, fds: Sequence[int] = ()) -> None:
        """Sends one message; returns when the kernel has it. The descriptors stay the caller's.

        Raises ConnectionLostError (which then says that nothing has run) where the connection is over, ProtocolError
        where the message is too large.
        """
        with self._send_lock:
            frame = self._encoder.encode(message, len(fds))
            if self._closed is not None:
                raise ConnectionLostError(str(self._closed), may_have_run=False)
            started = False
            try:
                while self._unsent:
                    self._send_bytes(self._unsent)
                if fds:
                    # The descriptors go with the first byte.
                    for sent in map(self._sock.sendmsg, ([frame],), (descriptors.pack(fds),)):
                        self._unsent = frame[sent:]
                else:
                    self._send_bytes(frame)
                started = True
                while self._unsent:
                    self._send_bytes(self._unsent)
            except OSError as error:
                if error.errno is None:  # not the socket's: a signal's handler raised it
                    raise
                self._unsent = b""
                self._end(f"the connection to the server broke while sending: {error}")
                raise ConnectionLostError(str(self._closed), may_have_run=started) from error

    def _send_bytes(self, data: bytes) -> None:
        # A signal's handler (Ctrl-C) may raise between a call's return and the use of its result, but not between an
        # iterator's next and its target: so it is known for certain what the kernel took, and the stream stays whole.
        for sent in map(self._sock.send, (data,)):
            self._unsent = data[sent:]

    # --- waiting

    def wait(self, waiter: Waiter, timeout: float | None = None) -> bool:
        """Blocks until the waiter is set; False where `timeout` seconds pass, or the connection ends, first. Reads the
        socket where nobody else does."""
        deadline = None if timeout is None else time.monotonic() + timeout
        lead = followed = False
        wake: threading.Lock | None = None
        try:
            while not waiter.done and not self._over:
                with self._mutex:
                    if not self._leading:
                        self._leading = lead = True
                    else:
                        followed = True
                        waiter._wake = wake = threading.Lock()  # pyright: ignore[reportPrivateUsage]
                        wake.acquire()
                        self._followers.append(waiter)
                if lead:
                    while not waiter.done and self._read(deadline):
                        pass
                    break
                assert wake is not None
                # `set` may have come before it could see the lock.
                if not waiter.done:
                    while not (woken := wake.acquire(timeout=self._sleep_seconds(deadline))):
                        if deadline is not None and time.monotonic() >= deadline:
                            break
                    if not woken:
                        break
                self._unfollow(waiter)
            return waiter.done
        finally:
            if lead:
                self._leading = False  # here, where no handler of a signal can come in between
            elif followed:
                waiter._wake = None  # pyright: ignore[reportPrivateUsage]
            # One that followed may have been woken to lead: the lead must not be lost, however this ends. What a
            # signal's handler raises, at the first step of the call already, concerns the others nothing.
            try:
                self._pass_lead(waiter)
            except BaseException:
                self._pass_lead(waiter)
                raise

    async def wait_async(self, waiter: Waiter) -> None:
        """Awaits the waiter. Many tasks and loops may wait at once, beside threads."""
        import asyncio

        if waiter.done:
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        waiter._loop, waiter._loop_thread, waiter._future = loop, threading.get_ident(), future  # pyright: ignore[reportPrivateUsage]
        self._watch(loop)
        try:
            while not waiter.done:
                await future
                if not waiter.done:
                    future = loop.create_future()
                    waiter._future = future  # pyright: ignore[reportPrivateUsage]
        finally:
            waiter._future = None  # pyright: ignore[reportPrivateUsage]
            self._unwatch(loop)

    def poll(self) -> bool:
        """Handles what has arrived, without waiting. False where nothing had, or another thread is reading."""
        return self._read_without_waiting()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        count = self._watchers.get(loop, 0)
        self._watchers[loop] = count + 1
        if count == 0 and not self.closed:
            loop.add_reader(self._sock.fileno(), self._read_without_waiting)

    def _unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        count = self._watchers[loop] - 1
        if count:
            self._watchers[loop] = count
            return
        del self._watchers[loop]
        if self._sock.fileno() >= 0 and not loop.is_closed():
            loop.remove_reader(self._sock.fileno())

    # --- reading

    def _pass_lead(self, leaving: Waiter | None = None) -> None:
        """Wakes a follower to lead, where nobody does. Twice does no harm."""
        with self._mutex:
            if leaving is not None and leaving in self._followers:
                self._followers.remove(leaving)
            if self._followers and not self._leading:
                self._followers[-1].wake()

    def _unfollow(self, waiter: Waiter) -> None:
        with self._mutex:
            if waiter in self._followers:
                self._followers.remove(waiter)

    def _read_without_waiting(self) -> bool:
        lead = False
        try:
            with self._mutex:
                if self._leading:
                    return False
                self._leading = lead = True
            return self._receive()
        finally:
            if lead:
                self._leading = False
                try:  # as in `wait`
                    self._pass_lead()
                except BaseException:
                    self._pass_lead()
                    raise

    def _read(self, deadline: float | None) -> bool:
        # Not by a blocking read: the kernel wakes that also when the peer takes what was sent to it.
        if not self._interrupted and (deadline is not None or not (self.spins and self._spin())):
            while not self._poll.poll(self._sleep_seconds(deadline) * 1000):
                if deadline is not None and time.monotonic() >= deadline:
                    return False
        self._receive()
        return not self._over

    def _sleep_seconds(self, deadline: float | None) -> float:
        return (
            self.longest_sleep if deadline is None else min(self.longest_sleep, max(0.0, deadline - time.monotonic()))
        )

    def _spin(self) -> bool:
        """Looks for an answer for as long as a short call takes, and says whether something came. To sleep and be woken
        costs as much as all the rest of such a call; where calls are not that short, fewer and fewer waits try it."""
        if self._sleep_reads:
            self._sleep_reads -= 1
            return False
        until = time.monotonic() + SPIN_SECONDS
        while time.monotonic() < until:
            if self._poll.poll(0):
                self._slept = 0
                return True
            processors.give_way()  # whoever is to answer may have been woken on this processor
        # One call that took longer must not end the looking for the next ones.
        self._sleep_reads = self._slept = min(SLEEPING_READS, 2 * self._slept or 1)
        return False

    def _receive(self) -> bool:
        if self._interrupted:
            self._go_on()
            return True
        try:
            try:
                # As in `_send_bytes`: what the kernel gave is not lost.
                for received in map(
                    self._sock.recvmsg_into,
                    ((self._buffer,),),
                    (descriptors.ANCILLARY_SPACE,),
                    (_DONT_WAIT | descriptors.CLOSE_ON_EXEC,),
                ):
                    self._received = received
            except OSError as error:
                if error.errno is None:  # not the socket's: a signal's handler raised it
                    raise
                if not isinstance(error, BlockingIOError):
                    self._end(f"the connection to the server broke: {error}")
                return False
            return self._take()
        except BaseException:
            # What has been read may be for others, and is handed on whatever this thread was told by a signal.
            self._interrupted = True
            self._go_on()
            raise

    def _take(self) -> bool:
        received = self._received
        assert received is not None
        count, ancillary, flags, _ = received
        if count == 0:
            self._received = None
            self._end("the server closed the connection")
            return False
        self._incoming.add(self._view[:count], ancillary, flags)
        self._received = None
        self._hand_on()
        return True

    def _hand_on(self) -> None:
        while True:
            # Taken and noted in one step: a loop that takes in its condition has its jump, where a signal's handler may
            # raise, between the two.
            self._handling = each = self._incoming.take()
            if each is None:
                return
            self._on_message(*each)
            self._handling = None

    def _go_on(self) -> None:
        """Goes on where an exception stopped the handling of what was read; the message that was being handled is
        handled again."""
        if self._handling is not None:
            self._on_message(*self._handling)
            self._handling = None
        self._hand_on()
        if self._received is not None:
            self._take()
        self._interrupted = False

    # --- ending

    def close(self) -> None:
        """Ends the connection; whoever waits is set free. Safe from any thread."""
        self._end("the connection was closed")

    def abandon(self) -> None:
        """After a fork, in the child: lets go of the socket without a word to the peer, which the parent goes on
        using."""
        self._closed = ConnectionLostError("the connection belongs to the parent process")
        self._over = True
        os.close(self._sock.detach())

    def _end(self, reason: str) -> None:
        with self._mutex:
            if self._closed is not None:
                return
            self._closed = error = ConnectionLostError(reason)
        for loop in list(self._watchers):
            fd = self._sock.fileno()
            if not loop.is_closed():
                loop.call_soon_threadsafe(loop.remove_reader, fd)
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._incoming.close()
        try:
            self._on_close(error)
        finally:
            self._over = True
