import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from farcall.cli.output import Renderer, duration, printable
from farcall.cli.terminal import SharedStream, Style
from farcall.sdk.events import AppStats, CallWaiting, LogLine, MapProgress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Shown:
    """A renderer on one screen (stdout and stderr together), or on two files."""

    def __init__(self, screen: Any, *, terminal: bool, quiet: bool = False, width: int = 80) -> None:
        self.clock = Clock()
        self.err = screen(terminal=terminal)
        self.out = screen(terminal=terminal, screen=self.err if terminal else None)
        self.render = Renderer(
            self.out,
            self.err,
            quiet=quiet,
            clock=self.clock,
            width=lambda: width,
            style=Style(False),
        )

    def log(self, text: str, stream: str = "stdout", function: str = "f", container: str = "ta-1") -> None:
        self.render(LogLine(0.0, function, "fc-1", 0, container, stream, text))  # pyright: ignore[reportArgumentType]

    def progress(self, done: int, total: int | None = 100, *, failed: int = 0, finished: bool = False) -> None:
        self.render(MapProgress("fc-1", "square", done, failed, total, finished))

    def stats(self, live: int = 2, started: int = 3, done: int = 4, failed: int = 0) -> None:
        self.render(AppStats("ap-1", live, started, done, failed, 0.25, 8.0))


Show = Callable[..., Shown]


@pytest.fixture
def show(fake_terminal: Any) -> Show:
    return partial(Shown, fake_terminal)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain", "plain"),
        ("tab\tand ünïcode ✓", "tab\tand ünïcode ✓"),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
        ("\x1b[1;31mred for ever", "\x1b[1;31mred for ever\x1b[0m"),
        ("clear\x1b[2J\x1b[H screen", "clear screen"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPdevice\x1b\\text", "text"),
        ("bell\x07 back\x08space nul\x00", "bell backspace nul"),
        ("\x1b(Bcharset\x1b7save", "charsetsave"),
        ("\x9b2Jc1", "2Jc1"),
        ("10%\r20%\r30%", "30%"),
        ("windows\r", "windows"),
        ("\x1b[?25lhidden cursor", "hidden cursor"),
        ("\x1b", ""),
        ("\x1b[", ""),
    ],
)
def test_only_colour_is_left_of_control_sequences(raw: str, shown: str) -> None:
    assert printable(raw) == shown


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.04, 9.94, 9.96, 59.4, 59.6, 3599, 7500)] == [
        "0.0 s",
        "9.9 s",
        "10 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "2 h 5 min",
    ]


def test_logs_go_to_their_streams_as_they_are_without_a_terminal(show: Show) -> None:
    shown = show(terminal=False)
    shown.log("out\n")
    shown.log("err\n", "stderr")
    shown.log("container started\n", "system")
    assert shown.out.written == "out\n"
    assert shown.err.written == "err\nf: container started\n"


def test_on_a_terminal_each_line_names_its_function(show: Show) -> None:
    shown = show(terminal=True)
    shown.log("one\ntwo\n", function="f")
    shown.log("three\n", function="g")
    assert shown.err.seen() == ["f | one", "f | two", "g | three"]


def test_parts_of_lines_are_put_together_by_container(show: Show) -> None:
    shown = show(terminal=False)
    shown.log("hel", container="ta-1")
    shown.log("wor", container="ta-2")
    shown.log("lo\n", container="ta-1")
    assert shown.out.written == "hello\n"
    shown.render.finish()
    assert shown.out.written == "hello\nwor\n"


def test_a_line_without_end_is_shown_as_it_comes(show: Show) -> None:
    shown = show(terminal=False)
    for _ in range(200):
        shown.log("x" * 1024)
    assert shown.out.written == "x" * 200 * 1024
    shown.render.finish()
    assert shown.out.written == "x" * 200 * 1024 + "\n"


def test_an_unended_line_is_ended_for_what_others_write(show: Show) -> None:
    shown = show(terminal=False)
    shown.log("\r1/2", "stderr")
    shown.log("\r2/2", "stderr")
    shown.render.say("ours")
    shown.log("\n", "stderr")
    shown.log(".")
    shown.log(".\nnext\n")
    assert shown.err.written == "\r1/2\r2/2\nours\n"
    assert shown.out.written == "..\nnext\n"


def test_unended_lines_of_several_containers_wait_for_their_end(show: Show) -> None:
    shown = show(terminal=False)
    shown.stats(live=2)
    shown.log("one")
    assert not shown.out.written
    shown.log(" line\n")
    assert shown.out.written == "one line\n"


def test_on_a_terminal_an_unended_line_is_drawn_in_place(show: Show) -> None:
    shown = show(terminal=True)
    for done in range(3):
        shown.log(f"\r{done}/2 done", "stderr")
        assert shown.err.seen() == [f"f | {done}/2 done"]
    shown.log("\n", "stderr")
    assert shown.err.seen() == ["f | 2/2 done"]


def test_a_maps_progress_is_drawn_in_place_below_the_logs(show: Show) -> None:
    shown = show(terminal=True)
    shown.progress(0)
    shown.stats(live=2)
    shown.clock.now += 2
    shown.progress(20, failed=1)
    assert shown.err.seen() == ["square: 20/100 done, 1 failed, 2 containers, 10/s, 8.0 s left"]
    shown.log("from inside\n")
    shown.clock.now += 2
    shown.progress(80, failed=1)
    assert shown.err.seen() == ["f | from inside", "square: 80/100 done, 1 failed, 2 containers, 20/s, 1.0 s left"]
    shown.progress(100, failed=1, finished=True)
    assert shown.err.seen() == ["f | from inside", "square: 100/100 done, 1 failed in 4.0 s"]


