"""Notebooks: what a person does in cells, in a real kernel."""

import time
from pathlib import Path

from tests.conftest import Installation
from tests.launcher.image_harness import make_image
from tests.notebook.conftest import Kernel


def test_a_function_of_a_cell_runs_in_a_container(kernel: Kernel) -> None:
    kernel(
        """
        import os

        @app.function()
        def where(x):
            return x * x, os.getpid()
        """
    )
    ran = kernel(
        """
        with app.run():
            squared, pid = where.remote(7)
        squared, pid != os.getpid()
        """
    )
    assert ran.value == "(49, True)"
    assert ran.stderr == ""


def test_asynchronous_cells(kernel: Kernel) -> None:
    kernel(
        """
        import asyncio

        @app.function()
        async def double(x):
            await asyncio.sleep(0)
            return 2 * x

        @app.function()
        def count(n):
            yield from range(n)
        """
    )
    ran = kernel(
        """
        async with app.run():
            one = await double.remote.aio(4)
            several = await asyncio.gather(*(double.remote.aio(x) for x in range(3)))
            mapped = [x async for x in double.map.aio(range(4))]
            streamed = [x async for x in count.remote_gen.aio(3)]
            call = await double.spawn.aio(21)
            spawned = await call.get.aio()
        one, several, mapped, streamed, spawned
        """
    )
    assert ran.value == "(8, [0, 2, 4], [0, 2, 4, 6], [0, 1, 2], 42)"
    assert ran.stderr == ""


def test_an_app_may_run_over_several_cells(kernel: Kernel) -> None:
    kernel(
        """
        @app.function()
        def increment(x):
            return x + 1

        running = app.run()
        running.__enter__()
        """
    )
    assert kernel("increment.remote(1)").value == "2"
    assert kernel("await increment.remote.aio(2)").value == "3"
    kernel("running.__exit__(None, None, None)")
    assert "its app is not running" in kernel.fails("increment.remote(1)").message


def test_a_function_sees_the_other_cells(kernel: Kernel) -> None:
    """Globals, imports, helpers, classes; as they are when the app starts."""
    kernel("import math\nfrom collections import Counter as C\nscale = 10\ntable = {'a': 1}")
    kernel(
        """
        class Point:
            def __init__(self, x, y):
                self.x, self.y = x, y
            def length(self):
                return helper(self.x, self.y)
            def __eq__(self, other):
                return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

        def helper(x, y):
            return math.hypot(x, y) * scale
        """
    )
    kernel(
        """
        @app.function()
        def measure(point):
            return point.length(), type(point) is Point, table["a"], C("aab")["a"]

        @app.function()
        def mirror(point):
            return Point(point.y, point.x)
        """
    )
    assert (
        kernel(
            """
            with app.run():
                measured = measure.remote(Point(3, 4))
                mirrored = mirror.remote(Point(1, 2))
            measured, mirrored == Point(2, 1), type(mirrored) is Point
            """
        ).value
        == "((50.0, True, 1, 2), True, True)"
    )
    kernel("scale = 100\ndef helper(x, y):\n    return (x + y) * scale")
    assert kernel("with app.run():\n    measured = measure.remote(Point(3, 4))\nmeasured[0]").value == "700"


def test_a_cell_run_again_replaces_what_it_defines(kernel: Kernel) -> None:
    for answer in (1, 2):
        ran = kernel(
            f"""
            @app.function()
            def answer():
                return {answer}

            @app.cls()
            class Model:
                @farcall.method()
                def answer(self):
                    return {answer}

            @app.local_entrypoint()
            def main():
                print(answer.remote(), Model().answer.remote())

            with app.run():
                main()
            """
        )
        assert ran.stdout == f"{answer} {answer}\n"
        assert ran.stderr == ""


