"""A poll loop over descriptors: all the concurrency that the launcher has."""

import select
import traceback
from collections.abc import Callable


class Loop:
    """Calls a handler whenever its descriptor is readable, has hung up, or (where asked for) is writable."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}

    def add(self, fd: int, handler: Callable[[], None]) -> None:
        """Call `handler` when `fd` has something to read or has hung up."""
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def want_write(self, fd: int, wanted: bool) -> None:
        """Call the handler of `fd` also when it can be written."""
        self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def remove(self, fd: int) -> None:
        """Forget `fd`; call before it is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def turn(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds and handle what is ready; False when nothing was. A handler that raises is
        logged, and not called again."""
        ready = [(fd, self._handlers.get(fd)) for fd, _ in self._epoll.poll(timeout)]
        for fd, handler in ready:
            # A handler before this one may have removed it, and even added another under the same number.
            if handler is not None and self._handlers.get(fd) is handler:
                try:
                    handler()
                except Exception:  # a defect; the containers must not end for it, nor may it be met for ever
                    traceback.print_exc()
                    if self._handlers.get(fd) is handler:
                        self.remove(fd)
        return bool(ready)
