"""Run it with `farcall run FILE`; `--epochs 50 --rate 0.1` are its arguments."""

import math
import random
from collections.abc import Iterator

import farcall

app = farcall.App("train")


# A generator streams what it yields. `retries` and `timeout` are for long jobs; `gpu="H100"` is where a GPU would go.
@app.function(cpu=1, memory=256, timeout=3600)
def train(epochs: int, rate: float, seed: int) -> Iterator[tuple[int, float, tuple[float, float]]]:
    """Fit a line to noisy points by gradient descent; yields epoch, loss and the line after each epoch."""
    random.seed(seed)
    points = [(x / 100, 3 * x / 100 + 1 + random.gauss(0, 0.1)) for x in range(100)]
    slope, offset = 0.0, 0.0
    for epoch in range(1, epochs + 1):
        errors = [(slope * x + offset - y, x) for x, y in points]
        slope -= rate * 2 * sum(error * x for error, x in errors) / len(points)
        offset -= rate * 2 * sum(error for error, _ in errors) / len(points)
        yield epoch, math.sqrt(sum(error**2 for error, _ in errors) / len(points)), (slope, offset)


@app.function(cpu=1)
def evaluate(rate: float) -> float:
    """The loss that this learning rate ends with."""
    *_, (_, loss, _) = train.local(200, rate, 0)
    return loss


@app.local_entrypoint()
def main(epochs: int = 100, rate: float = 0.3) -> None:
    for epoch, loss, (slope, offset) in train.remote_gen(epochs, rate, seed=0):
        if epoch == 1 or epoch % 20 == 0:
            print(f"epoch {epoch:4}: loss {loss:.4f}, y = {slope:.2f} x + {offset:.2f}")

    rates = [0.01, 0.03, 0.1, 0.3, 1.0]
    for one, loss in zip(rates, evaluate.map(rates), strict=True):  # several trainings at once
        print(f"rate {one}: loss {loss:.4f}")