def test_classes_of_many_kinds_travel(kernel: Kernel) -> None:
    kernel(
        """
        import abc, dataclasses, enum, typing

        class Colour(enum.Enum):
            RED = 1

        @dataclasses.dataclass
        class Item:
            colour: Colour
            sizes: list[int] = dataclasses.field(default_factory=list)

        class Pair(typing.NamedTuple):
            a: int
            b: int = 2

        class Shape(abc.ABC):
            @abc.abstractmethod
            def area(self): ...

        class Square(Shape):
            side = 3
            def area(self):
                return self.side ** 2

        @app.function()
        def echo(value):
            match value:
                case Item(colour=Colour.RED) | Pair(a=1):
                    return value
                case Shape():
                    return value, value.area()
        """
    )
    ran = kernel(
        """
        with app.run():
            item, pair = echo.remote(Item(Colour.RED, [1])), echo.remote(Pair(1))
            square, area = echo.remote(Square())
        item == Item(Colour.RED, [1]), item.colour is Colour.RED, pair, type(square) is Square, area
        """
    )
    assert ran.value == "(True, True, Pair(a=1, b=2), True, 9)"


def test_a_class_that_came_back_sees_the_globals_here(kernel: Kernel) -> None:
    kernel(
        """
        factor = 1

        class Box:
            def scaled(self):
                return factor

        @app.function()
        def make():
            return Box()

        with app.run():
            box = make.remote()
        factor = 2
        """
    )
    assert kernel("box.scaled(), Box().scaled(), type(box) is Box").value == "(2, 2, True)"


def test_a_class_redefined_while_the_app_runs(kernel: Kernel) -> None:
    kernel(
        """
        class Version:
            number = 1

        @app.function()
        def number(value):
            return value.number, type(value) is Version

        running = app.run()
        running.__enter__()
        """
    )
    assert kernel("number.remote(Version())").value == "(1, True)"
    kernel("class Version:\n    number = 2")
    assert kernel("number.remote(Version())").value == "(2, False)"  # the function knows the class of when it was sent
    kernel("running.__exit__(None, None, None)")


def test_methods_know_their_own_class(kernel: Kernel) -> None:
    kernel(
        """
        @app.cls()
        class Counter:
            START = 5

            def __init__(self, step):
                self.step = step

            @farcall.method()
            def next(self):
                return Counter.START + self.step, isinstance(self, Counter)

        @app.function()
        def here():
            return Counter(2).next.local()
        """
    )
    assert kernel("with app.run():\n    got = Counter(1).next.remote(), here.remote()\ngot").value == (
        "((6, True), (7, True))"
    )


def test_a_lambda_and_a_function_in_a_function(kernel: Kernel) -> None:
    kernel(
        """
        power = app.function(name="power")(lambda x: x ** 2)

        def make(n):
            @app.function(name=f"add-{n}")
            def add(x):
                return x + n
            return add

        add = make(10)
        """
    )
    assert kernel("with app.run():\n    got = power.remote(3), add.remote(1)\ngot").value == "(9, 11)"


def test_a_class_of_a_cell(kernel: Kernel) -> None:
    kernel("greeting = 'hello'\ndef shout(text):\n    return text.upper()")
    kernel(
        """
        class Base:
            def greet(self, name):
                return shout(f"{self.greeting} {name}")

        @app.cls()
        class Greeter(Base):
            mark: str = farcall.parameter(default="!")

            @farcall.enter()
            def load(self):
                self.greeting = greeting
                self.calls = 0

            @farcall.method()
            def hail(self, name):
                self.calls += 1
                return self.greet(name) + self.mark, self.calls

            @farcall.method()
            async def wait(self):
                return self.calls

            @farcall.method()
            def letters(self):
                yield from self.greeting[:2]

            @farcall.exit()
            def bye(self):
                print("bye", self.calls)
        """
    )
    ran = kernel(
        """
        with farcall.enable_output(), app.run():
            greeter = Greeter(mark="?")
            print(greeter.hail.remote("you"), greeter.hail.remote("me"), greeter.wait.remote())
            print(list(greeter.letters.remote_gen()), list(greeter.hail.map(["a"])))
        """
    )
    assert ran.stdout.splitlines() == ["('HELLO YOU?', 1) ('HELLO ME?', 2) 2", "['h', 'e'] [('HELLO A?', 3)]", "bye 3"]
    assert ran.stderr == ""
    assert kernel("Greeter.__name__, Greeter(mark='x').hail.local('you')").value == "('Greeter', ('HELLO YOUx', 1))"


def test_functions_call_each_other(kernel: Kernel) -> None:
    kernel(
        """
        @app.function()
        def inner(x):
            return x + 1

        @app.function()
        def outer(xs):
            return sum(inner.map(xs)), inner.remote(10), Adder(by=5).add.remote(1)

        @app.cls()
        class Adder:
            by: int = farcall.parameter()

            @farcall.method()
            def add(self, x):
                return inner.local(x) + self.by
        """
    )
    assert kernel("with app.run():\n    result = outer.remote([1, 2])\nresult").value == "(5, 11, 7)"


