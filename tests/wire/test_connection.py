"""One connection, many threads and loops: each gets its own answers, and nobody waits longer than needed."""

import asyncio
import gc
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farcall.errors import ConnectionLostError, ProtocolError
from farcall.wire import descriptors, messages
from farcall.wire.connection import Connection, Waiter
from farcall.wire.frames import FrameEncoder
from farcall.wire.transport import Transport
from tests.conftest import open_descriptors


class EchoServer:
    """Answers CancelCall(seq) with Done(seq) and the descriptors that came along, on a loop in a thread of its own."""

    def __init__(self) -> None:
        self.here, self.there = socket.socketpair()
        self.loop = asyncio.new_event_loop()
        self.refused: list[Any] = []
        self.hold = threading.Event()  # set: answers are kept back
        self.held: list[Any] = []
        started = threading.Event()

        def run() -> None:
            asyncio.set_event_loop(self.loop)
            self.loop.call_soon(self._open, started)
            self.loop.run_forever()

        self._thread = threading.Thread(target=run)
        self._thread.start()
        started.wait()

    def _open(self, started: threading.Event) -> None:
        async def make() -> None:
            self.transport = Transport(self.there, messages.FromClient, self._message, lambda: None)
            started.set()

        self._task = self.loop.create_task(make())

    def _message(self, message: Any, fds: tuple[int, ...]) -> None:
        if isinstance(message, ProtocolError):
            self.refused.append(message)
        elif self.hold.is_set():
            self.held.append(message)
        else:
            self.transport.send(messages.Done(message.seq), fds)

    def run(self, work: Any) -> None:
        done = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (work(), done.set()))
        done.wait()

    def close(self) -> None:
        self.run(self.transport.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Client:
    """Waiters by sequence number."""

    def __init__(self, sock: socket.socket) -> None:
        self.waiters: dict[int, Waiter] = {}
        self.answers: dict[int, tuple[Any, tuple[int, ...]]] = {}
        self.errors: list[Any] = []
        self.lost: list[ConnectionLostError] = []
        self.connection = Connection(sock, messages.ToClient, self.handle, self.lose)

    def handle(self, message: Any, fds: tuple[int, ...]) -> None:
        if isinstance(message, ProtocolError):
            self.errors.append(message)
            return
        self.answers[message.seq] = message, fds
        if message.seq in self.waiters:
            self.waiters[message.seq].set()

    def lose(self, error: ConnectionLostError) -> None:
        self.lost.append(error)
        for waiter in self.waiters.values():
            waiter.set()

    def ask(self, seq: int, fds: tuple[int, ...] = ()) -> Waiter:
        waiter = self.waiters[seq] = Waiter()
        self.connection.send(messages.CancelCall(seq, "fc-x"), fds)
        return waiter


@pytest.fixture
def server() -> Iterator[EchoServer]:
    server = EchoServer()
    yield server
    server.close()


@pytest.fixture
def client(server: EchoServer) -> Iterator[Client]:
    client = Client(server.here)
    yield client
    client.connection.close()


def test_one_thread_asks_and_is_answered(client: Client) -> None:
    for seq in range(1, 200):
        assert client.connection.wait(client.ask(seq), 10)
        assert client.answers[seq][0] == messages.Done(seq)


def test_many_threads_each_get_their_own_answers(client: Client) -> None:
    failures: list[int] = []

    def work(base: int) -> None:
        for seq in range(base, base + 300):
            if not client.connection.wait(client.ask(seq), 20) or seq not in client.answers:
                failures.append(seq)

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_leader_that_has_its_answer_passes_the_lead_on(server: EchoServer, client: Client) -> None:
    """The second thread's answer comes after the first, leading thread has left."""
    server.hold.set()
    first, second = client.ask(1), client.ask(2)
    done: list[int] = []
    threads = [
        threading.Thread(target=lambda: (client.connection.wait(first, 10), done.append(1))),
        threading.Thread(target=lambda: (client.connection.wait(second, 10), done.append(2))),
    ]
    for thread in threads:
        thread.start()
    server.run(lambda: server.transport.send(messages.Done(1)))
    threads[0].join()
    server.run(lambda: server.transport.send(messages.Done(2)))
    threads[1].join()
    assert done == [1, 2]


def test_threads_and_tasks_share_a_connection(client: Client) -> None:
    stop = threading.Event()
    counts = [0, 0]

    def thread_work() -> None:
        seq = 1_000_000
        while not stop.is_set():
            seq += 1
            assert client.connection.wait(client.ask(seq), 10)
            counts[0] += 1

    async def ask(seq: int) -> None:
        await client.connection.wait_async(client.ask(seq))
        assert client.answers[seq][0] == messages.Done(seq)
        counts[1] += 1

    async def main() -> None:
        for base in range(10):
            await asyncio.gather(*(ask(base * 100 + n + 1) for n in range(50)))

    thread = threading.Thread(target=thread_work)
    thread.start()
    asyncio.run(asyncio.wait_for(main(), 30))
    stop.set()
    thread.join()
    assert counts[0] > 0
    assert counts[1] == 500


def test_a_wait_ends_at_its_timeout(server: EchoServer, client: Client) -> None:
    server.hold.set()
    assert not client.connection.wait(client.ask(1), 0.01)
    server.run(lambda: server.transport.send(messages.Done(1)))
    assert client.connection.wait(client.waiters[1], 10)


@pytest.mark.parametrize("leads", [True, False], ids=["reads", "is woken by who reads"])
def test_a_signal_that_does_not_end_the_sleep_ends_the_wait(server: EchoServer, client: Client, leads: bool) -> None:
    """As one that comes just before the sleep, or as here goes to another thread."""
    server.hold.set()
    connection = client.connection
    other = threading.Thread(target=lambda: connection.wait(client.waiters[2]))
    client.ask(2)
    if not leads:
        other.start()
        until_asleep(other)
    sent_at = 0.0

    def interrupt() -> None:
        nonlocal sent_at
        until_asleep(threading.main_thread())
        sent_at = time.monotonic()
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    give_up = threading.Timer(30, lambda: server.run(lambda: server.transport.send(messages.Done(1))))
    give_up.start()
    with pytest.raises(KeyboardInterrupt):
        connection.wait(client.ask(1))
    assert time.monotonic() - sent_at < 20
    give_up.cancel()
    if leads:
        other.start()
    server.run(lambda: server.transport.send(messages.Done(2)))
    other.join()


def until_asleep(thread: threading.Thread) -> None:
    """Waits until the kernel has put a thread to sleep in a call of its own, and not to wait for the interpreter."""
    slept = 0
    while slept < 20:
        state = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()[0]
        slept = slept + 1 if state == "S" else 0
        time.sleep(0.005)  # lets go of the interpreter


def test_descriptors_arrive_with_their_frame(client: Client) -> None:
    for seq in range(1, 50):
        read, write = os.pipe()
        waiter = client.ask(seq, (write,))
        os.close(write)
        assert client.connection.wait(waiter, 10)
        (arrived,) = client.answers[seq][1]
        os.write(arrived, b"through")
        os.close(arrived)
        assert os.read(read, 10) == b"through"
        os.close(read)


def test_a_closed_peer_sets_everybody_free(server: EchoServer, client: Client) -> None:
    server.hold.set()
    waiters = [client.ask(seq) for seq in range(1, 4)]
    threads = [threading.Thread(target=client.connection.wait, args=(waiter,)) for waiter in waiters]
    for thread in threads:
        thread.start()
    server.run(server.transport.close)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert len(client.lost) == 1
    with pytest.raises(ConnectionLostError) as caught:
        client.connection.send(messages.ServerStatus(9))
    assert not caught.value.may_have_run


def test_a_refused_frame_is_reported_and_the_next_one_is_served(server: EchoServer, client: Client) -> None:
    os.write(client.connection.fileno(), (300 * 1024).to_bytes(4, "little") + bytes(300 * 1024))
    os.write(client.connection.fileno(), (3).to_bytes(4, "little") + b"\xff\xff\xff")
    assert client.connection.wait(client.ask(1), 10)
    assert len(server.refused) == 2


def test_claimed_descriptors_that_did_not_come_are_an_error_and_no_crash(server: EchoServer, client: Client) -> None:
    os.write(client.connection.fileno(), FrameEncoder().encode(messages.CancelCall(5, "fc-x"), 3))
    assert client.connection.wait(client.ask(1), 10)
    assert len(server.refused) == 1
    assert "descriptors" in str(server.refused[0])


def test_a_slow_reader_loses_nothing(server: EchoServer, client: Client) -> None:
    """More than the socket's buffers hold is kept by the transport, and comes in order."""
    count = 2000
    body = bytes(1000)

    def flood() -> None:
        for seq in range(1, count + 1):
            server.transport.send(messages.Done(seq, body))

    server.run(flood)
    last = client.waiters[count] = Waiter()
    assert client.connection.wait(last, 20)
    assert list(client.answers) == list(range(1, count + 1))


class Interrupted(BaseException):
    pass


def test_an_exception_of_a_signal_handler_harms_no_other_call(client: Client, rng: random.Random) -> None:
    """As Ctrl-C in a notebook does: it may come anywhere in the code that sends, waits and reads, also for others."""
    armed = False
    interruptions = answered = 0
    failures: list[str] = []
    stop = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        if armed:
            raise Interrupted

    def others_work() -> None:
        nonlocal answered
        seq = 1_000_000
        while not stop.is_set():
            seq += 1
            if not client.connection.wait(client.ask(seq), 20) or client.answers.pop(seq)[0] != messages.Done(seq):
                failures.append(f"call {seq} of the other thread")
                return
            answered += 1

    other = threading.Thread(target=others_work)
    other.start()
    before = signal.signal(signal.SIGALRM, interrupt)
    gc.disable()  # what others have it call back is no code of ours, and would swallow the exception with a warning
    try:
        for seq in range(1, 2001):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.random() * 0.0005)
                armed = True
                waiter = client.waiters[seq] = Waiter()
                client.connection.send(messages.CancelCall(seq, "fc-" + "x" * rng.choice((1, 100_000))))
                client.connection.wait(waiter)
                armed = False
            except Interrupted:
                armed = False
                interruptions += 1
            # While this thread reads nothing, the other gets its answers by itself.
            before_that = answered
            while answered == before_that and not failures:
                time.sleep(0.00005)
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
        stop.set()
        other.join()
    assert interruptions > 100
    assert not failures
    assert not client.errors
    assert not client.lost
    assert client.connection.wait(client.ask(9_000_000), 10)


