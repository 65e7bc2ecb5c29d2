"""What can be added to the host's own system."""

# runs: farcall run images.py
# only in containers: environments

import os

import modal

image = modal.Image.host().env({"MODE": "batch"}).env({"LEVEL": "1"})
app = modal.App("images", image=image)

with image.imports():
    import pytest


@app.function()
def encode(x):
    return os.environ["MODE"], os.environ["LEVEL"], x, pytest.__name__


@app.function(image=modal.Image.host().env({"MODE": "other"}))
def other():
    return os.environ["MODE"], "LEVEL" in os.environ


@app.local_entrypoint()
def main():
    print(encode.remote({"a": 1}), other.remote())


# prints:
# ('batch', '1', {'a': 1}, 'pytest') ('other', False)
