"""`farcall run --local`: the whole programming model in one process, on any system."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.debug.conftest import Run

Write = Callable[[str, str], Path]

PROGRAM = """
import asyncio
import os

import farcall

app = farcall.App("local", secrets=[farcall.Secret.from_dict({"KEY": "value"})])


class Thing:
    def __init__(self, name):
        self.name = name


@app.function(cpu=0.5, memory=128, timeout=10, retries=3)
def square(x):
    return x * x, os.getpid()


@app.function()
def change(values):
    values.append(4)
    return values


@app.function()
def count(n):
    try:
        yield from range(n)
    finally:
        print("closed")


@app.function()
async def acount(n):
    for number in range(n):
        await asyncio.sleep(0)
        yield number


@app.function()
async def double(x):
    await asyncio.sleep(0)
    return 2 * x


@app.function()
def fail(x):
    raise ValueError(f"no {x}")


@app.function()
def nested(xs):
    return list(double.map(xs)), double.remote(10), Model(name="m").add.remote(1), type(Thing("t")) is Thing


@app.function()
def rename(thing):
    return Thing(thing.name + "!")


@app.function()
def whole():
    return bytes(1_000_000)


@app.function()
def ids():
    return farcall.is_local(), farcall.current_input_id()[:3], farcall.current_function_call_id()[:3]


@app.cls()
class Model:
    name: str = farcall.parameter(default="x")

    @farcall.enter()
    def load(self):
        self.total = 0
        print("enter", self.name)

    @farcall.enter()
    async def load_more(self):
        await asyncio.sleep(0)
        self.total += 100

    @farcall.method()
    def add(self, x):
        self.total += x
        return self.total

    @farcall.method()
    async def wait(self):
        return self.name

    @farcall.method()
    def letters(self):
        yield from self.name

    @farcall.exit()
    def bye(self):
        print("exit", self.name, self.total)


async def asynchronous():
    print(await double.remote.aio(4), await asyncio.gather(*(double.remote.aio(x) for x in range(3))))
    print([x async for x in double.map.aio([1, 2])], [x async for x in acount.remote_gen.aio(2)])
    call = await double.spawn.aio(5)
    print(await call.get.aio(), await Model(name="a").wait.remote.aio())


@app.local_entrypoint()
def main(n: int = 3):
    values = [1]
    print(square.remote(n) == (n * n, os.getpid()), change.remote(values), values)
    print([x for x, _ in square.map(range(3))], list(double.starmap([(1,), (2,)])), square.for_each([1]))
    print(list(fail.map([1], return_exceptions=True)))
    try:
        fail.remote(2)
    except ValueError as error:
        print("raised", error)
    generator = count.remote_gen(5)
    print(next(generator), next(generator))
    generator.close()
    print(list(acount.remote_gen(3)), double.remote(7), nested.remote([1]))
    print(rename.remote(Thing("a")).name, len(whole.remote()), ids.remote())
    calls = [double.spawn(1), double.spawn(2)]
    print(calls[0].get(), farcall.FunctionCall.gather(*calls), fail.spawn(1).object_id[:3])
    print(Model(name="m").add.remote(2), list(Model(name="m").letters.remote_gen()), Model().wait.remote())
    asyncio.run(asynchronous())
