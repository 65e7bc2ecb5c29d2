"""Exceptions: how what user code raised arrives at the caller as the same type, with its remote frames.

An exception travels as a list of nodes, one for each exception that can be reached from it as cause, context or group
member; the first is the exception itself. Each node is pickled by itself, so one that cannot be rebuilt does not take
the others with it. A pickled node refers to later nodes only (by persistent id), so rebuilding always ends.

A node is copied, not made again: most exception classes break when they are called with `args`, which is what pickle
does (`__init__` wants other arguments, or formats the message a second time). Classes that say themselves how they are
pickled are asked.
"""

import copyreg
import io
import itertools
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from farcall.errors import DeserializationError, ExecutionError, FarcallError
from farcall.sdk.tracebacks import Frame, format_frames, frames_of, traceback_from
from farcall.sdk.values import Payload, dumps, loads, main_by_value

MESSAGE_LIMIT = 2 * 1024 * 1024  # characters of a message; longer ones are trimmed in the middle

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class made by Python code, not by C
_PICKLE_METHODS = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__", "__getnewargs_ex__")


class _Node(NamedTuple):
    type_name: str  # 'package.module.Class'; builtins by their bare name
    message: str  # str(exception)
    pickled: bytes  # by its class's own way; b"" where that has none
    copied: bytes  # a pickled _Copy; b"" where it cannot be pickled
    frames: tuple[Frame, ...]
    notes: tuple[str, ...]
    cause: int  # index of a node; -1 for none
    context: int
    suppress_context: bool
    members: tuple[int, ...]


class _Copy(NamedTuple):
    cls: type[BaseException]
    constructor_args: tuple[Any, ...]  # for the C base class, which may want others than `args` (OSError does)
    args: tuple[Any, ...]
    fields: dict[str, Any]  # attributes that C classes and __slots__ keep outside of __dict__
    attributes: dict[str, Any]  # __dict__


def dump_exception(
    exception: BaseException,
    *,
    source_roots: Mapping[str, str] | None = None,
    by_value_modules: frozenset[str] = frozenset(),
) -> Payload:
    """Encodes what user code raised, with traceback, causes, contexts, notes and group members. Never fails for the
    exception's sake: what cannot be pickled is left behind and named in a note.

    `source_roots` maps directories as they are mounted here to where the caller has them, so that file names in the
    traceback are the caller's. Frames of farcall above the first frame of user code are cut, unless
    FARCALL_TRACEBACK=full is set.
    """
    roots = {} if source_roots is None else dict(source_roots)
    if main_by_value():
        by_value_modules |= {"__main__"}
    found = _reachable(exception)
    index = {id(each): position for position, each in enumerate(found)}
    known_frames: dict[Frame, Frame] = {}
    nodes = [_node(each, position, index, roots, by_value_modules, known_frames) for position, each in enumerate(found)]
    return dumps([tuple(node) for node in nodes])


def load_exception(data: bytes, fds: Sequence[int] = ()) -> Exception:
    """Rebuilds an exception, to be raised by the caller; closes `fds`. Never raises for the exception's sake.

    What is no `Exception` (SystemExit, KeyboardInterrupt) and what cannot be rebuilt here comes as ExecutionError, so
    that it can be caught and ends no process. Raise it outside of `except` blocks: Python would replace its
    `__context__` with the exception being handled.
    """
    try:
        nodes = [
            _Node(*fields)._replace(frames=tuple(Frame(*frame) for frame in fields[4])) for fields in loads(data, fds)
        ]
        return _Loader(nodes).load()
    except FarcallError as error:
        return error
    except Exception as error:
        return DeserializationError(
            f"cannot read the exception that was raised: {type(error).__name__}: {error}; "
            "its data is damaged, or the other side runs another farcall version"
        )


