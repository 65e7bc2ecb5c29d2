"""The way back to a worker: the launcher hands a runner that lost its connection another one."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from farcall.wire.descriptors import close_all


def receive(fd: int, given_up: Callable[[], bool]) -> socket.socket | None:
    """Waits for a control socket on the lifeline. None where the launcher is gone too, or when a signal handler has
    made `given_up` true."""
    import select

    try:
        lifeline = socket.socket(fileno=os.dup(fd))
    except OSError:
        return None
    with lifeline:
        poll = select.poll()
        poll.register(lifeline, select.POLLIN)
        while not given_up():
            # Woken now and then, for a signal between the look and the wait.
            if not poll.poll(200):
                continue
            try:
                data, fds, _, _ = socket.recv_fds(lifeline, 64, 4)
            except OSError:
                return None
            if fds:
                close_all(fds[1:])
                return socket.socket(fileno=fds[0])
            if not data:
                return None
    return None
