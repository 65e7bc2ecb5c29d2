"""Values: how arguments and results travel between the user's program and the container.

A payload is a few bytes that go inside a message and at most one descriptor of a memory file with the rest:

    data = a pickle, protocol 5                                             (all of it; begins with b"\\x80")
    data = b"\\x01", stream length, table offset, buffer count, [pickle]     (with one descriptor)
    data = b"\\x02", 0, 0, buffer count, table, pickle                       (with one descriptor)

In the shared memory lie the pickle stream (when it is not in `data`: length 0 says so), out-of-band buffers, each at a
page boundary, and a table of their offsets and lengths. In the last form the memory is a file that was received: its
buffers are sent on as they are, and the table is in `data`. Only the program's side and the runner unpickle; everything
between forwards bytes and descriptors.

`pickle` does the work where it can. cloudpickle takes over for what pickle refuses (lambdas, local classes) and for
what refers by name to a module the other side cannot import (a notebook's `__main__`).
"""

import os
import pickle
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from farcall.errors import DeserializationError, FarcallError, ResourceExhaustedError, SerializationError
from farcall.sdk import shared_memory
from farcall.sdk.received import map_received, send_on
from farcall.sdk.shared_memory import OUT_OF_RESOURCES, PAGE, SharedMemoryWriter, exhausted, open_stream, read_at

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

INLINE_LIMIT = 64 * 1024  # bytes of `Payload.data`, at most

# Smaller buffers are copied into the stream: a page-aligned place and a table entry for each would cost more. Not above
# pickle's own frame size (64 KiB), from which on it hands buffers to `write` as they are.
_BUFFER_LIMIT = 64 * 1024 if hasattr(os, "pwrite") else sys.maxsize  # on Windows values only travel inside `--local`

# A frame ends with the first opcode that crosses 64 KiB; anything longer is one object's own data, not opcodes.
_LARGEST_FRAME = 2 * 64 * 1024 + 16

_SHARED, _SENT_ON = 1, 2  # first byte of `data`; a pickle's is 0x80
_HEADER = struct.Struct("<BQQI")  # tag, stream length, table offset, number of buffers
_ENTRY = struct.Struct("<QQ?")  # offset, length, read-only
_SPILL = INLINE_LIMIT - _HEADER.size if hasattr(os, "pwrite") else sys.maxsize  # bytes from which on memory is shared

_NONE: frozenset[str] = frozenset()
_MAIN = frozenset({"__main__"})
_MAIN_MARKER = (b"\x8c\x08__main__",)
_dump = pickle.dump
_new_tuple: Any = cast(Any, tuple).__new__  # half the time of `Payload(...)`


class Payload(NamedTuple):
    """An encoded value: `data` (at most `INLINE_LIMIT` bytes) and 0 or 1 owned descriptors."""

    data: bytes
    fds: tuple[int, ...] = ()

    def close(self) -> None:
        """Closes the descriptors of a payload that will not be sent."""
        for descriptor in self.fds:
            os.close(descriptor)


def dumps(obj: Any, *, by_value_modules: frozenset[str] = _NONE, name: str = "value") -> Payload:
    """Encodes `obj`. The caller owns the payload's descriptors.

    Classes and functions of `by_value_modules` (and their submodules), and of the `__main__` of a notebook or prompt,
    travel with their code; all others by name. `name` is what error messages call the value ('result').

    Raises SerializationError, naming the part that cannot be pickled, or ResourceExhaustedError.
    """
    return _encode(obj, by_value_modules, lambda: [(name, obj)])


def dumps_call(args: Sequence[Any], kwargs: Mapping[str, Any], *, by_value_modules: frozenset[str] = _NONE) -> Payload:
    """Encodes the arguments of a call as the tuple `(args, kwargs)`. Like `dumps`, but errors name the argument."""
    return _encode(
        (tuple(args), dict(kwargs)),
        by_value_modules,
        lambda: (
            [(f"argument {position}", value) for position, value in enumerate(args, 1)]
            + [(f"argument {key}", value) for key, value in kwargs.items()]
        ),
    )


