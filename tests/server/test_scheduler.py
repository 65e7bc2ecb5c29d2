"""Which container starts where, which has to go for it, and what those are told who wait."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from farcall.errors import ResourceExhaustedError
from farcall.server.demand import Demand, Placement
from farcall.server.resources import Capacity, Gpus, Request
from farcall.server.room import level_of
from farcall.server.scheduler import CLAIM_SECONDS, PATIENCE_SECONDS, STARVED_SECONDS, Scheduler
from farcall.spec.gpu import GpuRequest
from farcall.spec.scaling import Scaling

from .machines import START_SECONDS, TICK, Simulation

GIB = 1024
SMALL = Request(125, 128)
HERE = Capacity(cpu=2000, memory=8 * GIB, disk=100 * GIB, cpu_overcommit=8.0, making=100, loading=100)


def machine(*gpus: Gpus, cpu: int = 16, memory: int = 64, **more: int) -> Capacity:
    """A worker of a cluster: cores, GiB."""
    return Capacity(cpu * 1000, memory * GIB, 1000 * GIB, gpus, **{"making": 100, "loading": 100, **more})  # type: ignore[arg-type]


def cluster(**workers: Capacity) -> Scheduler:
    made = Scheduler()
    for name, capacity in workers.items():
        made.add_worker(name, capacity)
    return made


def place(
    scheduler: Scheduler, request: Request, count: int = 1, *, app: str = "app", now: float = 0.0, busy: bool = False
) -> list[Placement]:
    """Containers of a new pool, those for which there is room, imported."""
    demand = scheduler.demand(app, app, f"f of {app}", request)
    scheduler.want(demand, count, count, 0, now)
    placed = [placement for placement in scheduler.schedule(now).place if placement.demand is demand]
    scheduler.want(demand, 0, 0, 0, now)
    for placement in placed:
        scheduler.ready(placement)
        if busy:
            scheduler.busy(placement)
    return placed


def waiting(scheduler: Scheduler, request: Request, app: str = "new", count: int = 1, now: float = 0.0) -> Demand:
    """A pool whose inputs wait for so many containers."""
    demand = scheduler.demand(app, app, f"f of {app}", request)
    scheduler.want(demand, count, count, 0, now)
    return demand


def template(scheduler: Scheduler, memory: int, worker: str = "here") -> Placement | None:
    """What containers are forked from."""
    return scheduler.keep(scheduler.demand("", "farcall", "template", Request(0, memory)), worker, 0.0)


def test_templates_hold_memory_and_are_the_first_to_go() -> None:
    scheduler = cluster(here=HERE)
    [idle] = place(scheduler, Request(125, 4 * GIB), app="idle")
    kept = template(scheduler, 100)
    assert kept is not None
    # There would be room for it without the template.
    waiting(scheduler, Request(125, 4 * GIB))
    decisions = scheduler.schedule(1.0)
    assert (decisions.place, decisions.evict) == ([], [kept])
    scheduler.release(kept)
    [placed] = scheduler.schedule(2.0).place
    assert placed.request.memory == 4 * GIB
    assert not idle.is_leaving


def test_a_template_stays_where_it_is_not_in_the_way() -> None:
    scheduler = cluster(here=HERE)
    place(scheduler, Request(125, 6 * GIB), app="idle")
    kept = template(scheduler, 100)
    assert kept is not None
    waiting(scheduler, Request(2000, 4 * GIB))
    decisions = scheduler.schedule(1.0)
    assert [placement.demand.app.app_id for placement in decisions.evict] == ["idle"]
    assert not kept.is_leaving


def test_a_template_for_which_there_is_no_room_is_not_kept() -> None:
    scheduler = cluster(here=HERE)
    place(scheduler, Request(125, 8 * GIB), busy=True)
    assert template(scheduler, 1) is None


# --- where


def test_the_tightest_fit_is_the_best() -> None:
    scheduler = cluster(large=machine(memory=256), small=machine(memory=8), middle=machine(memory=32))
    where = [place(scheduler, Request(1000, 6 * GIB))[0].worker_id for _ in range(4)]
    assert where == ["small", "middle", "middle", "middle"]
    assert place(scheduler, Request(1000, 100 * GIB))[0].worker_id == "large"


def test_a_worker_that_has_the_image_is_better_than_a_tighter_one() -> None:
    scheduler = cluster(large=machine(memory=256), small=machine(memory=8))
    scheduler.set_images("large", ["im-1"])
    assert place(scheduler, Request(1000, GIB, image_id="im-1"))[0].worker_id == "large"
    assert place(scheduler, Request(1000, GIB, image_id="im-2"))[0].worker_id == "small"
    scheduler.set_images("large", [])
    assert place(scheduler, Request(1000, GIB, image_id="im-1"))[0].worker_id == "small"


def test_gpus_are_left_to_who_needs_them() -> None:
    scheduler = cluster(gpu=machine(Gpus("T4", (0, 1)), memory=8), large=machine(memory=256))
    assert place(scheduler, Request(1000, GIB))[0].worker_id == "large"
    # But they are no reason to wait.
    assert place(scheduler, Request(12_000, GIB))[0].worker_id == "large"
    assert place(scheduler, Request(12_000, GIB))[0].worker_id == "gpu"


def test_gpus_are_for_one_container_alone() -> None:
    scheduler = cluster(a=machine(Gpus("H100", (0, 1, 2, 3))))
    two = Request(1000, GIB, gpus=(GpuRequest("H100", 2),))
    first, second = place(scheduler, two, 3)
    assert {*first.gpus, *second.gpus} == {0, 1, 2, 3}
    scheduler.release(first)
    (third,) = place(scheduler, two)
    assert third.gpus == first.gpus


def test_the_fewest_gpus_that_suffice() -> None:
    scheduler = cluster(eight=machine(Gpus("T4", tuple(range(8)))), one=machine(Gpus("T4", (0,)), memory=512))
    assert place(scheduler, Request(1000, GIB, gpus=(GpuRequest("T4"),)))[0].worker_id == "one"


def test_gpus_in_order_of_preference() -> None:
    scheduler = cluster(
        a=machine(Gpus("T4", (0, 1, 2), 16)),
        b=machine(Gpus("A100-80GB", (0,), 80)),
        c=machine(Gpus("A100-40GB", (0,), 40)),
    )
    wanted = Request(1000, GIB, gpus=(GpuRequest("H100"), GpuRequest("A100"), GpuRequest("T4", 2)))
    # Of "A100", which takes any variant, the smaller one first.
    types = [(one.gpu.type, one.gpu.count) for one in place(scheduler, wanted, 5)]
    assert types == [("A100-40GB", 1), ("A100-80GB", 1), ("T4", 2)]
    (any_,) = place(scheduler, Request(1000, GIB, gpus=(GpuRequest("any"),)), 2)
    assert any_.gpu.type == "T4"


def test_a_worker_makes_and_loads_so_many_containers_at_once() -> None:
    scheduler = cluster(a=machine(making=2, loading=3))
    demand = waiting(scheduler, SMALL, count=10)
    first = scheduler.schedule(0.0).place
    assert len(first) == 2
    assert scheduler.why(demand) == "waiting for other containers to start first"
    for placement in first:
        scheduler.made(placement)
    (third,) = scheduler.schedule(0.1).place
    scheduler.made(third)
    assert scheduler.schedule(0.2).place == []
    # A slow import holds up nobody else's first container.
    waiting(scheduler, SMALL, app="other", now=0.3)
    (other,) = scheduler.schedule(0.3).place
    assert other.demand.app.app_id == "other"
    scheduler.ready(first[0])
    scheduler.made(other)
    scheduler.ready(other)
    assert len(scheduler.schedule(0.4).place) == 1


@given(st.integers(0, 2**39), st.integers(0, 2**39))
def test_levels_are_in_order(a: int, b: int) -> None:
    assert (level_of(a) <= level_of(b)) or a > b
    assert (level_of(a) == 0) == (a == 0)


# --- between apps


def test_apps_take_turns() -> None:
    scheduler = cluster(a=machine(memory=10))
    one, two = waiting(scheduler, Request(1, GIB), "one", 50), waiting(scheduler, Request(1, GIB), "two", 50)
    assert len(scheduler.schedule(0.0).place) == 10
    assert (one.live, two.live) == (5, 5)


def test_who_has_less_comes_first() -> None:
    scheduler = cluster(a=machine(memory=10))
    place(scheduler, Request(1, GIB), 6, app="one")
    one, two = waiting(scheduler, Request(1, GIB), "one", 50), waiting(scheduler, Request(1, GIB), "two", 50)
    scheduler.schedule(0.0)
    assert (one.live, two.live) == (0, 4)


def test_the_share_that_counts_is_the_largest() -> None:
    """Two apps, one of which asks for memory and one for GPUs: neither is counted small for what it does not use."""
    scheduler = cluster(a=machine(Gpus("T4", tuple(range(4))), memory=40))
    gpu = waiting(scheduler, Request(1, GIB, gpus=(GpuRequest("T4"),)), "gpu", 50)
    memory = waiting(scheduler, Request(1, 5 * GIB), "memory", 50)
    scheduler.schedule(0.0)
    assert (gpu.live, memory.live) == (4, 7)


def test_the_pools_of_an_app_take_turns() -> None:
    scheduler = cluster(a=machine(memory=6))
    demands = [waiting(scheduler, Request(1, GIB), "app", 50) for _ in range(3)]
    scheduler.schedule(0.0)
    assert [demand.live for demand in demands] == [2, 2, 2]


# --- making room


def test_the_container_that_is_idle_longest_goes_first() -> None:
    scheduler = cluster(a=machine(memory=4))
    idle = place(scheduler, Request(1, GIB), 4, app="idle")
    for placement in (idle[2], idle[0], idle[3], idle[1]):
        scheduler.busy(placement)
        scheduler.idle(placement)
    demand = waiting(scheduler, Request(1, 2 * GIB))
    assert scheduler.schedule(0.0) == ([], [idle[2], idle[0]], [])
    assert scheduler.why(demand) == "waiting for idle containers to end, to have room"
    scheduler.release(idle[2])
    assert scheduler.schedule(0.1).place == []
    scheduler.release(idle[0])
    (placed,) = scheduler.schedule(0.2).place
    assert placed.demand is demand


def test_no_more_are_ended_than_needed() -> None:
    scheduler = cluster(a=machine(memory=10))
    (small,) = place(scheduler, Request(1, GIB), app="a")
    (large,) = place(scheduler, Request(1, 8 * GIB), app="b")
    waiting(scheduler, Request(1, 5 * GIB))
    # The small one has been idle longer; but with the large one gone nobody needs its room.
    assert scheduler.schedule(0.0).evict == [large]
    assert small.is_leaving is False


def test_for_many_inputs_room_is_made_at_once() -> None:
    scheduler = cluster(a=machine(memory=10))
    place(scheduler, Request(1, GIB), 10, app="idle")
    waiting(scheduler, Request(1, GIB), count=4)
    assert len(scheduler.schedule(0.0).evict) == 4
    assert scheduler.schedule(0.1) == ([], [], [])


def test_room_that_is_made_is_for_whom_it_is_made() -> None:
    scheduler = cluster(a=machine(memory=4))
    idle = place(scheduler, Request(1, GIB), 4, app="idle")
    large = waiting(scheduler, Request(1, 3 * GIB), "large")
    assert len(scheduler.schedule(0.0).evict) == 3
    scheduler.release(idle[0])
    small = waiting(scheduler, Request(1, GIB), "small", now=0.1)
    # It gets no part of what is being freed for the large one, and has room made for itself.
    assert scheduler.schedule(0.1) == ([], [idle[3]], [])
    for placement in idle[1:]:
        scheduler.release(placement)
    assert {placement.demand for placement in scheduler.schedule(0.2).place} == {large, small}


def test_neither_a_floor_nor_ones_own_containers_are_ended() -> None:
    scheduler = cluster(a=machine(memory=4))
    floor = place(scheduler, Request(1, GIB), 3, app="floor")
    own = place(scheduler, Request(1, GIB), app="own")
    scheduler.want(floor[0].demand, 0, 0, 2, 0.0)
    scheduler.want(own[0].demand, 2, 2, 0, 0.0)
    assert scheduler.schedule(0.0).evict == floor[:1]
    scheduler.release(floor[0])
    assert len(scheduler.schedule(0.1).place) == 1
    for second in range(30):
        assert scheduler.schedule(float(second)) == ([], [], [])


def test_for_a_floor_or_a_buffer_nobody_is_ended() -> None:
    """Otherwise two pools would end each other's buffers for ever."""
    scheduler = cluster(a=machine(memory=2))
    place(scheduler, Request(1, GIB), 2, app="idle")
    demand = scheduler.demand("new", "new", "f", Request(1, GIB))
    scheduler.want(demand, 2, 0, 2, 0.0)
    for second in range(30):
        assert scheduler.schedule(float(second)) == ([], [], [])


