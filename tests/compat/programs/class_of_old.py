"""A class with a constructor, inheritance, and options given at the call."""

# runs: farcall run class_of_old.py

import modal

app = modal.App("classes")


class Base:
    @modal.enter()
    def connect(self):
        self.connected = True

    @modal.method()
    def ping(self):
        return type(self).__name__, self.connected


@app.cls()
class Client(Base):
    def __init__(self, host: str, port: int = 80):
        self.host, self.port = host, port

    @modal.method()
    def address(self):
        return f"{self.host}:{self.port}", self.helper()

    def helper(self):
        return self.ping.local()


@app.local_entrypoint()
def main():
    client = Client("example.com", port=8080)
    print(client.ping.remote(), client.address.remote())
    print(Client("a").address.local())


# prints:
# ('Client', True) ('example.com:8080', ('Client', True))
# ('a:80', ('Client', True))
