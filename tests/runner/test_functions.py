"""Plain functions and classes: loading, results, exceptions, and what cannot travel."""

import os
import pickle
import signal

import pytest

from farcall import errors
from farcall.sdk import exceptions_codec, values
from farcall.spec.function import FunctionSpec, MethodSpec, Source
from farcall.wire import messages

from .conftest import MAY_GO, PlatformError, Worker


def load_error(loaded: messages.Loaded) -> Exception:
    assert loaded.error is not None
    return exceptions_codec.load_exception(loaded.error)


def test_a_function_returns(worker: Worker) -> None:
    loaded = worker.load("def f(x, *, y=1):\n    return x + y\n")
    assert 0 < loaded.seconds < 20
    assert worker.call(3) == 4
    assert worker.call("a", y="b") == "ab"
    assert os.waitstatus_to_exitcode(worker.stop()) == 0


def test_an_exception_arrives_as_it_is_and_the_next_input_runs(worker: Worker) -> None:
    worker.load("""
        def f(x):
            if x:
                try:
                    raise KeyError(x)
                except KeyError as error:
                    raise ValueError("no", x) from error
            return "fine"
    """)
    with pytest.raises(ValueError, match="no") as caught:
        worker.call(7)
    assert caught.value.args == ("no", 7)
    assert isinstance(caught.value.__cause__, KeyError)
    assert "program.py" in str(caught.traceback[-1].path)
    assert not any("farcall/runner" in str(entry.path) for entry in caught.traceback)
    assert worker.call(0) == "fine"


def test_a_result_that_cannot_be_pickled(worker: Worker) -> None:
    worker.load("import threading\ndef f(x):\n    return {'lock': threading.Lock()} if x else 'fine'\n")
    with pytest.raises(errors.SerializationError, match="lock"):
        worker.call(1)
    assert worker.call(0) == "fine"


@pytest.mark.parametrize(
    "statement",
    ["sys.exit(3)", "raise SystemExit", "raise KeyboardInterrupt", "raise GeneratorExit", "raise Own('x')"],
)
def test_what_is_no_exception_fails_the_input_only(worker: Worker, statement: str) -> None:
    worker.load(
        f"import sys\nclass Own(BaseException):\n    pass\ndef f(x):\n    if x: {statement}\n    return 'fine'\n"
    )
    with pytest.raises(errors.ExecutionError):
        worker.call(1)
    assert worker.call(0) == "fine"


def test_a_plain_function_that_returns_a_generator(worker: Worker) -> None:
    worker.load("def f(x):\n    return (i for i in range(x))\n")
    with pytest.raises(errors.InvalidError, match="is_generator=True"):
        worker.call(3)


def test_a_coroutine_behind_a_plain_function(worker: Worker) -> None:
    worker.load("""
        import asyncio, functools
        async def inner(x):
            await asyncio.sleep(0)
            return x * 2
        @functools.cache
        def outer():
            return lambda x: inner(x)
        def f(x):
            return outer()(x)
    """)
    assert worker.call(4) == 8


def test_large_values_come_and_go_in_memory_files(worker: Worker) -> None:
    worker.load("def f(x):\n    return x + b'!'\n")
    before = len(os.listdir(f"/proc/{worker.pid}/fd"))
    for size in (100, 60_000, 70_000, 3_000_000, 0):
        assert worker.call(b"x" * size) == b"x" * size + b"!"
    assert len(os.listdir(f"/proc/{worker.pid}/fd")) == before


def test_many_large_results_in_few_frames(worker: Worker) -> None:
    worker.load("def f(x):\n    return bytes(x)\n")
    seqs = worker.run(*[(60_000,)] * 20, *[(70_000,)] * 60)
    assert [len(worker.outcome(seq)) for seq in seqs] == [60_000] * 20 + [70_000] * 60


def test_an_import_error_is_loaded_s_error_and_the_runner_ends(worker: Worker) -> None:
    loaded = worker.load("import nowhere_to_be_found\ndef f(): pass\n", fails=True)
    error = load_error(loaded)
    assert isinstance(error, ModuleNotFoundError)
    assert error.name == "nowhere_to_be_found"
    assert worker.wait_exit() == 0


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        ("def f(:\n", SyntaxError, "program.py"),
        ("raise SystemExit(4)\n", errors.ExecutionError, "SystemExit"),
        ("def g(): pass\n", errors.InvalidError, "has no f"),
        ("f = 3\n", errors.InvalidError, "no function"),
        ("raise ValueError('x' * 3_000_000)\n", Exception, "left out"),
    ],
)
def test_other_failures_at_import(worker: Worker, code: str, kind: type[Exception], text: str) -> None:
    error = load_error(worker.load(code, fails=True))
    assert isinstance(error, kind)
    assert text in str(error)
    assert worker.wait_exit() == 0