def test_descriptors_that_nobody_claims_are_closed_and_confuse_no_later_frame(
    server: EchoServer, client: Client
) -> None:
    unclaimed, kept = os.pipe()
    before = open_descriptors()
    encoder = FrameEncoder()
    with socket.socket(fileno=os.dup(client.connection.fileno())) as raw:
        for seq in range(1, 100):
            raw.sendmsg([encoder.encode(messages.CancelCall(seq, "fc-x"))], descriptors.pack((unclaimed,) * 5))
        waiter = client.waiters[99] = Waiter()
        assert client.connection.wait(waiter, 10)
        server.run(lambda: None)  # it has done with what it answered
        assert {name for name, _ in open_descriptors() - before} == {str(raw.fileno())}
    assert client.connection.wait(client.ask(200, (kept,)), 10)
    (arrived,) = client.answers[200][1]
    assert not server.refused
    os.close(arrived)
    server.run(lambda: None)  # the server closes its own after it has sent them
    assert open_descriptors() <= before
    os.close(unclaimed)
    os.close(kept)


def test_a_follower_that_gives_up_passes_the_lead_on(server: EchoServer, client: Client) -> None:
    """Threads with short timeouts come and go; the one that stays still gets its answer."""
    server.hold.set()
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            client.connection.wait(Waiter(), 0.0005)

    impatient = [threading.Thread(target=come_and_go) for _ in range(3)]
    for thread in impatient:
        thread.start()
    try:
        for seq in range(1, 100):
            waiter = client.ask(seq)
            patient = threading.Thread(target=client.connection.wait, args=(waiter, 20))
            patient.start()
            server.run(lambda seq=seq: server.transport.send(messages.Done(seq)))
            if seq == 90:
                stop.set()  # from here on nobody else reads
            patient.join()
            assert waiter.done
    finally:
        stop.set()
        for thread in impatient:
            thread.join()