def test_an_error_shows_the_cell(kernel: Kernel) -> None:
    kernel(
        """
        class Odd(Exception):
            def __init__(self, number):
                super().__init__(f"{number} is odd")
                self.number = number

        @app.function()
        def even(x):
            if x % 2:
                raise Odd(x)
            return x
        """
    )
    ran = kernel(
        """
        import traceback
        with app.run():
            try:
                even.remote(3)
            except Odd as error:
                shown = "".join(traceback.format_exception(error))
                print(type(error) is Odd, error.number, "raise Odd(x)" in shown)
        """
    )
    assert ran.stdout == "True 3 True\n"
    failed = kernel.fails("with app.run():\n    even.remote(5)")
    assert (failed.error, failed.message) == ("Odd", "5 is odd")


def test_a_function_added_to_a_running_app(kernel: Kernel) -> None:
    kernel("running = app.run()\nrunning.__enter__()\n@app.function()\ndef late():\n    return 1")
    assert "after app.run() began" in kernel.fails("late.remote()").message
    kernel("running.__exit__(None, None, None)")
    assert kernel("with app.run():\n    got = late.remote()\ngot").value == "1"


def test_a_name_set_by_hand_does_not_make_it_a_script(kernel: Kernel) -> None:
    kernel("__file__ = 'notebook.ipynb'\nopen(__file__, 'w').close()\n@app.function()\ndef f():\n    return 1")
    assert kernel("with app.run():\n    got = f.remote()\ngot").value == "1"


def test_a_restarted_kernel_leaves_no_app(kernel: Kernel, server: Installation) -> None:
    kernel("@app.function()\ndef f():\n    return 1\nrunning = app.run()\nrunning.__enter__()\nf.remote()")
    name = kernel("app.app_id").value.strip("'")
    assert name in server.farcall("server", "status").stdout
    kernel.manager.restart_kernel(now=True)
    deadline = time.monotonic() + 30
    while name in server.farcall("server", "status").stdout:
        assert time.monotonic() < deadline, "the app goes on without its program"


def test_what_cannot_travel_is_named(kernel: Kernel) -> None:
    kernel("import threading\nlock = threading.Lock()\n@app.function()\ndef locked():\n    return lock.locked()")
    failed = kernel.fails("with app.run():\n    locked.remote()")
    assert failed.error == "SerializationError"
    assert "locked cannot be sent by value" in failed.message
    assert "lock" in failed.message


def test_logs_go_to_the_cell_that_runs(kernel: Kernel) -> None:
    kernel(
        """
        import sys

        @app.function()
        def speak(word):
            print("out", word)
            print("err", word, file=sys.stderr)
        """
    )
    for form in ("app.run()", "farcall.enable_output(), app.run()"):
        ran = kernel(f"with {form}:\n    speak.remote('one')")
        assert ran.stdout == "out one\n"
        assert ran.stderr == "err one\n"
    kernel("running = app.run()\nrunning.__enter__()")
    for word in ("two", "three"):
        cell = kernel.start(f"import time\nspeak.remote({word!r})\nprint('returned')\ntime.sleep(60)")
        ran = kernel.finish(cell, until=lambda ran: ran.stdout.count("\n") == 2 and "\n" in ran.stderr)
        kernel.interrupt()  # not before: a call that is cancelled may have more to say
        assert kernel.finish(cell, ran=ran).error == "KeyboardInterrupt"
        assert (sorted(ran.stdout.splitlines()), ran.stderr) == ([f"out {word}", "returned"], f"err {word}\n")
    kernel("running.__exit__(None, None, None)")
    captured = kernel("%%capture said\nwith app.run():\n    speak.remote('four')")
    assert captured.stdout == captured.stderr == ""
    assert kernel("said.stdout").value == "'out four\\n'"


def test_no_warning_of_a_blocked_loop(kernel: Kernel) -> None:
    """A notebook's loop waits for its cells anyway."""
    kernel("@app.function()\ndef f(x):\n    return x")
    ran = kernel("with app.run():\n    print(f.remote(1), list(f.map([2])), f.spawn(3).get())")
    assert ran.stdout == "1 [2] 3\n"
    assert ran.stderr == ""