def test_the_module_is_found_by_its_name_and_as_main(worker: Worker) -> None:
    worker.load("""
        import sys
        from farcall import is_local
        class C:
            pass
        def f():
            main = sys.modules["__main__"]
            return __name__, main is sys.modules["program"], main.C is C, sys.argv, is_local()
    """)
    name, same, found, argv, local = worker.call()
    assert (name, same, found, local) == ("program", True, True, False)
    assert argv == [str(worker.folder / "program.py")]


def test_a_module_of_a_package(worker: Worker) -> None:
    package = worker.folder / "src" / "kitchen"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "sub" / "__init__.py").write_text("")
    (package / "sub" / "oven.py").write_text("from kitchen import sub\ndef f():\n    return sub.oven.__name__\n")
    source = Source(module="kitchen.sub.oven", qualname="f", paths=(str(worker.folder / "src"),))
    worker.load("", source=source)
    assert worker.call() == "kitchen.sub.oven"


def test_a_module_that_runs_its_app_ends_there(worker: Worker) -> None:
    worker.load("""
        import farcall
        app = farcall.App("x")
        @app.function()
        def f():
            return "fine"
        with app.run():
            f.remote()
        raise AssertionError("not reached")
    """)
    assert worker.call() == "fine"


def test_a_function_sent_by_value(worker: Worker) -> None:
    from farcall.sdk.source import pickled

    captured = "x" * 100_000
    data = pickled(lambda y: captured + y)
    spec = FunctionSpec("fu-1", "f", Source("__main__", "f", pickled=b""), (MethodSpec(""),))
    fd = os.memfd_create("source")
    os.write(fd, data)
    loaded = worker.load_spec(messages.Load("ap-1", spec, b"", 1), (fd,))
    os.close(fd)
    assert loaded.error is None
    assert worker.call("!") == captured + "!"


def test_path(worker: Worker) -> None:
    worker.load("import sys\ndef f():\n    return sys.path\n")
    path = worker.call()
    assert path[0] == str(worker.folder)
    assert not any(entry.endswith("farcall/runner") for entry in path)


CLASS = """
    import os
    import farcall
    app = farcall.App("x")
    LOG = os.path.join(os.path.dirname(__file__), "log")
    def log(text):
        with open(LOG, "a") as file:
            file.write(text + "\\n")
    @app.cls()
    class Model:
        size: int = farcall.parameter(default=1)
        @farcall.enter()
        def first(self):
            self.state = [self.size]
            log("enter")
        @farcall.enter()
        async def second(self):
            import asyncio
            await asyncio.sleep(0)
            self.state.append("async")
        @farcall.method()
        def add(self, x):
            self.state.append(x)
            return self.state
        @farcall.method()
        async def aadd(self, x):
            return self.add.local(x)
        @farcall.method()
        def numbers(self, n):
            yield from range(n)
        @farcall.exit()
        def last(self):
            log("exit")
            raise ValueError("an exit hook that fails")
        @farcall.exit()
        async def very_last(self):
            log("async exit")
"""
METHODS = (MethodSpec("aadd", is_async=True), MethodSpec("add"), MethodSpec("numbers", is_generator=True))


def load_class(worker: Worker, code: str = CLASS) -> None:
    params = pickle.dumps({"size": 5}, 5)
    worker.load(code, "Model", methods=METHODS, is_class=True, params=params)


def test_a_class_with_state_and_hooks(worker: Worker) -> None:
    load_class(worker)
    log = worker.folder / "log"
    assert log.read_text() == "enter\n"
    assert worker.call(1, method="add") == [5, "async", 1]
    assert worker.call(2, method="aadd") == [5, "async", 1, 2]
    assert worker.call(3, method="add") == [5, "async", 1, 2, 3]
    (seq,) = worker.run((3,), method="numbers", credit=10)
    assert worker.outcome(seq) == 3
    assert worker.stream() == [0, 1, 2]
    with pytest.raises(errors.InvalidError, match="no method"):
        worker.call(method="nothing")
    assert worker.stop() == 0
    assert log.read_text() == "enter\nexit\nasync exit\n"
    assert "an exit hook that fails" in worker.text("stderr")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_exit_hooks_run_once_on_a_signal(worker: Worker, number: signal.Signals) -> None:
    load_class(worker)
    os.kill(worker.pid, number)
    os.kill(worker.pid, number)
    assert worker.wait_exit() == 0
    assert (worker.folder / "log").read_text() == "enter\nexit\nasync exit\n"


def test_exit_hooks_run_when_worker_and_launcher_are_gone(worker: Worker) -> None:
    load_class(worker)
    worker.lifeline.close()
    worker.sock.close()
    assert worker.wait_exit() == 0
    assert (worker.folder / "log").read_text() == "enter\nexit\nasync exit\n"


def test_a_signal_ends_a_running_input_and_the_status_names_it(worker: Worker) -> None:
    worker.load("""
        import atexit, os, time
        atexit.register(print, "bye")
        def f():
            os.kill(os.getpid(), 15)
            time.sleep(60)
    """)
    worker.run(())
    assert os.waitstatus_to_exitcode(worker.wait_exit()) == -signal.SIGTERM
    assert not worker.results
    assert worker.text() == "bye\n"