def loads(data: "ReadableBuffer", fds: Sequence[int] = ()) -> Any:
    """Rebuilds a value and closes `fds`, also on error.

    Large arrays are mapped: writable where the original was, without effect on anyone else's copy. An array that is
    kept keeps the memory of the whole value it came with.

    Raises DeserializationError, or ResourceExhaustedError where memory runs out.
    """
    try:
        if not fds:
            return pickle.loads(data)
        return _load_shared(bytes(data), fds[0])
    except FarcallError:
        raise
    except MemoryError as error:
        raise exhausted(error, "rebuilding a value") from error
    except (Exception, SystemExit) as error:
        if isinstance(error, OSError) and error.errno in OUT_OF_RESOURCES:
            raise exhausted(error, "rebuilding a value") from error
        raise DeserializationError(_explain_load(error)) from error
    finally:
        for descriptor in fds:
            os.close(descriptor)


class _Sink:
    """What a Pickler writes to: parts in memory while they are few, then shared memory."""

    # Class attributes, so that making a sink (one for each call) sets no more than it must.
    marked = False  # whether a marker was seen
    _size = 0
    _buffers: list[memoryview] | None = None
    _shared: SharedMemoryWriter | None = None

    def __init__(self, markers: tuple[bytes, ...]) -> None:
        self._markers = markers
        self._parts: list[bytes] = []

    def write(self, part: bytes) -> None:
        # Called by the Pickler with frames of about 64 KiB, and with larger bytes objects as they are, uncopied.
        self._size += len(part)
        if self._size <= _SPILL:
            self._parts.append(part)
            return
        if self._shared is None:
            self._shared = self._share()
            for earlier in self._parts:
                self._spill(earlier, self._shared)
            self._parts.clear()
        self._spill(part, self._shared)

    def _share(self) -> SharedMemoryWriter:
        return SharedMemoryWriter(self._size + sum(view.nbytes for view in self._buffers or ()))

    def _spill(self, part: bytes, shared: SharedMemoryWriter) -> None:
        if self._markers and len(part) < _LARGEST_FRAME and any(marker in part for marker in self._markers):
            self.marked = True
        shared.write(part)

    def take_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """Pickler's buffer callback: True leaves the buffer in the stream."""
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous: pickle says so itself
            return True
        if view.nbytes < _BUFFER_LIMIT:
            return True
        if self._buffers is None:
            self._buffers = []
        self._buffers.append(view)
        return False

    def finish(self) -> Payload:
        """The payload. Look at `marked` afterwards."""
        parts = self._parts
        inline = parts[0] if len(parts) == 1 else b"".join(parts)
        for marker in self._markers:
            if marker in inline:
                self.marked = True
        if self._shared is None and self._buffers is None:
            if shared_memory.kept:
                shared_memory.release_kept(shared_memory.KEEP_SECONDS)
            return _new_tuple(Payload, (inline, ()))
        return self._finish_shared(inline)

    def _finish_shared(self, inline: bytes) -> Payload:
        if self._shared is None and (payload := self._sent_on(inline)) is not None:
            return payload
        shared = self._shared = self._shared or self._share()
        stream_length = shared.size
        table: list[bytes] = []
        for view in self._buffers or ():
            table.append(_ENTRY.pack(shared.align(), view.nbytes, view.readonly))
            shared.write(view)
        table_offset = shared.size
        shared.write(b"".join(table))
        header = _HEADER.pack(_SHARED, stream_length, table_offset, len(table))
        return Payload(header + inline, (shared.finish(),))

    def _sent_on(self, inline: bytes) -> Payload | None:
        """The payload where all buffers were received, in one file, and are what it holds."""
        views = self._buffers or ()
        length = _HEADER.size + len(views) * _ENTRY.size + len(inline)
        found = send_on(views) if length <= INLINE_LIMIT else None
        if found is None:
            return None
        descriptor, offsets = found
        table = [_ENTRY.pack(at, view.nbytes, view.readonly) for at, view in zip(offsets, views, strict=True)]
        return Payload(_HEADER.pack(_SENT_ON, 0, 0, len(table)) + b"".join(table) + inline, (descriptor,))

    def discard(self) -> None:
        self._parts.clear()
        self._buffers = None
        if self._shared is not None:
            self._shared.discard()