def test_what_leaves_anyhow_is_waited_for() -> None:
    scheduler = cluster(a=machine(memory=4))
    leaving, *idle = place(scheduler, Request(1, GIB), 4, app="idle")
    scheduler.leaving(leaving)
    waiting(scheduler, Request(1, GIB))
    assert scheduler.schedule(0.0).evict == []
    scheduler.release(leaving)
    assert len(scheduler.schedule(0.1).place) == 1
    assert not any(placement.is_leaving for placement in idle)


def test_who_has_waited_long_gets_room_from_who_has_more() -> None:
    scheduler = cluster(a=machine(memory=4))
    busy = place(scheduler, Request(1, GIB), 4, app="busy", busy=True)
    demand = waiting(scheduler, Request(1, GIB), count=3)
    for second in range(round(PATIENCE_SECONDS)):
        assert scheduler.schedule(float(second)) == ([], [], [])
    (retired,) = scheduler.schedule(PATIENCE_SECONDS).retire
    assert retired in busy
    assert scheduler.why(demand) == "waiting for 1 container of busy to finish, to have room"
    scheduler.release(retired)
    (placed,) = scheduler.schedule(PATIENCE_SECONDS + 1).place
    assert placed.demand is demand
    # A second one is fair; a third would leave the others less than it then had.
    (second_retired,) = scheduler.schedule(3 * PATIENCE_SECONDS).retire
    scheduler.release(second_retired)
    scheduler.schedule(3 * PATIENCE_SECONDS)
    assert [scheduler.schedule(n * PATIENCE_SECONDS).retire for n in range(4, 30)] == [[]] * 26
    assert "busy has 2048 MiB" in scheduler.why(demand)