def test_descriptors_of_long_frames_are_not_taken_for_each_other(server: EchoServer, client: Client) -> None:
    """A frame of several pieces of the stream is read together with the head of the next one, and its descriptor."""
    pipes = [os.pipe() for _ in range(30)]

    def flood() -> None:
        for seq, (_, write) in enumerate(pipes, 1):
            server.transport.send(messages.Done(seq, bytes(150_000)), (write,))

    server.run(flood)
    last = client.waiters[len(pipes)] = Waiter()
    assert client.connection.wait(last, 20)
    assert not client.errors
    for seq, (read, _) in enumerate(pipes, 1):
        (arrived,) = client.answers[seq][1]
        os.write(arrived, b"%d" % seq)
        os.close(arrived)
        assert os.read(read, 10) == b"%d" % seq
        os.close(read)


def test_the_end_of_one_connection_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """What one message causes goes out to all, though one of them is gone and its end is not handled."""

    def ended() -> None:
        raise RuntimeError("not handled")

    def forward(message: Any, fds: tuple[int, ...]) -> None:
        gone.send(messages.Done(1))
        other.send(messages.Done(2))

    async def main() -> None:
        nonlocal gone, other
        source = Transport(pairs[0][1], messages.FromClient, forward, lambda: None)
        gone = Transport(pairs[1][1], messages.FromClient, forward, ended)
        other = Transport(pairs[2][1], messages.FromClient, forward, lambda: None)
        gone.pause()  # it does not see the end before it sends
        pairs[1][0].close()
        pairs[0][0].sendall(FrameEncoder().encode(messages.CancelCall(1, "fc-x"), 0))
        pairs[2][0].setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(pairs[2][0], 1000)
        source.close()
        other.close()

    gone: Any = None
    other: Any = None
    pairs = [socket.socketpair() for _ in range(3)]
    asyncio.run(asyncio.wait_for(main(), 10))
    assert "not handled" in caplog.text
    pairs[0][0].close()
    pairs[2][0].close()
