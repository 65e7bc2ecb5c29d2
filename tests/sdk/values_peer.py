"""The other process of the tests of values and exceptions: answers requests on a SEQPACKET socket, its first argument.

A request is a payload of `(operation, argument)`, an answer that of the result or of what was raised; a
first byte says which.
"""

import importlib.util
import os
import socket
import sys
from typing import Any

from farcall.sdk import exceptions_codec, shared_memory, values


def send(connection: socket.socket, kind: bytes, payload: values.Payload) -> None:
    socket.send_fds(connection, [kind + payload.data], payload.fds)
    payload.close()


def receive(connection: socket.socket) -> tuple[bytes, bytes, list[int]]:
    data, fds, _, _ = socket.recv_fds(connection, values.INLINE_LIMIT + 1, 4)
    return data[:1], data[1:], fds


def perform(operation: str, argument: Any) -> Any:
    if operation == "echo":
        return argument
    if operation == "call":
        return argument()
    if operation == "overwrite":  # writes to the array it was sent and returns the sum
        argument[:] = 7
        return float(argument.sum())
    if operation == "run":  # function `name` of the file at `path`, as module `module`
        path, module, name = argument
        spec = importlib.util.spec_from_file_location(module, path)
        assert spec is not None and spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[module] = loaded
        spec.loader.exec_module(loaded)
        return getattr(loaded, name)()
    if operation == "open files":
        shared_memory.release_kept()
        return len(os.listdir("/proc/self/fd"))
    raise AssertionError(operation)


def serve(connection: socket.socket) -> None:
    while True:
        _, data, fds = receive(connection)
        if not data:
            return
        try:
            operation, argument = values.loads(data, fds)
            payload, kind = values.dumps(perform(operation, argument), name="result"), b"v"
            del argument
        except BaseException as error:
            payload, kind = exceptions_codec.dump_exception(error), b"e"
        send(connection, kind, payload)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