def test_whom_nobody_needs_any_more_is_not_retired() -> None:
    scheduler = cluster(a=machine(memory=2))
    place(scheduler, Request(1, GIB), 2, app="busy", busy=True)
    demand = waiting(scheduler, Request(1, GIB))
    (retired,) = scheduler.schedule(PATIENCE_SECONDS).retire
    assert retired.is_retiring
    scheduler.want(demand, 0, 0, 0, PATIENCE_SECONDS + 1)
    assert not retired.is_retiring
    assert retired.demand.live == 2


def test_a_claim_that_is_not_met_does_not_hold_up_others_for_ever() -> None:
    """What is to come free may wait for what is claimed: the container of a function that calls another."""
    scheduler = cluster(a=machine(memory=4))
    outer = place(scheduler, Request(1, GIB), 3, app="outer", busy=True)
    large = waiting(scheduler, Request(1, 2 * GIB), "large")
    (retired,) = scheduler.schedule(PATIENCE_SECONDS).retire
    assert retired in outer
    inner = waiting(scheduler, Request(1, GIB), "outer", now=PATIENCE_SECONDS)
    assert scheduler.schedule(PATIENCE_SECONDS + 1) == ([], [], [])
    (placed,) = scheduler.schedule(PATIENCE_SECONDS + CLAIM_SECONDS).place
    assert placed.demand is inner
    assert not retired.is_retiring
    scheduler.release(placed)
    for placement in outer:
        scheduler.release(placement)
    assert [placement.demand for placement in scheduler.schedule(200.0).place] == [large]