"""

PRINTED = """\
True [1, 4] [1]
[0, 1, 4] [2, 4] None
[ValueError('no 1')]
raised no 2
0 1
closed
enter m
[0, 1, 2] 14 ([2], 20, 101, True)
a! 1000000 (True, 'in-', 'fc-')
2 [2, 4] fc-
enter x
103 ['m'] x
8 [0, 2, 4]
[2, 4] [0, 1]
enter a
10 a
exit m 103
exit x 100
exit a 100
"""


def test_the_programming_model(farcall_on: Run, write: Write, tmp_path: Path) -> None:
    done = farcall_on("run", "--local", write("program.py", PROGRAM))
    assert done.stdout == PRINTED, done.stderr
    assert done.returncode == 0
    assert not (tmp_path / "state").exists() or list((tmp_path / "state").iterdir()) == []


def test_arguments_and_a_function_by_name(farcall_on: Run, write: Write) -> None:
    program = write(
        "program.py",
        """
        import farcall

        app = farcall.App()

        @app.function()
        def greet(name: str, times: int = 1):
            return " ".join([name] * times)

        @app.cls()
        class Model:
            @farcall.method()
            def f(self, x: int):
                return x + 1

        @app.function()
        def count(n: int):
            yield from range(n)
        """,
    )
    assert farcall_on("run", "--local", f"{program}::greet", "--name", "you", "--times", "2").stdout == "you you\n"
    assert farcall_on("run", "--local", f"{program}::Model.f", "--x", "2").stdout == "3\n"
    assert farcall_on("run", "--local", f"{program}::count", "--n", "2").stdout == "0\n1\n"


def test_a_plain_script(farcall_on: Run, write: Write) -> None:
    script = write(
        "script.py",
        """
        import farcall

        app = farcall.App()

        class Thing:
            pass

        @app.function()
        def same(thing):
            return isinstance(thing, Thing), __name__

        if __name__ == "__main__":
            with app.run():
                print(same.remote(Thing()))
        """,
    )
    done = farcall_on("python", "--local", script)
    assert done.stdout == "(True, '__main__')\n", done.stderr


def test_what_cannot_travel_fails_here_too(farcall_on: Run, write: Write) -> None:
    program = write(
        "program.py",
        """
        import threading
        import farcall

        app = farcall.App()

        @app.function()
        def f(x):
            return x

        @app.local_entrypoint()
        def main():
            f.remote(threading.Lock())
        """,
    )
    done = farcall_on("run", "--local", program)
    assert done.returncode == 1
    assert "SerializationError: argument 1" in done.stderr


def test_an_error_shows_the_users_code(farcall_on: Run, write: Write) -> None:
    program = write(
        "program.py",
        """
        import farcall

        app = farcall.App()

        @app.function()
        def divide(x):
            return 1 / x

        @app.local_entrypoint()
        def main():
            divide.remote(0)
        """,
    )
    done = farcall_on("run", "--local", program)
    assert done.returncode == 1
    assert "return 1 / x" in done.stderr
    assert "divide.remote(0)" in done.stderr
    assert "ZeroDivisionError: division by zero" in done.stderr
    assert "farcall/sdk" not in done.stderr


def test_batched_and_concurrent_functions(farcall_on: Run, write: Write) -> None:
    """Callers pass single items here too; each is a batch of its own."""
    program = write(
        "program.py",
        """
        import farcall

        app = farcall.App()

        @app.function()
        @farcall.batched(max_batch_size=10, wait_ms=10_000)
        def add(xs: list[int], ys: list[int]) -> list[int]:
            return [x + y for x, y in zip(xs, ys)]

        @app.function()
        @farcall.concurrent(max_inputs=10)
        @farcall.batched(max_batch_size=10, wait_ms=10_000)
        async def wrong(xs: list[int]) -> list[int]:
            return xs * 2

        @app.cls()
        class Model:
            @farcall.batched(max_batch_size=10, wait_ms=10_000)
            async def double(self, xs: list[int]) -> list[int]:
                return [2 * x for x in xs]

        @app.local_entrypoint()
        def main():
            print(add.remote(1, ys=2), list(Model().double.map(range(3))), add.local([1], [2]))
            try:
                wrong.remote(1)
            except farcall.errors.InvalidError as error:
                print(error)
        """,
    )
    done = farcall_on("run", "--local", program)
    assert done.stdout.startswith("3 [0, 2, 4] [3]\nwrong is @farcall.batched, was given 1 items"), done.stderr


def test_a_feature_that_is_not_there(farcall_on: Run, write: Write) -> None:
    program = write(
        "program.py",
        """
        import farcall

        app = farcall.App()

        @app.function(proxy=farcall.Proxy.from_name("p"))
        def train():
            pass

        @app.local_entrypoint()
        def main():
            train.remote()
        """,
    )
    done = farcall_on("run", "--local", program)
    assert done.returncode == 1
    assert "UnimplementedError: train cannot be called: it is declared with proxy=" in done.stderr


def test_exit_hooks_run_after_a_failure(farcall_on: Run, write: Write) -> None:
    program = write(
        "program.py",
        """
        import farcall

        app = farcall.App()

        @app.cls()
        class Model:
            @farcall.method()
            def f(self):
                raise RuntimeError("broken")

            @farcall.exit()
            def bye(self):
                print("bye")

        @app.local_entrypoint()
        def main():
            Model().f.remote()
        """,
    )
    done = farcall_on("run", "--local", program)
    assert done.returncode == 1
    assert done.stdout == "bye\n"


@pytest.mark.parametrize("farcall_on", ["darwin", "win32"], indirect=True)
def test_without_local_the_error_says_what_to_do(farcall_on: Run, write: Write) -> None:
    program = write("program.py", "import farcall\napp = farcall.App()\n@app.function()\ndef f():\n    return 1\n")
    done = farcall_on("run", program)
    assert done.returncode in (1, 3)
    assert "farcall run --local" in done.stderr
    assert "Traceback" not in done.stderr


def test_any_program_by_the_environment(python: Run, write: Write, tmp_path: Path) -> None:
    script = write(
        "script.py",
        """
        import os
        import farcall

        app = farcall.App()

        @app.function()
        def pid():
            return os.getpid()

        if __name__ == "__main__":
            with app.run():
                print(pid.remote() == os.getpid())
        """,
    )
    assert python(script, FARCALL_LOCAL="1").stdout == "True\n"
    assert not (tmp_path / "state").exists() or list((tmp_path / "state").iterdir()) == []


def test_asynchronous_code_has_one_loop(farcall_on: Run, write: Write) -> None:
    """What an enter hook makes on its loop works in the methods, from blocking and from asynchronous callers."""
    program = write(
        "program.py",
        """
        import asyncio
        import farcall

        app = farcall.App()

        @app.cls()
        class Model:
            @farcall.enter()
            async def load(self):
                self.queue = asyncio.Queue()
                self.worker = asyncio.create_task(self.work())

            async def work(self):
                while True:
                    number, answer = await self.queue.get()
                    answer.set_result(number + 1)

            @farcall.method()
            async def ask(self, number):
                answer = asyncio.get_running_loop().create_future()
                await self.queue.put((number, answer))
                return await answer

            @farcall.exit()
            async def bye(self):
                self.worker.cancel()
                print("bye")

        @app.function()
        async def outer(x):
            return Model().ask.remote(x)

        @app.local_entrypoint()
        def main():
            print(Model().ask.remote(1), list(Model().ask.map([2, 3])))

        @app.local_entrypoint()
        async def asynchronous():
            print(await Model().ask.remote.aio(1), [x async for x in Model().ask.map.aio([2])])
            print(await other.remote.aio(), other.remote())

        @app.function()
        async def other():
            await asyncio.sleep(0)
            return 5
        """,
    )
    done = farcall_on("run", "--local", f"{program}::main")
    assert done.stdout == "2 [3, 4]\nbye\n", done.stderr
    done = farcall_on("run", "--local", f"{program}::asynchronous")
    assert done.stdout.startswith("2 [3]\n5 5\n"), done.stderr


def test_errors_of_asynchronous_functions(farcall_on: Run, write: Write) -> None:
    program = write(
        "program.py",
        """
        import asyncio
        import farcall

        app = farcall.App()

        @app.function()
        async def fail(x):
            raise ValueError(x)

        @app.function()
        def leave():
            raise SystemExit(7)

        @app.local_entrypoint()
        def main():
            try:
                fail.remote(1)
            except ValueError as error:
                print(error, error.__context__)
            asyncio.run(inside())
            try:
                leave.remote()
            except farcall.errors.ExecutionError as error:
                print(error)
            print(farcall.current_input_id())

        async def inside():
            try:
                fail.remote(2)
            except ValueError as error:
                print(error)
        """,
    )
    done = farcall_on("run", "--local", program)
    assert done.stdout == "1 None\n2\nleave ended with SystemExit: 7\nNone\n", done.stderr
    assert done.stderr.count("blocks the running event loop") == 1
