"""Volumes, dicts, queues and schedules at module level; the function that needs none of them runs."""

# runs: farcall run storage.py

import modal

app = modal.App("storage")

volume = modal.Volume.from_name("models", create_if_missing=True)
cache = modal.Dict.from_name("cache", create_if_missing=True)
jobs = modal.Queue.from_name("jobs", create_if_missing=True)
bucket = modal.CloudBucketMount("bucket", secret=modal.Secret.from_name("aws"))


@app.function(volumes={"/models": volume, "/bucket": bucket}, gpu="A100:2", timeout=3600)
def train(epochs: int):
    volume.commit()


@app.function(schedule=modal.Cron("0 6 * * *"))
def daily():
    return "daily"


@app.function(schedule=modal.Period(hours=4))
def often():
    return "often"


@app.function(region="us-east", cloud="aws", ephemeral_disk=1024)
def plain(x):
    return x + 1


@app.local_entrypoint()
def main():
    print(plain.remote(1), daily.remote(), often.remote())
    try:
        train.remote(1)
    except modal.Error as error:
        print("train:", "volumes= with a CloudBucketMount" in str(error))
    try:
        cache["key"] = 1
    except modal.Error as error:
        print("cache:", error.__class__.__name__)


# prints:
# 2 daily often
# train: True
# cache: UnimplementedError