# --- cpu as shares


def test_a_functions_first_container_finds_room_whatever_cpu_was_requested() -> None:
    """Callers may hold what there is while they wait for this function: without it nobody would go on."""
    scheduler = cluster(here=HERE)
    place(scheduler, Request(2000, 128), 8, app="outer", busy=True)
    inner = waiting(scheduler, Request(2000, 128), "outer", count=2)
    assert len(scheduler.schedule(0.0).place) == 1
    assert "needs 2 cores and shares of 0 are free" in scheduler.why(inner)
    # Memory is not overcommitted, for nobody.
    waiting(scheduler, Request(1, 8 * GIB - 8 * 128), "large")
    assert scheduler.schedule(0.0).place == []


def test_where_cpu_is_no_share_it_is_a_bound() -> None:
    scheduler = cluster(a=machine(cpu=2))
    place(scheduler, Request(2000, 128), app="outer", busy=True)
    waiting(scheduler, Request(1000, 128), "inner")
    assert scheduler.schedule(0.0).place == []


# --- what people are told

T4S = Gpus("T4", (0, 1, 2, 3), 16)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(4000, 128), r"^f asks for 4 cores and this machine has 2: lower cpu=$"),
        (
            Request(1, 9 * GIB),
            r"^f asks for 9216 MiB of memory and this machine has 8192 MiB for containers: lower mem",
        ),
        (
            Request(1, 1, 2**20),
            r"^f asks for 1048576 MiB of disk and this machine has 102400 MiB free: lower ephemeral",
        ),
        (Request(1, 1, gpus=(GpuRequest("H100", 2), GpuRequest("A100"))), "gpu=H100:2 or A100 and this machine has no"),
    ],
)
def test_what_this_machine_could_never_hold(request_: Request, message: str) -> None:
    with pytest.raises(ResourceExhaustedError, match=message):
        cluster(here=HERE).check("f", request_)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(32_000, 128), "f asks for 32 cores and the largest worker has 16: lower cpu="),
        (Request(1, 1, gpus=(GpuRequest("T4", 5),)), r"gpu=T4:5 and no worker has more than L4 \(2\), T4 \(4\)"),
        (Request(1, 1, gpus=(GpuRequest("H100"),)), r"gpu=H100 and no worker has more than L4 \(2\), T4 \(4\)"),
        (
            Request(1, 128 * GIB, gpus=(GpuRequest("T4"),)),
            "f asks for 0.001 cores, 131072 MiB of memory and gpu=T4, and no worker has all of that",
        ),
    ],
)
def test_what_no_worker_could_ever_hold(request_: Request, message: str) -> None:
    scheduler = cluster(a=machine(T4S), b=machine(Gpus("L4", (0, 1))), large=machine(memory=256))
    with pytest.raises(ResourceExhaustedError, match=message):
        scheduler.check("f", request_)


