"""Chains of image methods that come to what the interpreter has already."""

# runs: farcall run images.py
# only in containers: environments

import os

import modal

image = (
    modal.Image.debian_slim()
    .pip_install("pytest>=7")
    .uv_pip_install(["pytest"])
    .env({"MODE": "batch"})
    .env({"LEVEL": "1"})
)
app = modal.App("images", image=image)

with image.imports():
    import pytest


@app.function()
def encode(x):
    return os.environ["MODE"], os.environ["LEVEL"], x, pytest.__name__


@app.function(image=modal.Image.debian_slim().env({"MODE": "other"}))
def other():
    return os.environ["MODE"], "LEVEL" in os.environ


@app.local_entrypoint()
def main():
    print(encode.remote({"a": 1}), other.remote())


# prints:
# ('batch', '1', {'a': 1}, 'pytest') ('other', False)
