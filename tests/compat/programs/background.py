"""Calls that go on by themselves, and what is made of their results."""

# runs: farcall run background.py
# only in containers: waits and cancels

import modal

app = modal.App("background")


@app.function()
def slow_square(x):
    return x * x


@app.function()
def endless():
    import time

    time.sleep(600)


@app.local_entrypoint()
def main():
    calls = [slow_square.spawn(x) for x in range(4)]
    print(modal.FunctionCall.gather(*calls))
    again = modal.FunctionCall.from_id(calls[2].object_id)
    print(again.get(), again.get(timeout=5))
    waiting = endless.spawn()
    try:
        waiting.get(timeout=0)
    except TimeoutError:
        print("not yet")
    waiting.cancel()
    try:
        waiting.get(timeout=10)
    except modal.exception.Error:
        print("cancelled")


# prints:
# [0, 1, 4, 9]
# 4 4
# not yet
# cancelled
