"""A model that is loaded once for each container and parameter set."""

# runs: farcall run inference.py

import modal

app = modal.App("inference")
image = modal.Image.host()


@app.cls(image=image, cpu=0.5, scaledown_window=120, max_containers=2)
class Model:
    name: str = modal.parameter()
    factor: int = modal.parameter(default=2)

    @modal.enter()
    def load(self):
        self.weights = [self.factor] * 3
        self.calls = 0

    @modal.enter()
    async def warm_up(self):
        self.calls += 100

    @modal.method()
    def predict(self, x: int) -> int:
        self.calls += 1
        return sum(weight * x for weight in self.weights)

    @modal.method()
    def describe(self) -> str:
        return f"{self.name} with {self.factor}, predicting {self.predict.local(1)}"

    @modal.method()
    def tokens(self, n: int):
        for number in range(n):
            yield f"{self.name}-{number}"

    @modal.exit()
    def close(self):
        self.weights = None


@app.local_entrypoint()
def main():
    model = Model(name="small")
    print(model.predict.remote(5), list(model.predict.map([1, 2])))
    print(Model(name="large", factor=3).describe.remote())
    print(list(model.tokens.remote_gen(2)))
    print(model.predict.local(10))


# prints:
# 30 [6, 12]
# large with 3, predicting 9
# ['small-0', 'small-1']
# 60
