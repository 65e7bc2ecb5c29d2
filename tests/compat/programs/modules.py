"""Imports in the forms that programs have them."""

# runs: farcall run modules.py
# only in containers: is_local()

import modal.exception
import modal.gpu
import modal.image
import modal.volume
from modal import App, Image, Secret, enter, is_local, method
from modal.app import App as AppToo
from modal.functions import Function, FunctionCall
from modal.retries import Retries

app = App("modules", image=Image.host())


@app.function(secrets=[Secret.from_dict({"A": "1"})], retries=Retries(max_retries=1))
def f(x):
    import modal as again
    from modal.exception import InvalidError

    assert again.App is AppToo
    return issubclass(InvalidError, again.Error), again.__name__, x


@app.cls()
class C:
    @enter()
    def start(self):
        self.x = 1

    @method()
    def get(self):
        return self.x, is_local()


@app.local_entrypoint()
def main():
    print(isinstance(f, Function), isinstance(f.spawn(1), FunctionCall), modal.image.Image is Image)
    print(f.remote(2)[0], C().get.remote())


# prints:
# True True True
# True (1, False)