def test_without_workers_nothing_runs() -> None:
    with pytest.raises(ResourceExhaustedError, match="f cannot run: there is no worker"):
        Scheduler().check("f", SMALL)


def test_a_function_of_a_region_waits_for_it_to_come_back() -> None:
    scheduler = cluster(here=HERE)
    request = Request(125, 128, places=("eu",))
    assert place(scheduler, request)[0].worker_id == "here"  # as on a single machine
    scheduler.expect(["eu"])
    scheduler.check("f", request)
    demand = waiting(scheduler, request)
    assert not scheduler.schedule(0.0).place
    assert scheduler.why(demand) == "waiting for a worker with region='eu' to come back: see `farcall worker list`"
    scheduler.add_worker("far", HERE, places=["eu"])
    assert [placement.worker_id for placement in scheduler.schedule(0.0).place] == ["far"]
    with pytest.raises(ResourceExhaustedError, match="there is no worker with region='mars'"):
        scheduler.check("f", Request(125, 128, places=("mars",)))


def test_why_one_waits_for_room() -> None:
    scheduler = cluster(here=HERE)
    place(scheduler, Request(1, 3 * GIB), 2, app="train", busy=True)
    demand = waiting(scheduler, Request(1, 4 * GIB))
    scheduler.schedule(0.0)
    assert scheduler.why(demand) == (
        "waiting for room on this machine: it needs 4096 MiB of memory and 2048 MiB are free; train has 6144 MiB"
    )


def test_why_one_waits_for_a_gpu() -> None:
    scheduler = cluster(a=machine(T4S))
    place(scheduler, Request(1, 1, gpus=(GpuRequest("T4", 3),)), app="train", busy=True)
    demand = waiting(scheduler, Request(1, 1, gpus=(GpuRequest("T4", 2),)))
    scheduler.schedule(0.0)
    assert scheduler.why(demand) == (
        "waiting for room on this machine: it needs gpu=T4:2 and free are T4 (1); train has 3"
    )


def test_why_one_waits_in_a_cluster() -> None:
    scheduler = cluster(a=machine(memory=8), b=machine(memory=8), small=machine(memory=1))
    place(scheduler, Request(1, 6 * GIB), 2, app="train", busy=True)
    demand = waiting(scheduler, Request(1, 4 * GIB))
    scheduler.schedule(0.0)
    assert scheduler.why(demand) == (
        "waiting for room on 2 workers: it needs 4096 MiB of memory and 2048 MiB are free; train has 12288 MiB"
    )


# --- over time


