"""User code that forks: children have nothing of the runner's."""

import os

import pytest

from .conftest import Worker

FORK = """
    import os, signal, sys, warnings
    warnings.simplefilter("error")
    def f(x):
        print("parent", x)
        sys.stdout.write("partial ")
        pid = os.fork()
        if pid == 0:
            print("child", x)
            print("links", [fd for fd in (3, 4, 5) if os.path.exists(f"/proc/self/fd/{fd}")])
            print("handlers", [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)])
            os._exit(7)
        _, status = os.waitpid(pid, 0)
        print("rest")
        return os.waitstatus_to_exitcode(status)
"""


def test_a_forked_child_prints_to_the_pipe_and_holds_nothing(worker: Worker) -> None:
    worker.load(FORK)
    for x in range(3):
        assert worker.call(x) == 7
    assert worker.text() == "".join(f"parent {x}\npartial rest\n" for x in range(3))
    worker.stop()
    raw = bytes(worker.raw[1]).decode()
    assert raw.count("child") == 3
    assert "links []" in raw
    assert "handlers [<Handlers.SIG_DFL: 0>, <Handlers.SIG_DFL: 0>]" in raw


def test_forks_under_load_with_results_held_back(worker: Worker) -> None:
    worker.load("""
        import os
        def f(x):
            if x % 10 == 0:
                pid = os.fork()
                if pid == 0:
                    os._exit(x % 7)
                return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            return x
    """)
    seqs = worker.run(*[(n,) for n in range(400)])
    assert [worker.outcome(seq) for seq in seqs] == [n % 7 if n % 10 == 0 else n for n in range(400)]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(worker: Worker, method: str) -> None:
    worker.load(f"""
        import multiprocessing, os
        class Thing:
            def __init__(self, value): self.value = value
        def work(x):
            print("working", flush=True)
            return Thing(x.value * 2)
        def f(n):
            with multiprocessing.get_context("{method}").Pool(2) as pool:
                return [each.value for each in pool.map(work, [Thing(i) for i in range(n)])]
        def main():
            raise AssertionError("the guarded block ran")
        if __name__ == "__main__":
            main()
    """)
    assert worker.call(4) == [0, 2, 4, 6]
    assert worker.call(4) == [0, 2, 4, 6]
    assert worker.stop() == 0
    assert bytes(worker.raw[1]).decode().count("working") == 8


def test_executors_and_subprocesses(worker: Worker) -> None:
    worker.load("""
        import concurrent.futures, os, subprocess, sys
        def square(x):
            return x * x
        def f():
            with concurrent.futures.ProcessPoolExecutor(2) as pool:
                squares = list(pool.map(square, range(4)))
            listing = "import os; print(sorted(f for f in os.listdir('/proc/self/fd') if f in '345'))"
            done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True)
            subprocess.run(["echo", "echoed"], check=True)
            return squares, done.stdout.strip()
    """)
    squares, fds = worker.call()
    assert squares == [0, 1, 4, 9]
    assert fds in ("['3']", "[]")  # 3 is the listing itself
    worker.stop()
    assert bytes(worker.raw[1]) == b"echoed\n"


def test_a_terminated_child_ends(worker: Worker) -> None:
    worker.load("""
        import multiprocessing, time
        def f():
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
            child.start()
            child.terminate()
            child.join()
            return child.exitcode
    """)
    assert worker.call() == -15


def test_a_nested_call_in_a_child_is_an_error_that_says_so(worker: Worker) -> None:
    worker.load("""
        import os, farcall
        app = farcall.App("x")
        @app.function()
        def g(): pass
        @app.function()
        def f():
            read, write = os.pipe()
            if os.fork() == 0:
                try:
                    g.remote()
                except BaseException as error:
                    os.write(write, f"{type(error).__name__}: {error}".encode())
                os._exit(0)
            os.wait()
            return os.read(read, 4096).decode()
    """)
    assert worker.call().startswith("ConnectionError: calls from a container are made by")


def test_atexit_hooks_run(worker: Worker) -> None:
    worker.load("import atexit, os\natexit.register(print, 'bye')\ndef f(): print('run')\n")
    worker.call()
    assert os.waitstatus_to_exitcode(worker.stop()) == 0
    assert worker.text() == "run\nbye\n"


def test_a_crash_says_where_on_stderr(worker: Worker) -> None:
    worker.load("import os\ndef f():\n    os.abort()\n")
    worker.run(())
    assert os.waitstatus_to_exitcode(worker.wait_exit()) == -6
    assert b"program.py" in worker.raw[2]


@pytest.mark.parametrize(("ending", "status"), [("return 1", 0), ("sys.exit(4)", 4), ("raise ValueError('child')", 1)])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_child_that_leaves_the_function_ends(worker: Worker, ending: str, status: int, asynchronous: bool) -> None:
    worker.load(
        f"""
        import os, sys
        {"async " if asynchronous else ""}def f():
            pid = os.fork()
            if pid == 0:
                {ending}
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        """,
        asynchronous=asynchronous,
    )
    assert worker.call() == status
    assert worker.stop() == 0
    assert (b"ValueError: child" in worker.raw[2]) == (status == 1)