def _reachable(exception: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    seen: set[int] = set()
    waiting = [exception]
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        found.append(each)
        waiting += [other for name in ("__context__", "__cause__") if (other := _raw(each, name)) is not None]
        waiting += reversed(_members(each))
    return found


def _raw(exception: BaseException, name: str) -> Any:
    """An attribute of BaseException, whatever the class makes of attribute access."""
    return object.__getattribute__(exception, name)


def _members(exception: BaseException) -> tuple[BaseException, ...]:
    if issubclass(type(exception), BaseExceptionGroup):
        return _raw(cast("BaseExceptionGroup[BaseException]", exception), "exceptions")
    return ()


def _node(
    exception: BaseException,
    position: int,
    index: dict[int, int],
    roots: dict[str, str],
    by_value_modules: frozenset[str],
    known_frames: dict[Frame, Frame],
) -> _Node:
    def encode(value: Any) -> bytes:
        return _pickle(value, position, index, by_value_modules)

    pickled = b""
    if _says_how(type(exception)):
        try:
            pickled = encode(exception)
        except Exception:
            pass  # the copy may do
    copied, left_behind = _encode_copy(exception, encode)
    notes = [] if pickled else left_behind
    own_notes = _raw(exception, "__dict__").get("__notes__")
    if isinstance(own_notes, list):
        notes = [_trim(note) for note in cast(list[Any], own_notes) if isinstance(note, str)] + notes
    return _Node(
        type_name=_type_name(type(exception)),
        message=_trim(_message(exception)),
        pickled=pickled,
        copied=copied,
        # Recursion repeats frames; the same tuple is pickled once.
        frames=tuple(
            known_frames.setdefault(frame, frame) for frame in frames_of(_raw(exception, "__traceback__"), roots)
        ),
        notes=tuple(notes),
        cause=index.get(id(_raw(exception, "__cause__")), -1),
        context=index.get(id(_raw(exception, "__context__")), -1),
        suppress_context=_raw(exception, "__suppress_context__"),
        members=tuple(index[id(member)] for member in _members(exception)),
    )


def _type_name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _message(exception: BaseException) -> str:
    try:
        return str(exception)
    except Exception as error:
        return f"<str() of this {type(exception).__name__} failed: {type(error).__name__}>"


def _trim(text: str) -> str:
    if len(text) <= MESSAGE_LIMIT:
        return text
    half = MESSAGE_LIMIT // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n... farcall left out {left_out:,} of {len(text):,} characters here ...\n{text[-half:]}"


def _trim_value(value: Any) -> Any:
    return _trim(value) if type(value) is str else value


def _static_base(cls: type[BaseException]) -> type[BaseException]:
    """The nearest base that is made in C, whose `__new__` and `__init__` are to be trusted (OSError, ValueError)."""
    return next(base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE)


def _says_how(cls: type[BaseException]) -> bool:
    """Whether a class made by Python code defines how its exceptions are pickled."""
    above = itertools.takewhile(lambda base: base.__flags__ & _HEAP_TYPE, cls.__mro__)
    return any(name in base.__dict__ for base in above for name in _PICKLE_METHODS)


def _copy(exception: BaseException) -> _Copy:
    reduced: Any = cast(Any, _static_base(type(exception)).__reduce__(exception))
    attributes: dict[str, Any] = dict(_raw(exception, "__dict__"))
    attributes.pop("__notes__", None)
    fields: dict[str, Any] = {}
    if len(reduced) > 2 and isinstance(reduced[2], dict):
        state = cast(dict[str, Any], reduced[2])
        fields = {
            name: value for name, value in state.items() if name not in attributes and name not in ("__notes__", "args")
        }
    for name in cast(list[str], cast(Any, copyreg)._slotnames(type(exception))):
        try:
            fields[name] = _raw(exception, name)
        except AttributeError:  # not set
            continue
    return _Copy(
        type(exception),
        tuple(_trim_value(value) for value in reduced[1]),
        tuple(_trim_value(value) for value in _raw(exception, "args")),
        fields,
        attributes,
    )


def _encode_copy(exception: BaseException, encode: Callable[[Any], bytes]) -> tuple[bytes, list[str]]:
    """The pickled copy, and notes on what had to be left out of it."""
    try:
        whole = _copy(exception)
        return encode(tuple(whole)), []
    except Exception:
        pass  # something in it cannot be pickled: leave that out
    notes: list[str] = []

    def fits(value: Any, name: str) -> bool:
        try:
            encode(value)
        except Exception as error:
            kind = _type_name(cast("type[object]", type(value)))
            notes.append(f"farcall: {name} ({kind}) cannot be pickled and was left behind: {str(error)[:500]}")
            return False
        return True

    try:
        whole = _copy(exception)
        if not fits(whole.cls, "its class"):
            return b"", notes
        args = tuple(
            value if fits(value, f"argument {number}") else _safe_repr(value)
            for number, value in enumerate(whole.args, 1)
        )
        reduced = whole._replace(
            args=args,
            constructor_args=args if notes else whole.constructor_args,
            fields={name: value for name, value in whole.fields.items() if fits(value, f"attribute {name!r}")},
            attributes={name: value for name, value in whole.attributes.items() if fits(value, f"attribute {name!r}")},
        )
        return encode(tuple(reduced)), notes
    except Exception:
        return b"", notes


def _safe_repr(value: Any) -> str:
    try:
        return _trim(repr(value))
    except Exception:
        return f"<{type(value).__name__}>"


class _Pickler(pickle.Pickler):
    """Pickles, with exceptions of later nodes as references."""

    def __init__(self, out: io.BytesIO, position: int, index: dict[int, int]) -> None:
        super().__init__(out, 5)
        self._position = position
        self._index = index

    def persistent_id(self, obj: Any) -> int | None:
        return _reference(obj, self._position, self._index)


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, built: dict[int, Exception]) -> None:
        super().__init__(io.BytesIO(data))
        self._built = built

    def persistent_load(self, pid: int) -> Exception:
        return self._built[pid]


