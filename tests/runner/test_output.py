"""What user code prints: attributed, in order, bounded; and how soon results are there."""

import time

import pytest

from farcall.runner import output
from farcall.runner.output import Limit

from .conftest import MAY_GO, Worker


def test_prints_carry_the_input_that_made_them(worker: Worker) -> None:
    worker.load("""
        import sys
        print("import")
        def f(x):
            print("a", x)
            print("b", x, file=sys.stderr)
            sys.stdout.write("no end of line")
            return x
    """)
    seqs = worker.run((1,), (2,))
    assert [worker.outcome(seq) for seq in seqs] == [1, 2]
    assert worker.text("stdout", 0) == "import\n"
    assert worker.text("stdout", seqs[0]) == "a 1\nno end of line"
    assert worker.text("stdout", seqs[1]) == "a 2\nno end of line"
    assert worker.text("stderr", seqs[1]) == "b 2\n"
    assert not worker.raw[1]


def test_text_is_there_before_the_result(worker: Worker) -> None:
    worker.load("def f(x):\n    for i in range(x): print(i)\n    print('end', end='')\n")
    for count in (1, 100, 5000):
        worker.prints.clear()
        (seq,) = worker.run((count,))
        worker.until(lambda seq=seq: seq in worker.results)
        assert worker.text() == "".join(f"{i}\n" for i in range(count)) + "end"


def test_lines_are_seen_while_the_input_runs(worker: Worker) -> None:
    worker.load("""
        import sys, time
        def f():
            for i in range(100):
                print("line", i)
            print("progress", end="\\r", flush=True)
            time.sleep(60)
    """)
    worker.run(())
    worker.until(lambda: worker.text().endswith("progress\r"))


def test_many_lines_travel_in_few_frames(worker: Worker) -> None:
    worker.load("def f(x):\n    for i in range(x): print(i)\n")
    worker.call(20_000)
    assert worker.text() == "".join(f"{i}\n" for i in range(20_000))
    assert len(worker.prints) < 2_000


def test_a_stream_is_what_libraries_expect(worker: Worker) -> None:
    worker.load("""
        import io, logging, sys, warnings
        logging.basicConfig(level=logging.INFO)
        def f():
            out = sys.stdout
            logging.info("logged")
            warnings.warn("warned")
            out.writelines(["w1\\n", "w2\\n"])
            print("surrogate \\udc80 and ümlaut")
            out.reconfigure(line_buffering=True)
            out.buffer.write(b"bytes\\n")
            out.buffer.flush()
            try:
                out.write(b"x")
            except TypeError as error:
                wrong = str(error)
            return (
                out.fileno(), sys.stderr.fileno(), out.isatty(), out.writable(), out.readable(), out.encoding,
                out.closed, isinstance(out, io.TextIOBase), out is sys.__stdout__, wrong, repr(out.name),
            )
    """)
    assert worker.call() == (
        1, 2, False, True, False, "utf-8", False,
        True, True, "write() argument must be str, not bytes", "'<stdout>'",
    )  # fmt: skip
    assert worker.text() == "w1\nw2\nsurrogate \\udc80 and ümlaut\n"
    assert "INFO:root:logged" in worker.text("stderr")
    assert "UserWarning: warned" in worker.text("stderr")
    worker.stop()
    assert bytes(worker.raw[1]) == b"bytes\n"


def test_prints_of_threads_and_of_signal_handlers(worker: Worker) -> None:
    worker.load("""
        import signal, sys, threading
        def f():
            def ring(number, frame):
                sys.stdout.write("ring\\n")
            signal.signal(signal.SIGALRM, ring)
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
            def many():
                for _ in range(2000): sys.stdout.write("t\\n")
            threads = [threading.Thread(target=many) for _ in range(3)]
            for thread in threads: thread.start()
            for _ in range(2000): sys.stdout.write("m\\n")
            for thread in threads: thread.join()
            signal.setitimer(signal.ITIMER_REAL, 0)
            return True
    """)
    assert worker.call() is True
    lines = worker.text().splitlines()
    assert lines.count("t") == 6000
    assert lines.count("m") == 2000
    assert set(lines) == {"t", "m", "ring"}


