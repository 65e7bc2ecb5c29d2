"""Exceptions: the user's own, the platform's, by the reference API's names."""

# runs: farcall run failures.py
# only in containers: timeouts

import time

import modal
import modal.exception
from modal.exception import FunctionTimeoutError, InvalidError

app = modal.App("failures")


class OutOfStockError(Exception):
    def __init__(self, item: str, left: int):
        super().__init__(item, left)
        self.item = item
        self.left = left


@app.function()
def order(item: str):
    raise OutOfStockError(item, 3)


@app.function(timeout=1)
def sleepy():
    time.sleep(30)


@app.function()
def leave():
    raise SystemExit(4)


@app.function()
def items():
    yield 1


@app.local_entrypoint()
def main():
    try:
        order.remote("tea")
    except OutOfStockError as error:
        print("out of", error.item, error.left)
    try:
        sleepy.remote()
    except FunctionTimeoutError as error:
        print("too slow", isinstance(error, modal.exception.TimeoutError), isinstance(error, modal.exception.Error))
    try:
        leave.remote()
    except modal.exception.ExecutionError:
        print("it left, we did not")
    try:
        items.remote()
    except InvalidError as error:
        print("remote_gen" in str(error))
    try:
        modal.Function.from_name("no-app", "f").remote()
    except modal.Error as error:
        print(type(error).__name__)


# prints:
# out of tea 3
# too slow True True
# it left, we did not
# True
# UnimplementedError