def _reference(obj: Any, position: int, index: dict[int, int]) -> int | None:
    if issubclass(cast("type[object]", type(obj)), BaseException):
        found = index.get(id(obj), -1)
        return found if found > position else None
    return None


def _pickle(value: Any, position: int, index: dict[int, int], by_value_modules: frozenset[str]) -> bytes:
    out = io.BytesIO()
    try:
        _Pickler(out, position, index).dump(value)
        data = out.getvalue()
        if not any(module.encode() in data for module in by_value_modules):
            return data
    except Exception:
        pass  # a class that plain pickle cannot send
    from farcall.sdk.pickle_by_value import ByValuePickler

    # Made here, because the base class is imported late; not an attribute, which Python 3.13.0 does not take.
    class CodePickler(ByValuePickler):
        def persistent_id(self, obj: Any) -> int | None:
            return _reference(obj, position, index)

    out = io.BytesIO()
    CodePickler(out, by_value_modules).dump(value)
    return out.getvalue()


class _Loader:
    """Rebuilds nodes, each once."""

    def __init__(self, nodes: list[_Node]) -> None:
        self._nodes = nodes
        self._built: dict[int, Exception] = {}

    def load(self) -> Exception:
        # From the last to the first: a node's pickle refers to later nodes only, so nothing here recurses.
        for position in reversed(range(len(self._nodes))):
            self._built[position] = self._rebuild(self._nodes[position])
        for position, node in enumerate(self._nodes):
            exception = self._built[position]
            # Past the class's own __setattr__: a frozen dataclass would refuse.
            object.__setattr__(exception, "__cause__", self._built.get(node.cause))
            object.__setattr__(exception, "__context__", self._built.get(node.context))
            object.__setattr__(exception, "__suppress_context__", node.suppress_context)
        return self._built[0]

    def _rebuild(self, node: _Node) -> Exception:
        exception, problem = self._decode(node)
        if exception is None:
            exception = self._substitute(node)
            if problem:
                exception.add_note(f"farcall: {node.type_name} could not be rebuilt here: {problem}")
        if node.notes:
            notes = [*_raw(exception, "__dict__").get("__notes__", ()), *node.notes]
            object.__setattr__(exception, "__notes__", notes)
        return Exception.with_traceback(exception, traceback_from(node.frames))

    def _decode(self, node: _Node) -> tuple[Exception | None, str]:
        """The exception as it was, or why it cannot be."""
        problem = ""
        for pickled, finish in ((node.pickled, _same), (node.copied, _paste)):
            if not pickled:
                continue
            try:
                exception = finish(_Unpickler(pickled, self._built).load())
            except (Exception, SystemExit) as error:
                problem = problem or _trim(f"{type(error).__name__}: {error}")
                continue
            if isinstance(exception, Exception):
                # A class with its own way to be pickled may have kept the notes already.
                _raw(exception, "__dict__").pop("__notes__", None)
                return exception, ""
            return None, ""  # a BaseException, that could end the caller's process
        return None, problem

    def _substitute(self, node: _Node) -> Exception:
        text = f"{node.type_name}: {node.message}" if node.message else node.type_name
        members = [self._built[member] for member in node.members if member in self._built]
        if members:
            return ExceptionGroup(text, members)
        return ExecutionError(text, type_name=node.type_name, traceback_text=f"{format_frames(node.frames)}{text}\n")


def _same(exception: Any) -> Any:
    return exception


def _paste(fields: tuple[Any, ...]) -> BaseException:
    copied = _Copy(*fields)
    static = _static_base(copied.cls)
    exception = static.__new__(copied.cls, *copied.constructor_args)
    static.__init__(exception, *copied.constructor_args)
    object.__setattr__(exception, "args", copied.args)
    _raw(exception, "__dict__").update(copied.attributes)
    for name, value in copied.fields.items():
        object.__setattr__(exception, name, value)
    return exception
