"""A script that runs its app at top level."""

# runs: farcall python unguarded_script.py
# warns: the module runs its app when it is imported

import modal

app = modal.App("unguarded")


@app.function()
def square(x):
    return x * x


with modal.enable_output():  # noqa: SIM117
    with app.run():
        print(square.remote(6))
        print(list(square.map(range(3))))

print("after the block")


# prints:
# 36
# [0, 1, 4]
# after the block
