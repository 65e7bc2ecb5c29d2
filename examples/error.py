"""An error in a container, caught and not caught.

    farcall run examples/error.py

The first part handles failures among the inputs of a map; the last call fails, and the command shows where and why.
"""

import json
from typing import Any

import farcall

app = farcall.App("error")


@app.function()
def parse(document: str) -> Any:
    return json.loads(document)


@app.function()
def average(values: list[float]) -> float:
    total = sum(values)
    return total / len(values)


@app.local_entrypoint()
def main() -> None:
    documents = ['{"a": 1}', "[1, 2", "true"]
    for document, result in zip(documents, parse.map(documents, return_exceptions=True), strict=True):
        print(f"{document!r}: {type(result).__name__} {result}")
    print(average.remote([1.0, 2.0, 6.0]))
    print(average.remote([]))