def test_a_lost_worker_takes_its_containers_along() -> None:
    scheduler = cluster(a=machine(), b=machine(memory=128))
    on_a = place(scheduler, Request(1, GIB), 2)
    assert scheduler.remove_worker("a") == on_a
    assert on_a[0].demand.live == 0
    assert place(scheduler, Request(1, GIB))[0].worker_id == "b"


@settings(max_examples=25, deadline=None)
@given(
    every=st.integers(1, 40),
    at_once=st.integers(1, 3),
    duration=st.integers(2, 60),
    buffer=st.integers(0, 3),
    window=st.sampled_from([5.0, 10.0, 60.0]),
)
def test_no_container_comes_or_goes_under_a_constant_load(
    every: int, at_once: int, duration: int, buffer: int, window: float
) -> None:
    simulation = Simulation(machine(cpu=1000, memory=1000))
    settled = round((3 * window / TICK) + 10 * duration + 10 * every)
    arrivals = [(n * TICK, (duration - 0.5) * TICK) for n in range(0, 2 * settled, every) for _ in range(at_once)]
    pool = simulation.pool(
        "app", SMALL, arrivals, Scaling(buffer_containers=buffer, scaledown_window=window), mean_seconds=duration * TICK
    )
    simulation.run(settled * TICK)
    before = pool.started, pool.ended
    simulation.run(settled * TICK)
    assert (pool.started, pool.ended) == before
    assert max(pool.sizes) <= at_once * (duration + START_SECONDS / TICK + 2) / every + at_once + 1 + buffer


def test_more_load_has_never_fewer_containers() -> None:
    """The same inputs, and others besides."""
    for seed in range(5):
        rng = random.Random(seed)
        base = [(rng.uniform(0, 60), rng.uniform(0.1, 5)) for _ in range(60)]
        more = base + [(rng.uniform(0, 60), rng.uniform(0.1, 5)) for _ in range(60)]
        sizes: list[list[int]] = []
        for arrivals in (base, more):
            simulation = Simulation(machine(cpu=1000, memory=1000))
            pool = simulation.pool("app", SMALL, arrivals, Scaling(scaledown_window=10))
            simulation.run(90)
            sizes.append(pool.sizes)
        assert sum(sizes[1]) >= sum(sizes[0])
        assert max(sizes[1]) >= max(sizes[0])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), workers=st.integers(1, 3), apps=st.integers(2, 5))
@example(seed=984823, workers=1, apps=4)  # small ones took turns, and none was there for long when the large one looked
def test_nobody_starves(seed: int, workers: int, apps: int) -> None:
    """Whoever fits gets a container, however large it is and however much others have to do all the time."""
    rng = random.Random(seed)
    simulation = Simulation(*(machine(Gpus("T4", (0, 1)), cpu=8, memory=8) for _ in range(workers)))
    for app in range(apps):
        for _ in range(rng.randint(1, 2)):
            gpus = (GpuRequest("T4", rng.randint(1, 2)),) if rng.random() < 0.3 else ()
            request = Request(rng.choice([100, 1000, 8000]), rng.choice([128, 1024, 4096, 8192]), gpus=gpus)
            # More than can ever be done, from a moment of its own on.
            begin = rng.uniform(0, 20)
            inputs = [(begin, rng.uniform(0.2, 6.0)) for _ in range(5000)]
            simulation.pool(f"app{app}", request, inputs, Scaling(max_containers=rng.choice([None, 2])))
    limit = 20 + 2 * STARVED_SECONDS * len(simulation.pools)
    while simulation.now < limit and any(pool.first_at is None for pool in simulation.pools):
        simulation.run(1.0)
    assert {pool.name: pool.first_at for pool in simulation.pools if pool.first_at is None} == {}


def test_a_worker_that_would_not_have_a_pool_is_asked_again_once_it_may() -> None:
    scheduler = cluster(one=machine(), other=machine())
    demand = waiting(scheduler, SMALL)
    assert scheduler.bar(demand, "one"), "there is another"
    [placed] = scheduler.schedule(0.0).place
    assert placed.worker_id == "other"
    scheduler.release(placed)
    scheduler.want(demand, 1, 1, 0, 0.0)
    assert not scheduler.bar(demand, "other")
    assert not scheduler.schedule(0.0).place
    scheduler.unbar(demand, "one")
    scheduler.unbar(demand, "gone")
    [placed] = scheduler.schedule(0.0).place
    assert placed.worker_id == "one"
    assert scheduler.has("one") and not scheduler.has("gone")
