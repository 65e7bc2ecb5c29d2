"""Functions that call functions, from inside containers; two apps in one."""

# runs: farcall run pipeline.py::start --pages 3

import modal

app = modal.App("pipeline")
other = modal.App("helpers")


@other.function()
def clean(text: str) -> str:
    return text.strip().lower()


@app.function(max_containers=2)
def fetch(page: int) -> str:
    return clean.remote(f"  Page {page} ")


@app.function()
def crawl(pages: int, by: modal.Function) -> list:
    return list(by.map(range(pages)))


app.include(other)


@app.local_entrypoint()
def start(pages: int = 2):
    print(crawl.remote(pages, fetch))


@app.local_entrypoint(name="single")
def one():
    print(fetch.remote(0))


# prints:
# ['page 0', 'page 1', 'page 2']
