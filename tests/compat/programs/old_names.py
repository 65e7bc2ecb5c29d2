"""A program of years ago: Stub and the options' old names."""

# runs: farcall run old_names.py
# deprecated: Stub concurrency_limit= keep_warm= container_idle_timeout= allow_concurrent_inputs= web_endpoint

import modal

stub = modal.Stub("old-names")


@stub.function(concurrency_limit=2, keep_warm=1, container_idle_timeout=60)
def double(x):
    return 2 * x


@stub.function(concurrency_limit=1, container_idle_timeout=30)
def triple(x):
    return 3 * x


@stub.cls(concurrency_limit=3, allow_concurrent_inputs=10)
class Service:
    @modal.method()
    def call(self):
        return 1


@stub.function()
@modal.web_endpoint(method="POST")
def hook(body: dict):
    return body


@stub.local_entrypoint()
def main():
    print(list(double.map(range(3))), triple.remote(1))


# prints:
# [0, 2, 4] 3