def test_an_interrupt_cancels_the_input(kernel: Kernel) -> None:
    kernel(
        """
        import time

        ended = []

        @app.function(max_containers=1)
        def slow(x):
            if x == 0:  # runs when what ran before has ended
                return ended
            try:
                print("started", flush=True)
                time.sleep(600)
            except BaseException as error:
                ended.append(type(error).__name__)
                raise

        running = app.run()
        running.__enter__()
        """
    )
    for count, call in enumerate(("slow.remote(1)", "list(slow.map([1]))", "for _ in slow.map([1]): pass"), 1):
        cell = kernel.start(call)
        ran = kernel.finish(cell, until=lambda ran: "started" in ran.stdout)
        kernel.interrupt()
        assert kernel.finish(cell, ran=ran).error == "KeyboardInterrupt"
        assert kernel("slow.remote(0)").value == repr(["InputCancellation"] * count)
    kernel("running.__exit__(None, None, None)")


def test_an_interrupt_cancels_an_awaited_input(kernel: Kernel) -> None:
    kernel(
        """
        import asyncio

        ended = []

        @app.function(max_containers=1)
        async def slow(x):
            if x == 0:
                return ended
            try:
                print("started", flush=True)
                await asyncio.sleep(600)
            except BaseException as error:
                ended.append(type(error).__name__)
                raise

        running = app.run()
        running.__enter__()
        """
    )
    cell = kernel.start("await slow.remote.aio(1)")
    ran = kernel.finish(cell, until=lambda ran: "started" in ran.stdout)
    kernel.interrupt()
    assert kernel.finish(cell, ran=ran).error == "CancelledError"
    assert kernel("await slow.remote.aio(0)").value == "['CancelledError']"
    kernel("await running.__aexit__(None, None, None)")


def test_an_interrupt_ends_the_app_of_its_cell(kernel: Kernel, server: Installation) -> None:
    kernel(
        """
        import time

        @app.function()
        def slow():
            print("started", flush=True)
            time.sleep(600)
        """
    )
    plain = "with app.run():\n    slow.remote()"
    awaited = "async with app.run():\n    await slow.remote.aio()"
    spawned = "with app.run():\n    slow.spawn().get()"
    for code in (plain, awaited, spawned):
        cell = kernel.start(code)
        ran = kernel.finish(cell, until=lambda ran: "started" in ran.stdout)
        kernel.interrupt()
        assert kernel.finish(cell, ran=ran).error in ("KeyboardInterrupt", "CancelledError")
        assert kernel("app.app_id").value.strip("'") not in server.farcall("server", "status").stdout


def test_an_image_is_built_in_a_cell(kernel: Kernel, tmp_path: Path) -> None:
    root = make_image(tmp_path / "image")
    kernel(
        f"""
        base = farcall.Image.from_scratch().add_local_dir({str(root)!r}, "/", copy=True)
        image = base.run_commands("echo from a cell > /mark", "cat /mark")
        """
    )
    built = kernel(
        """
        with farcall.enable_output():
            await image.build.aio()
        image.object_id[:3], image.build() is image
        """
    )
    assert built.value == "('im-', True)"
    shown = built.stdout + built.stderr
    assert "RUN cat /mark" in shown and "from a cell" in shown
    failed = kernel.fails("image.run_commands('cat /nothing').build()")
    assert failed.error == "ImageBuildError"
    assert "cat: /nothing: No such file or directory" in failed.message


def test_the_stop_button_ends_a_build(kernel: Kernel, tmp_path: Path) -> None:
    root = make_image(tmp_path / "image")
    kernel(f"base = farcall.Image.from_scratch().add_local_dir({str(root)!r}, '/', copy=True)")
    cell = kernel.start(
        """
        with farcall.enable_output():
            base.run_commands('echo waiting; exec 3<> /dev/ptmx; cat <&3').build()
        """
    )
    ran = kernel.finish(cell, until=lambda ran: "waiting" in ran.stdout + ran.stderr)
    kernel.interrupt()
    assert kernel.finish(cell, ran=ran).error == "KeyboardInterrupt"
    assert kernel("base.build().object_id[:3]").value == "'im-'"
