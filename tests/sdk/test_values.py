"""Values: round trips, formats and errors, in one process and through two."""

import functools
import gc
import os
import pickle
import re
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farcall.errors import DeserializationError, ResourceExhaustedError, SerializationError
from farcall.sdk import shared_memory, values
from farcall.sdk.values import INLINE_LIMIT, Payload, dumps, dumps_call, loads
from tests.conftest import open_descriptors

numpy = pytest.importorskip("numpy", reason="numpy is not installed")

pytestmark = pytest.mark.usefixtures("no_leaks")

Ask = Callable[[str, Any], Any]


def round_trip(value: Any) -> Any:
    payload = dumps(value)
    assert len(payload.data) <= INLINE_LIMIT
    assert len(payload.fds) <= 1
    return loads(*payload)


class Plain:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def method(self) -> None: ...


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner: Any) -> None:
        self.inner = inner


class RefusesToLoad:
    def __setstate__(self, state: Any) -> None:
        raise ValueError("no thanks")

    def __getstate__(self) -> dict[str, int]:
        return {"a": 1}


sizes = st.one_of(st.integers(0, 300), st.sampled_from([INLINE_LIMIT - 40, INLINE_LIMIT, INLINE_LIMIT + 1, 300_000]))
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=50),
    sizes.map(lambda size: b"b" * size),
    sizes.map(lambda size: bytearray(size)),
    sizes.map(lambda size: "é" * size),
)
nested = st.recursive(
    leaves,
    lambda children: st.one_of(
        st.lists(children, max_size=5),
        st.lists(children, max_size=5).map(tuple),
        st.dictionaries(st.text(max_size=5), children, max_size=5),
    ),
    max_leaves=12,
)


@given(nested)
@settings(max_examples=150, deadline=None)
def test_any_nesting_of_plain_values_survives(value: Any) -> None:
    loaded = round_trip(value)
    assert loaded == value
    assert type(loaded) is type(value)


@given(st.lists(st.tuples(sizes, st.booleans()), max_size=6))
@settings(max_examples=60, deadline=None)
def test_arrays_survive_and_are_writable_like_the_original(shapes: list[tuple[int, bool]]) -> None:
    arrays = []
    for size, writable in shapes:
        array = numpy.arange(size, dtype="u1")
        array.flags.writeable = writable
        arrays.append(array)
    for loaded, array in zip(round_trip(arrays), arrays, strict=True):
        assert (loaded == array).all()
        assert loaded.flags.writeable == array.flags.writeable
        if loaded.flags.writeable:
            loaded[:] = 1


@pytest.mark.parametrize("size", range(INLINE_LIMIT - 80, INLINE_LIMIT + 20, 3))
def test_inline_limit_holds_at_its_edge(size: int) -> None:
    for value in (b"x" * size, bytearray(size), "x" * size, [b"x" * 100, b"y" * (size - 100)]):
        assert round_trip(value) == value


def test_small_values_are_a_bare_pickle_and_large_ones_one_descriptor() -> None:
    assert dumps({"a": 1}) == Payload(pickle.dumps({"a": 1}, 5), ())
    payload = dumps(b"x" * 1_000_000)
    assert len(payload.data) < 100
    assert len(payload.fds) == 1
    payload.close()


def test_views_of_arrays_survive() -> None:
    array = numpy.arange(200_000.0).reshape(400, 500)
    for view in (array.T, array[::2], array[:, ::3], array[5:7], array[:0], numpy.asfortranarray(array)):
        assert (round_trip(view) == view).all()


def test_shared_parts_stay_shared() -> None:
    part = bytearray(100_000)
    array = numpy.zeros(100_000)
    loaded = round_trip([part, part, array, array])
    assert loaded[0] is loaded[1]
    assert loaded[2] is loaded[3]


def test_a_payload_can_be_loaded_by_several() -> None:
    value = [numpy.arange(100_000), b"z" * 100_000]
    payload = dumps(value)
    first = loads(payload.data, (os.dup(payload.fds[0]),))
    first[0][:] = 0
    second = loads(*payload)
    assert (second[0] == value[0]).all()
    assert second[1] == value[1]


def test_shared_memory_is_sealed() -> None:
    payload = dumps(b"x" * 200_000)
    with pytest.raises(PermissionError):
        os.ftruncate(payload.fds[0], 10)
    with pytest.raises(PermissionError):
        os.pwrite(payload.fds[0], b"y", 0)
    payload.close()


