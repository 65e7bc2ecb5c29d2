"""The page shared by worker and runner."""

import os

from farcall.wire.page import SharedPage


def test_both_sides_see_what_the_other_writes() -> None:
    fd = SharedPage.create()
    worker, runner = SharedPage(fd), SharedPage(fd)
    assert worker.started == 0
    assert runner.cancelled(7) == 0
    runner.start(7, 12.5)
    assert (worker.started, worker.started_at) == (7, 12.5)
    worker.cancel(7, SharedPage.TIMED_OUT)
    assert runner.cancelled(7) == SharedPage.TIMED_OUT
    worker.close()
    runner.close()
    os.close(fd)


def test_inputs_are_taken_back_only_behind_the_one_that_runs() -> None:
    fd = SharedPage.create()
    worker, runner = SharedPage(fd), SharedPage(fd)
    runner.start(4, 0.0)
    assert not runner.cancelled(4)
    assert worker.revoke(5, 9) == 4
    assert [seq for seq in range(1, 12) if runner.cancelled(seq) == SharedPage.REVOKED] == [5, 6, 7, 8, 9]
    worker.close()
    runner.close()
    os.close(fd)
