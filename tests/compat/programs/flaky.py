"""Retries with a policy and with a number."""

# runs: farcall run flaky.py
# only in containers: retries

import modal

app = modal.App()
attempts = 0


@app.function(retries=modal.Retries(max_retries=3, backoff_coefficient=1.0, initial_delay=0.1), max_containers=1)
def third_time_lucky():
    global attempts
    attempts += 1
    if attempts < 3:
        raise ConnectionError(f"attempt {attempts}")
    return attempts


@app.function(retries=0)
def never():
    raise RuntimeError("no luck")


@app.local_entrypoint()
def main():
    print(third_time_lucky.remote())
    try:
        never.remote()
    except RuntimeError as error:
        print("failed:", error)
    print([type(result).__name__ for result in never.starmap([(), ()], return_exceptions=True)])


# prints:
# 3
# failed: no luck
# ['RuntimeError', 'RuntimeError']