def test_an_enter_hook_that_fails(worker: Worker) -> None:
    loaded = worker.load(
        "import farcall\napp = farcall.App('x')\n@app.cls()\nclass M:\n    @farcall.enter()\n    def go(self): 1/0\n",
        "M",
        methods=(),
        is_class=True,
        fails=True,
    )
    error = load_error(loaded)
    assert isinstance(error, ZeroDivisionError)
    assert worker.wait_exit() == 0


def test_the_input_that_runs_is_known(worker: Worker) -> None:
    worker.load("import farcall\ndef f():\n    return farcall.current_function_call_id(), farcall.current_input_id()\n")
    seqs = worker.run((), (), call_id="fc-abc")
    assert [worker.outcome(seq) for seq in seqs] == [("fc-abc", "in-abc-0"), ("fc-abc", "in-abc-1")]


def test_arguments_that_cannot_be_rebuilt(worker: Worker) -> None:
    worker.load("def f(x):\n    return x\n")
    data = b"\x80\x05cnowhere_to_be_found\nThing\n."
    worker.seq += 1
    worker.send(messages.Run("fc-1", "", [messages.RunInput(worker.seq, 0, data)]))
    with pytest.raises(errors.DeserializationError, match="nowhere_to_be_found"):
        worker.outcome(worker.seq)
    assert worker.call(1) == 1


def test_threads_that_are_left_do_not_hold_the_exit(worker: Worker) -> None:
    worker.load("""
        import threading, time
        def f():
            threading.Thread(target=time.sleep, args=(600,)).start()
    """)
    worker.call()
    assert worker.stop() == 0


def test_a_frame_from_nowhere_changes_nothing(worker: Worker) -> None:
    worker.load("def f(x):\n    return x\n")
    worker.sock.sendall((5).to_bytes(4, "little") + b"\xff\xff\xff\xff\xff")
    worker.send(messages.RunnerCredit(99, 1))
    worker.send(messages.CancelInput(99))
    assert worker.call(1) == 1


def test_a_nested_call_uses_the_same_connection(worker: Worker) -> None:
    worker.load("""
        import farcall
        app = farcall.App("x")
        @app.function()
        def g(x):
            raise AssertionError
        @app.function()
        def f(x):
            return g.remote(x) + 1
    """)
    first, second = worker.run((10,), (20,))
    for value in (10, 20):
        submit = worker.expect(messages.Submit)
        args, _ = values.loads(submit.inputs[0].data)
        assert args == (value,)
        assert submit.parent.startswith("in-")
        payload = values.dumps(value * 100)
        worker.send(messages.Outputs(submit.call_id, [messages.Output(0, messages.OK, payload.data)]))
    assert worker.outcome(first) == 1001
    assert worker.outcome(second) == 2001


def test_unstarted_inputs_stay_unanswered_at_stop(worker: Worker) -> None:
    worker.load("import time\ndef f(x):\n    time.sleep(x)\n    return x\n")
    first, second = worker.run((0.3,), (0,))
    worker.wait_running(first)
    assert worker.stop() == 0
    assert set(worker.results) <= {first, second}
    assert first in worker.results


def test_inputs_that_are_taken_back(worker: Worker) -> None:
    worker.load(f"import os, time\ndef f(x):\n    while not {MAY_GO}: time.sleep(0.005)\n    return x\n")
    seqs = worker.run((1,), (2,), (3,))
    worker.wait_running(seqs[0])
    assert worker.page.revoke(seqs[1], seqs[2]) == seqs[0]
    worker.go()
    assert worker.outcome(seqs[0]) == 1
    worker.until(lambda: len(worker.results) == 3)
    assert [worker.results[seq][0].status for seq in seqs[1:]] == [messages.REVOKED] * 2
    assert worker.call(0) == 0


def test_the_lifeline_brings_another_connection(worker: Worker) -> None:
    import socket

    worker.load(f"import os, time\ndef f(x):\n    while not {MAY_GO}: time.sleep(0.005)\n    return x\n")
    seqs = worker.run((1,), (2,), (3,))
    worker.wait_running(seqs[0])
    worker.sock.close()
    worker.sock, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    socket.send_fds(worker.lifeline, [b"socket"], [control.fileno()])
    control.close()
    worker.go()
    assert worker.expect(messages.Hello).container_id == "ta-test"
    assert worker.expect(messages.Parked) == messages.Parked(0, seqs[1:])
    assert worker.outcome(seqs[0]) == 1
    assert worker.call(0) == 0
    assert worker.stop() == 0


def test_a_platform_failure_is_typed(worker: Worker) -> None:
    worker.load("def f():\n    while True: pass\n", timeout=12.5)
    (seq,) = worker.run(())
    worker.wait_running(seq)
    worker.cancel(seq, worker.page.TIMED_OUT)
    with pytest.raises(PlatformError, match=r"function-timeout: f ran longer than its timeout of 12.5 s"):
        worker.outcome(seq)