def _encode(obj: Any, by_value_modules: frozenset[str], parts: Callable[[], list[tuple[str, Any]]]) -> Payload:
    sink = _Sink(_markers(by_value_modules) if by_value_modules else _MAIN_MARKER)
    cause: Exception | None = None
    try:
        _dump(obj, sink, 5, buffer_callback=sink.take_buffer)
        payload = sink.finish()
        if not sink.marked:
            return payload
        # Some code is named that may not be found at the other side. A script's own `__main__` may.
        if not by_value_modules and not main_by_value():
            return payload
        payload.close()
    except (ResourceExhaustedError, MemoryError) as error:
        sink.discard()
        if isinstance(error, MemoryError):
            raise exhausted(error, "pickling a value") from error
        raise
    except Exception as error:
        sink.discard()
        cause = error
    except BaseException:
        sink.discard()
        raise
    if main_by_value():
        by_value_modules |= _MAIN
    return _encode_with_cloudpickle(obj, by_value_modules, parts, cause)


def _encode_with_cloudpickle(
    obj: Any,
    by_value_modules: frozenset[str],
    parts: Callable[[], list[tuple[str, Any]]],
    first: Exception | None,
) -> Payload:
    from farcall.sdk.pickle_by_value import ByValuePickler, explain_unpicklable

    sink = _Sink(())
    try:
        ByValuePickler(sink, by_value_modules, sink.take_buffer).dump(obj)
        return sink.finish()
    except (ResourceExhaustedError, MemoryError) as error:
        sink.discard()
        if isinstance(error, MemoryError):
            raise exhausted(error, "pickling a value") from error
        raise
    except Exception as error:
        sink.discard()
        raise SerializationError(explain_unpicklable(parts(), by_value_modules, error)) from (first or error)
    except BaseException:
        sink.discard()
        raise


def main_by_value() -> bool:
    """Whether `__main__` is a notebook, a prompt or `python -c`: no other process can import what it defines."""
    from farcall.sdk.source import is_interactive

    return is_interactive("__main__")


_known_markers: dict[frozenset[str], tuple[bytes, ...]] = {}


def _markers(by_value_modules: frozenset[str]) -> tuple[bytes, ...]:
    """What a pickle contains when it refers to something in one of the modules.

    `__main__` is always looked for. A pickle names a module as opcode, length, name. Submodules are looked for by
    "name." alone; a value that only happens to contain that is pickled twice, to the same effect.
    """
    found = _known_markers.get(by_value_modules)
    if found is None:
        names = [name for module in sorted(by_value_modules | _MAIN) if len(name := module.encode()) < 256]
        found = tuple(b"\x8c" + bytes([len(name)]) + name for name in names)
        found += tuple(name + b"." for name in names if name != b"__main__")
        _known_markers[by_value_modules] = found
    return found


def _load_shared(data: bytes, descriptor: int) -> Any:
    tag, stream_length, table_offset, count = _HEADER.unpack_from(data)
    if tag not in (_SHARED, _SENT_ON):
        raise DeserializationError(f"a value has the unknown format {tag}; the other side runs another farcall version")
    inline = memoryview(data)[_HEADER.size :]
    buffers: list[memoryview] = []
    if count:
        size = count * _ENTRY.size
        table = inline[:size] if tag == _SENT_ON else read_at(descriptor, table_offset, size)
        entries = list(_ENTRY.iter_unpack(table))
        first = min(offset for offset, _, _ in entries) // PAGE * PAGE
        region = map_received(descriptor, first, max(offset + length for offset, length, _ in entries) - first)
        for offset, length, read_only in entries:
            view = region[offset - first : offset - first + length]
            buffers.append(view.toreadonly() if read_only else view)
        if tag == _SENT_ON:
            inline = inline[size:]
    if not stream_length:
        return pickle.loads(inline, buffers=buffers)
    with open_stream(descriptor, stream_length) as stream:
        return pickle.load(stream, buffers=buffers)


def _explain_load(error: BaseException) -> str:
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError):
        reason = f"there is no module {error.name!r} here"
        hint = "install it where the value arrives (for a container: in its image), or send plain data instead"
    elif isinstance(error, (AttributeError, ImportError)):
        hint = "the two sides have different versions of that module; or define the class at the top level of a module"
    elif isinstance(error, (pickle.UnpicklingError, EOFError, struct.error)):
        hint = "the bytes are damaged, or were made by something else"
    else:
        hint = "its class cannot rebuild it from what it pickled (__reduce__, __setstate__ or __init__)"
    return f"cannot rebuild the value: {reason}; {hint}"
