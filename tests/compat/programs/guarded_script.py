"""A plain script with a guarded block, shown its output."""

# runs: farcall python guarded_script.py 3

import sys

import modal

app = modal.App("script")


class Job:
    def __init__(self, number):
        self.number = number


@app.function()
def work(job):
    assert isinstance(job, Job)
    print("working on", job.number)
    return Job(job.number + 1)


if __name__ == "__main__":
    with modal.enable_output(), app.run():
        done = work.remote(Job(int(sys.argv[1])))
    print(done.number, isinstance(done, Job))


# prints:
# working on 3
# 4 True