def test_mappings_live_as_long_as_their_arrays_and_hold_no_descriptor() -> None:
    def mappings() -> int:
        with open("/proc/self/maps") as maps:
            return sum("farcall-value" in line for line in maps)

    gc.collect()
    shared_memory.release_kept()
    before, open_files = mappings(), open_descriptors()
    kept = [round_trip(numpy.ones(50_000)) for _ in range(20)]
    shared_memory.release_kept()
    assert open_descriptors() <= open_files
    assert mappings() > before
    assert all(array.sum() == 50_000 for array in kept)
    kept.clear()
    gc.collect()
    assert mappings() <= before


# Code that travels by value


def test_lambdas_closures_and_local_classes_travel() -> None:
    factor = 3

    class Local:
        def times(self, x: int) -> int:
            return x * factor

    assert round_trip(lambda x: x + factor)(4) == 7
    assert round_trip(Local()).times(5) == 15
    assert isinstance(round_trip(Local()), Local)  # the very class: it is known here


def test_modules_by_value(monkeypatch: pytest.MonkeyPatch, peer: Ask) -> None:
    module = types.ModuleType("by_value_sample")
    exec("class Thing:\n    def answer(self): return 42\ndef function(): return Thing().answer()", vars(module))
    monkeypatch.setitem(sys.modules, "by_value_sample", module)
    assert peer("call", module.__dict__["function"]) == 42
    monkeypatch.setitem(sys.modules, "by_value_sample.below", inner := types.ModuleType("by_value_sample.below"))
    exec("def function(): return 43", vars(inner))
    assert peer("call", inner.__dict__["function"]) == 43
    assert not pickle_registry()


def pickle_registry() -> set[str]:
    from farcall.sdk import pickle_by_value

    return pickle_by_value._registrations.list_registry_pickle_by_value()


def test_what_a_prompt_defines_travels_by_value() -> None:
    program = (
        "import sys\n"
        "from farcall.sdk.values import dumps\n"
        "class Thing: value = 5\n"
        "sys.stdout.buffer.write(dumps([Thing()]).data)\n"
    )
    written = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    assert loads(written)[0].value == 5


def test_what_a_script_defines_travels_by_name(tmp_path: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from farcall.sdk.values import dumps, loads\n"
        "class Thing: pass\n"
        "assert b'__main__' in dumps(Thing()).data\n"
        "assert type(loads(*dumps((Thing(), lambda: 1)))[0]) is Thing\n"
        "assert len(dumps((Thing, lambda: 1)).data) < len(dumps(lambda: Thing).data) + 300\n"
    )
    subprocess.run([sys.executable, str(script)], check=True)


# Errors


LOCK = threading.Lock()


@pytest.mark.parametrize(
    ("args", "kwargs", "part"),
    [
        ((1, {"lock": LOCK}), {}, "argument 2['lock']: cannot pickle '_thread.lock' object"),
        ((), {"work": [1, (2, LOCK)]}, "argument work[1][1]: cannot pickle '_thread.lock' object"),
        ((Plain(a=Plain(b=LOCK)),), {}, "argument 1.a.b: cannot pickle"),
        ((Slotted(LOCK),), {}, "argument 1.inner: cannot pickle"),
        (({LOCK},), {}, "argument 1 element <unlocked _thread.lock"),
        (({LOCK: 1},), {}, "argument 1 key <unlocked _thread.lock"),
        ((functools.partial(max, LOCK),), {}, "argument 1.args[0]: cannot pickle"),
        ((Plain(a=LOCK).method,), {}, "argument 1.__self__.a: cannot pickle"),
        (((i for i in range(3)),), {}, "argument 1: cannot pickle 'generator' object"),
        (([*range(20_000), LOCK],), {}, "argument 1[20000]: cannot pickle"),
        ((numpy.zeros(1_000_000), LOCK), {}, "argument 2: cannot pickle"),
    ],
)
def test_unpicklable_parts_are_named(args: tuple[Any, ...], kwargs: dict[str, Any], part: str) -> None:
    with pytest.raises(SerializationError, match=f"^{re.escape(part)}"):
        dumps_call(args, kwargs)


def test_closure_variables_are_named() -> None:
    lock = threading.Lock()
    with pytest.raises(SerializationError, match=r"result closure variable 'lock': cannot pickle '_thread.lock'"):
        dumps(lambda: lock, name="result")


def test_a_cycle_with_an_unpicklable_part_is_explained() -> None:
    ring: list[Any] = [1]
    ring.append({"back": ring, "bad": LOCK})
    with pytest.raises(SerializationError, match=r"\[1\]\['bad'\]: cannot pickle"):
        dumps(ring)


def test_values_nested_too_deeply() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SerializationError, match="nested too deeply"):
        dumps(deep)
    while deep:  # freeing it all at once would recurse as deeply
        deep = deep[0]


def test_errors_of_the_users_own_pickling_are_told() -> None:
    class Bad:
        def __reduce__(self) -> Any:
            raise RuntimeError("not today")

    with pytest.raises(SerializationError, match=r"value\[0\]: RuntimeError: not today"):
        dumps([Bad()])


