"""What type checkers see of a program. Read by pyright in test_typing, never run."""

from collections.abc import AsyncGenerator, Coroutine, Generator, Iterator
from typing import Any, assert_type

import farcall
from farcall.sdk.types import FileEntry

app = farcall.App("typing")


@app.function(cpu=2, memory=(512, 1024), retries=farcall.Retries(max_retries=3), env={"A": "b"})
def scale(x: int, factor: float = 2.0) -> float:
    return x * factor


@app.function()
async def fetch(url: str) -> bytes:
    return url.encode()


@app.function()
def count(n: int) -> Generator[int, None, None]:
    yield from range(n)


@app.function()
async def stream(n: int) -> AsyncGenerator[str, None]:
    yield str(n)


@app.function(is_generator=True)
def lines() -> Iterator[str]:
    return iter("ab")


@app.function()
@farcall.concurrent(max_inputs=4)
def shared(x: str) -> list[str]:
    return [x]


@app.cls(cpu=1)
class Model:
    size: int = farcall.parameter(default=2)
    name: str = farcall.parameter()

    @farcall.enter()
    def load(self) -> None:
        self.weights = [1.0] * self.size

    @farcall.method()
    def predict(self, x: float) -> list[float]:
        self.load()
        return [x * weight for weight in self.weights] + self.predict.local(x)

    @farcall.method()
    async def embed(self, text: str) -> tuple[float, ...]:
        return (1.0,)

    @farcall.method()
    def tokens(self, text: str) -> Generator[str, None, None]:
        yield text

    @farcall.exit()
    def close(self) -> None: ...


@app.cls()
class Older:
    def __init__(self, rate: float) -> None:
        self.rate = rate

    @farcall.method()
    def run(self, x: int) -> str:
        return str(x)


image = farcall.Image.debian_slim("3.12").pip_install("numpy", ["pandas"], pre=True).env({"A": "b"})


def with_tools(image: farcall.Image, *tools: str) -> farcall.Image:
    return image.apt_install(*tools)


@app.function(image=image.pipe(with_tools, "git").add_local_dir("data", "/data", ignore=["*.tmp"]))
def in_image(x: int) -> int:
    return x


@app.local_entrypoint()
def main(name: str = "world") -> None:
    print(name)


assert_type(scale.remote(1, factor=2.0), float)
assert_type(scale.local(1), float)
assert_type(scale.spawn(1), farcall.FunctionCall[float])
assert_type(scale.spawn(1).get(timeout=3), float)
assert_type(scale.map([1, 2]), Generator[float, None, None])
assert_type(scale.starmap([(1, 2.0)], order_outputs=False), Generator[float, None, None])
assert_type(scale.for_each([1], ignore_exceptions=True), None)
assert_type(list(scale.spawn(1).iter()), list[float])
assert_type(fetch.remote("x"), bytes)
assert_type(fetch.local("x"), Coroutine[Any, Any, bytes])
assert_type(count.remote_gen(3), Generator[int, None, None])
assert_type(stream.remote_gen(3), Generator[str, None, None])
assert_type(stream.remote_gen.aio(3), AsyncGenerator[str, None])
assert_type(lines.remote_gen(), Generator[str, None, None])
assert_type(shared.remote("x"), list[str])

model = Model(name="m", size=3)
assert_type(model.predict.remote(1.0), list[float])
assert_type(model.embed.remote("x"), tuple[float, ...])
assert_type(model.tokens.remote_gen("x"), Generator[str, None, None])
assert_type(model.predict.map([1.0]), Generator[list[float], None, None])
assert_type(Older(0.5).run.remote(1), str)
assert_type(farcall.FunctionCall.from_id("fc-1").get(), Any)
assert_type(main("x"), None)
assert_type(image, farcall.Image)
assert_type(image.build(), farcall.Image)
assert_type(image.object_id, str | None)
assert_type(image.publish("base"), None)
assert_type(farcall.Image.from_registry("a", add_python="3.12").run_function(scale.local, args=[1]), farcall.Image)


async def asynchronous() -> None:
    assert_type(await scale.remote.aio(1), float)
    assert_type(await fetch.remote.aio("x"), bytes)
    call = await scale.spawn.aio(1)
    assert_type(call, farcall.FunctionCall[float])
    assert_type(await call.get.aio(timeout=1), float)
    assert_type([x async for x in scale.map.aio([1])], list[float])
    assert_type([x async for x in count.remote_gen.aio(2)], list[int])
    assert_type(await model.predict.remote.aio(2.0), list[float])
    assert_type(list(await farcall.FunctionCall.gather.aio(call, call)), list[float])
    assert_type(await image.build.aio(), farcall.Image)
    async with app.run() as running:
        assert_type(running, farcall.App)


with app.run() as running, farcall.enable_output():
    assert_type(running, farcall.App)

scale.remote("1")  # wrong: str for int
scale.remote(1, 2.0, 3)  # wrong: one argument too many
scale.spawn()  # wrong: x is missing
fetch.remote(1)  # wrong: int for str
model.predict.remote("x")  # wrong: str for float
model.predict.remote.aio(None)  # wrong: None for float
Model(size=3)  # wrong: name is missing
Model(name=3)  # wrong: int for str
Older("x")  # wrong: str for float
image.pip_install(3)  # wrong: int for str
image.pip_install("a", index="b")  # wrong: no such parameter
image.uv_sync(frozen="yes")  # wrong: str for bool
image.env({"A": 1})  # wrong: int for str
image.pipe(with_tools, 1)  # wrong: int for str
farcall.Image.debian_slim(3.12)  # wrong: float for str
farcall.Image.from_registry("a", add_pythn="3.12")  # wrong: no such parameter
app.function(gpus=1)  # wrong: no such parameter
app.function(timeout="1")  # wrong: str for int
print(farcall.Functoin)  # wrong: no such name


async def volumes(volume: farcall.Volume) -> None:
    assert_type(volume.listdir("/"), list[FileEntry])
    assert_type(await volume.listdir.aio("/", recursive=True), list[FileEntry])
    assert_type(volume.read_file("a"), Generator[bytes, None, None])
    async for chunk in volume.read_file.aio("a"):
        assert_type(chunk, bytes)
    assert_type(await volume.commit.aio(), None)
    assert_type(volume.info().name, str)
    with volume.batch_upload(force=True) as batch:
        batch.put_file("a", "b", mode=0o600)
    async with volume.batch_upload() as batch:
        batch.put_directory("a", "b")
