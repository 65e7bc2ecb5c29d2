"""A function that an image is built with: loaded as in any container, called once, with nobody to answer to.

The image's interpreter runs it as a script, like `bootstrap`, with two files: an encoded FunctionSpec, and the pickled
arguments. What the function prints and raises goes to the output.
"""

import os
import sys


def main(function: str, arguments: str) -> int:
    """Calls it; the process's exit status."""
    import asyncio
    import inspect
    import io

    import msgspec

    from farcall.runner.loading import load
    from farcall.runner.main import hide
    from farcall.sdk.values import loads
    from farcall.spec.function import FunctionSpec
    from farcall.wire.messages import Load

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # shown as it is printed
            stream.reconfigure(line_buffering=True)
    hide(os.environ.get("FARCALL_RUNNER_PATH", ""))
    with open(function, "rb") as file:
        spec = msgspec.msgpack.decode(file.read(), type=FunctionSpec)
    with open(arguments, "rb") as file:
        pickled = file.read()
    try:
        target = load(Load("", spec), ()).targets[spec.methods[0].name]
        args, kwargs = loads(pickled)
        result = target.call(*args, **kwargs)
        if inspect.iscoroutine(result):
            asyncio.run(result)
        elif inspect.isgenerator(result):
            for _ in result:
                pass
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        _report(error)
        return 1
    return 0


def _report(error: BaseException) -> None:
    """Prints the traceback, from the first frame that is not farcall's own."""
    import traceback

    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
    entry = error.__traceback__
    while entry is not None and entry.tb_frame.f_code.co_filename.startswith((own, "<frozen importlib")):
        entry = entry.tb_next
    traceback.print_exception(error.with_traceback(entry))


def _start() -> None:
    folder = os.path.dirname(os.path.abspath(__file__))
    if sys.path and os.path.abspath(sys.path[0]) == folder:
        del sys.path[0]
    sys.path.insert(0, os.path.dirname(os.path.dirname(folder)))
    from farcall.runner import call_once

    status = call_once.main(sys.argv[1], sys.argv[2])
    sys.stdout.flush()
    sys.exit(status)


if __name__ == "__main__":
    _start()