def test_a_short_map_leaves_no_line_on_a_terminal(show: Show) -> None:
    shown = show(terminal=True)
    shown.progress(10)
    shown.clock.now += 0.2
    shown.progress(100, finished=True)
    assert shown.err.seen() == []


def test_the_programs_own_prints_and_the_progress_do_not_mix(show: Show) -> None:
    shown = show(terminal=True)
    stream = SharedStream(shown.out, shown.render.program_wrote)
    shown.progress(10)
    print("line", file=stream)
    print("half ", end="", file=stream)
    assert shown.err.seen() == ["line", "half"]
    shown.progress(20)
    print("done", file=stream)
    assert shown.err.seen() == ["line", "half done", "square: 20/100 done"]
    print("half", end="", file=stream)
    shown.log("log\n")
    assert shown.err.seen()[:4] == ["line", "half done", "half", "f | log"]


def test_long_status_lines_are_cut_and_many_are_counted(show: Show) -> None:
    shown = show(terminal=True, width=30)
    for number in range(8):
        shown.render(CallWaiting(f"fc-{number}", f"function_{number}", "starting a container, behind many others"))
    seen = shown.err.seen()
    assert len(seen) == 5
    assert all(len(line) < 30 for line in seen)
    assert seen[-1] == "and 4 more"


def test_without_a_terminal_a_line_for_each_tenth(show: Show) -> None:
    shown = show(terminal=False)
    for done in range(1000):
        shown.progress(done, 1000)
        shown.clock.now += 0.01
    shown.progress(1000, 1000, finished=True)
    lines = shown.err.written.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("square: 100/1,000 done, ")
    assert lines[-1] == "square: 1,000/1,000 done in 10 s"


def test_without_a_terminal_a_line_for_each_half_minute(show: Show) -> None:
    shown = show(terminal=False)
    shown.progress(0, None)
    for done in range(90):
        shown.clock.now += 1
        shown.progress(done, None)
    assert [line.split(",")[0] for line in shown.err.written.splitlines()] == [
        "square: 29 done",
        "square: 59 done",
        "square: 89 done",
    ]


def test_a_waiting_call_says_for_what_and_then_no_more(show: Show) -> None:
    shown = show(terminal=True)
    shown.render(CallWaiting("fc-1", "f", "starting a container"))
    assert shown.err.seen() == ["f: starting a container"]
    shown.render(CallWaiting("fc-1", "f", "importing"))
    assert shown.err.seen() == ["f: importing"]
    shown.render(CallWaiting("fc-1", "f", None))
    assert shown.err.seen() == []


def test_without_a_terminal_each_reason_is_said_once(show: Show) -> None:
    shown = show(terminal=False)
    for call in range(3):
        shown.render(CallWaiting(f"fc-{call}", "f", f"starting a container ({call + 1} s)"))
    shown.render(CallWaiting("fc-1", "f", None))
    assert shown.err.written == "f: starting a container (1 s)\n"


def test_our_frames_in_a_stack_dump_are_hidden(show: Show) -> None:
    shown = show(terminal=False)
    runner = "/home/u/.local/share/farcall/runner/0.1.0-1/cp311-x/farcall/runner/main.py"
    shown.log(f'  File "/project/x.py", line 3 in f\n  File "{runner}", line 9 in main\n', "stderr")
    assert shown.err.written == '  File "/project/x.py", line 3 in f\n'


def test_what_the_stream_cannot_encode_is_shown_all_the_same() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    Renderer(out, io.StringIO())(LogLine(0.0, "f", "", 0, "ta-1", "stdout", "caf\u00e9 \ud800\n"))
    assert raw.getvalue() == b"caf\\xe9 \\ud800\n"


def test_a_reader_that_has_gone_is_told_once() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    told: list[bool] = []
    render = Renderer(Gone(), io.StringIO(), on_lost=lambda: told.append(True))
    for _ in range(3):
        render(LogLine(0.0, "f", "", 0, "ta-1", "stdout", "line\n"))
    assert told == [True]


def test_quiet_shows_logs_only(show: Show) -> None:
    shown = show(terminal=True, quiet=True)
    shown.progress(50)
    shown.render(CallWaiting("fc-1", "f", "starting"))
    shown.log("system\n", "system")
    shown.log("log\n")
    shown.render.say("python: x")
    assert shown.err.seen() == ["f | log"]


def test_the_end_line(show: Show) -> None:
    shown = show(terminal=False)
    shown.clock.now += 3.4
    assert shown.render.end_line() == "done in 3.4 s"
    shown.stats(started=3, done=1200, failed=2)
    assert shown.render.end_line() == (
        "done in 3.4 s: 1,200 calls (2 failed), 3 containers; 0.2 s starting, 8.0 s running"
    )
    assert shown.render.end_line("stopped").startswith("stopped in 3.4 s")


def test_style(monkeypatch: pytest.MonkeyPatch, fake_terminal: Any) -> None:
    screen = fake_terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Style.of(screen).red("x") == "\x1b[31mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert Style.of(screen).red("x") == "x"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert Style.of(screen).red("x") == "x"
    assert Style.of(fake_terminal(terminal=False)).red("x") == "x"
