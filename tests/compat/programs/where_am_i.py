"""Code that is different at home and in a container."""

# runs: farcall run where_am_i.py --greeting hi
# only in containers: is_local()

import modal

app = modal.App("where")

if modal.is_local():  # noqa: SIM108
    SIDE = "local"
else:
    SIDE = "remote"


@app.function()
def side():
    assert modal.current_input_id().startswith("in-")
    assert modal.current_function_call_id().startswith("fc-")
    return SIDE, modal.is_local(), __name__


@app.local_entrypoint()
def main(greeting: str):
    print(greeting, SIDE, modal.is_local(), modal.current_input_id())
    print(side.remote())


# prints:
# hi local True None
# ('remote', False, 'where_am_i')
