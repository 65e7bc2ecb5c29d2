"""Secrets and environment variables: the app's, the function's, later ones win."""

# runs: farcall run settings.py
# only in containers: environments

import os

import modal

app = modal.App("settings", secrets=[modal.Secret.from_dict({"USER_KEY": "app", "REGION": "eu"})])


@app.function(secrets=[modal.Secret.from_dict({"USER_KEY": "function"})], env={"LEVEL": "debug"})
def show(*names: str) -> list:
    return [os.environ.get(name) for name in names]


@app.function(secrets=[modal.Secret.from_dict({"TOKEN": "t"}), modal.Secret.from_dict({"TOKEN": "u", "NONE": None})])
def later_wins():
    return os.environ["TOKEN"], "NONE" in os.environ


@app.local_entrypoint()
def main():
    print(show.remote("USER_KEY", "REGION", "LEVEL", "MISSING"))
    print(later_wins.remote(), "TOKEN" in os.environ)


# prints:
# ['function', 'eu', 'debug', None]
# ('u', False) False