def test_missing_module_and_class_are_named() -> None:
    missing = types.ModuleType("surely_missing_module")
    exec("class Thing: pass", vars(missing))
    sys.modules["surely_missing_module"] = missing
    try:
        payload = dumps(missing.__dict__["Thing"]())
        del missing.__dict__["Thing"]
        with pytest.raises(DeserializationError, match="Thing"):
            loads(*payload)
    finally:
        del sys.modules["surely_missing_module"]
    with pytest.raises(DeserializationError, match=r"no module 'surely_missing_module' here.*install"):
        loads(*payload)


@pytest.mark.parametrize("data", [b"", b"\x80", b"nonsense", b"\x80\x05\x8c", b"\x01", b"\x02" + bytes(30)])
def test_damaged_data_is_a_typed_error(data: bytes) -> None:
    with pytest.raises(DeserializationError):
        loads(data)
    payload = dumps(b"x" * 100_000)
    with pytest.raises(DeserializationError):
        loads(data, payload.fds)  # closes it


def test_shared_memory_that_is_too_short_is_an_error_not_a_signal() -> None:
    payload = dumps(numpy.zeros(100_000))
    payload_short = dumps(numpy.zeros(10_000))
    with pytest.raises(DeserializationError):
        loads(payload.data, payload_short.fds)
    payload.close()


def test_a_class_that_refuses_to_load() -> None:
    with pytest.raises(DeserializationError, match="ValueError: no thanks") as caught:
        round_trip(RefusesToLoad())
    assert isinstance(caught.value.__cause__, ValueError)


def test_running_out_of_descriptors_is_a_typed_error() -> None:
    program = (
        "import os, resource\n"
        "from farcall.errors import ResourceExhaustedError\n"
        "from farcall.sdk.values import dumps\n"
        "dumps(b'x' * 70_000).close()\n"
        "soft = len(os.listdir('/proc/self/fd')) - 1\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))\n"
        "try: dumps(b'x' * 70_000)\n"
        "except ResourceExhaustedError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "too many open files" in done.stdout


def test_a_full_disk_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.open("/dev/full", os.O_RDWR)
    monkeypatch.setattr(shared_memory, "_create", lambda: full)
    with pytest.raises(ResourceExhaustedError, match=r"no space left on device"):
        dumps(b"x" * 70_000)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(full)  # it was closed


@pytest.mark.parametrize("value", ["bytes(300_000_000)", "numpy.zeros(40_000_000)"])
def test_too_little_memory_to_load_is_a_typed_error(value: str) -> None:
    program = (
        "import numpy\n"
        "import resource\n"
        "from farcall.errors import ResourceExhaustedError\n"
        "from farcall.sdk.values import dumps, loads\n"
        f"payload = dumps({value})\n"
        "resource.setrlimit(resource.RLIMIT_AS, (250_000_000, 250_000_000))\n"
        "try: loads(*payload)\n"
        "except ResourceExhaustedError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "memory" in done.stdout


# Through two processes


def test_large_values_through_two_processes(peer: Ask) -> None:
    array = numpy.arange(3_000_000)
    value = {
        "bytes": os.urandom(5_000_000),
        "bytearray": bytearray(200_000),
        "array": array,
        "small": 1,
        "text": "é" * 90_000,
    }
    loaded = peer("echo", value)
    assert (loaded.pop("array") == array).all()
    del value["array"]
    assert loaded == value


def test_writing_to_a_received_array_changes_nothing_for_the_sender(peer: Ask) -> None:
    array = numpy.zeros(500_000)
    assert peer("overwrite", array) == 3_500_000.0
    assert not array.any()


def test_the_other_process_leaks_no_descriptors(peer: Ask) -> None:
    before = peer("open files", None)
    for _ in range(30):
        peer("echo", [numpy.zeros(100_000), bytes(100_000)])
    assert peer("open files", None) == before


def test_an_unpicklable_result_is_reported_and_the_process_lives_on(peer: Ask, tmp_path: Any) -> None:
    module = tmp_path / "sample_unpicklable.py"
    module.write_text("import threading\ndef main(): return {'a': [threading.Lock()]}\n")
    with pytest.raises(SerializationError, match=r"result\['a'\]\[0\]: cannot pickle '_thread.lock' object"):
        peer("run", (str(module), "sample_unpicklable", "main"))
    assert peer("echo", 1) == 1


def test_importing_values_stays_light() -> None:
    program = "import sys; before = {*sys.modules}; import farcall.sdk.values; print(*{*sys.modules} - before)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"cloudpickle", "ctypes", "mmap", "traceback", "linecache", "asyncio", "msgspec"} & set(loaded)
    assert values.INLINE_LIMIT == 65536