def test_long_lines_are_split(worker: Worker) -> None:
    worker.load("def f():\n    print('ä' * 1_000_000)\n")
    worker.call()
    assert worker.text() == "ä" * 1_000_000 + "\n"
    assert max(len(p.text.encode()) for p in worker.prints) <= 64 * 1024


def test_endless_output_is_held_then_dropped_and_counted(worker: Worker) -> None:
    worker.load(f"""
        import time
        def f():
            started, printed, seconds = time.monotonic(), 0, 0
            while printed < {output.BURST} + {output.RATE} * (seconds + 1) and seconds < 60:
                print("x" * 9999)
                printed += 10000
                seconds = time.monotonic() - started
            return seconds
    """)
    seconds = worker.call()
    size = sum(len(p.text) for p in worker.prints)
    assert output.BURST <= size <= output.BURST + (seconds + 2) * output.RATE
    assert "characters of output dropped: more than 8 MiB/s]" in worker.text()


def test_the_limit() -> None:
    now, slept = [0.0], [0.0]

    def sleep(seconds: float) -> None:
        slept[0] += seconds
        now[0] += seconds

    limit = Limit(clock=lambda: now[0], sleep=sleep)
    piece = 1024 * 1024
    admitted = sum(limit.admit(piece) for _ in range(100))
    assert admitted == (output.BURST + output.RATE) // piece
    assert slept == [output.HOLD_SECONDS]
    assert limit.dropped == (100 - admitted) * piece
    now[0] += 0.5
    assert not limit.admit(piece)
    now[0] += 0.6
    assert limit.admit(piece)


@pytest.mark.parametrize("busy", ["time.sleep(0.005)", "sum(range(500_000))"], ids=["waits", "computes"])
def test_a_result_does_not_wait_for_the_next_input(worker: Worker, busy: str) -> None:
    worker.load(f"import os, time\ndef f(x):\n    while x and not {MAY_GO}: {busy}\n    return x\n")
    worker.call(0)
    delays: list[float] = []
    for _ in range(5):
        seqs = worker.run(*[(0,)] * 50, (1,))
        started = time.monotonic()
        worker.until(lambda seqs=seqs: seqs[-2] in worker.results)
        delays.append(time.monotonic() - started)
        assert seqs[-1] not in worker.results
        worker.go()
        assert worker.outcome(seqs[-1]) == 1
        (worker.folder / "go").unlink()
    assert min(delays) < 0.2


def test_results_of_short_inputs_travel_together(worker: Worker) -> None:
    worker.load("def f(x):\n    return x\n")
    seqs = worker.run(*[(n,) for n in range(2000)])
    assert [worker.outcome(seq) for seq in seqs] == list(range(2000))
    arrivals = {arrived for _, _, arrived in worker.results.values()}
    assert len(arrivals) < 500


@pytest.mark.parametrize("after", ["", "print('before the fork')"])
def test_there_is_one_thread_when_nothing_is_held_back(worker: Worker, after: str) -> None:
    worker.load(f"import os\ndef f(x):\n    {after}\n    return len(os.listdir('/proc/self/task'))\n")
    assert worker.call(1) == 1
    for seq in worker.run(*[(n,) for n in range(500)]):
        worker.outcome(seq)
    deadline = time.monotonic() + 10
    while worker.call(1) != 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_an_input_costs_the_runner(worker: Worker) -> None:
    """Processor time, of an input that does nothing; the promise is 8 us, the bound leaves room for slow machines."""
    from pathlib import Path

    def used() -> int:
        return sum(map(int, Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))

    worker.load("def f(x):\n    return x\n")
    for _ in range(3):
        worker.call(1)
    before = used()
    for _ in range(60):
        seqs = worker.run(*[(n,) for n in range(250)])
        worker.until(lambda seqs=seqs: seqs[-1] in worker.results)
    assert (used() - before) / 100 / (60 * 250) < 40e-6
