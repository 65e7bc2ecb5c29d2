"""Web functions are declared beside plain ones, which work."""

# runs: farcall run web.py

import modal

app = modal.App("web")
image = modal.Image.host()


@app.function(image=image)
@modal.fastapi_endpoint(method="POST", docs=True)
def square(item: dict):
    return {"square": work.local(item["x"])}


@app.function(image=image)
@modal.asgi_app()
def api():
    from fastapi import FastAPI

    return FastAPI()


@app.function()
@modal.wsgi_app(label="flask")
def flask_app():
    from flask import Flask

    return Flask("app")


@app.function()
@modal.web_server(8000, startup_timeout=10)
def server():
    import subprocess

    subprocess.Popen(["python", "-m", "http.server", "8000"])


@app.cls()
class Site:
    @modal.fastapi_endpoint()
    def index(self):
        return "index"


@app.function()
def work(x: int) -> int:
    return x * x


@app.local_entrypoint()
def main():
    print(work.remote(4), square.local({"x": 3}), sorted(app.registered_web_endpoints))


# prints:
# 16 {'square': 9} ['api', 'flask_app', 'server', 'square']
