"""What a call to a worker costs before farcall does anything: four processes that only pass bytes on.

From a caller over a Unix socket to a second process, over TLS on loopback to a third, over a Unix socket to a fourth,
and all the way back: the hops that a call takes, each a blocking read and a write of some lines of Python.
"""

from __future__ import annotations

import multiprocessing
import socket
import ssl
import tempfile
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from farcall.cluster.authority import Authority

NAME = "bare sockets"
MESSAGE = bytes(150)  # of the size that a call's messages have
_READ_SIZE = 1 << 16


def _echo(end: socket.socket) -> None:
    while data := end.recv(_READ_SIZE):
        end.send(data)


def _pass_on(before: socket.socket, after: socket.socket) -> None:
    while data := before.recv(_READ_SIZE):
        after.send(data)
        before.send(after.recv(_READ_SIZE))
    after.close()


def _server(caller: socket.socket, worker: socket.socket, keys: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(keys, "server.pem"), Path(keys, "server.key"))
    _pass_on(caller, context.wrap_socket(worker, server_side=True))


def _worker(server: socket.socket, runner: socket.socket) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    _pass_on(context.wrap_socket(server), runner)


def _over_loopback() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for end in (one, other):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one, other


@contextmanager
def chain() -> Generator[Callable[[], None]]:
    """Sends a message to the end and waits until it is back."""
    start = multiprocessing.get_context("spawn").Process
    with tempfile.TemporaryDirectory() as keys, ExitStack() as stack:
        Authority(Path(keys))
        caller, to_caller = socket.socketpair()
        to_worker, to_server = _over_loopback()
        to_runner, runner = socket.socketpair()
        processes = [
            start(target=_server, args=(to_caller, to_worker, keys)),
            start(target=_worker, args=(to_server, to_runner)),
            start(target=_echo, args=(runner,)),
        ]
        for process in processes:
            process.start()
            stack.callback(process.join)
        for end in (to_caller, to_worker, to_server, to_runner, runner):
            end.close()
        stack.enter_context(caller)

        def call() -> None:
            caller.send(MESSAGE)
            if caller.recv(_READ_SIZE) != MESSAGE:
                raise AssertionError("the chain is broken")

        yield call
