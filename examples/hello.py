"""The smallest farcall program: `farcall run examples/hello.py --name you`."""

import os

import farcall

app = farcall.App("hello")


@app.function()
def hello(name: str) -> str:
    print(f"greeting {name} from process {os.getpid()} on {os.uname().nodename}")
    return f"Hello, {name}!"


@app.local_entrypoint()
def main(name: str = "world"):
    print(hello.remote(name))
