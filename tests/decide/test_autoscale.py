"""How many replicas a load gets: each signal, the delays, bursts, schedules, and what may never happen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.decide.builders import HERE, NOW, load, observation, replica, spec

from skyserve.decide import autoscale, signals
from skyserve.model import codec
from skyserve.model.decision import AutoscaleMemory, Memory, Observation, Peak, ReasonCode, ServiceRate
from skyserve.model.evidence import BOUNDS_S, LoadReport
from skyserve.model.replica import Replica, ReplicaStatus
from skyserve.model.resources import Accelerator
from skyserve.model.scaling import Bounds, CustomMetric, EngineSample, MetricReading
from skyserve.model.service import LoadBalancer, ReplicaPolicy

SCALING = ReplicaPolicy(1, 10, target_qps_per_replica=2.0)
ONGOING = ReplicaPolicy(1, 20, target_ongoing_requests_per_replica=8.0)


def decided(memory: AutoscaleMemory, policy: ReplicaPolicy, report: LoadReport, **more: object) -> autoscale.Target:
    specs = {1: spec(replica_policy=policy)}
    return autoscale.target(observation(specs=specs, load=report, memory=Memory(autoscale=memory), **more))


def scaled(qps: float, memory: AutoscaleMemory, policy: ReplicaPolicy = SCALING, **more: object) -> autoscale.Target:
    return decided(memory, policy, load(arrivals_per_s=qps, **more))


def calm_for(seconds: float, target: int, units: float = 0.0) -> AutoscaleMemory:
    """What is remembered when for so long the load, heard all the time, has asked for `units`."""
    since = NOW - seconds
    return AutoscaleMemory(target, heard_at=NOW - 1, watched_since_at=since, peaks=(Peak(NOW - 1, units),))


@dataclass
class Service:
    """A service whose replicas are ready `start_s` after they are wanted, second by second."""

    policy: ReplicaPolicy
    start_s: float = 0.0
    now: float = NOW
    memory: AutoscaleMemory = AutoscaleMemory()
    alive: dict[int, float] = field(default_factory=dict)
    targets: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    door: LoadBalancer = LoadBalancer()

    def hear(self, **report: object) -> int:
        """One second and one load report later: the target."""
        self.now += 1.0
        rows = tuple(self._row(replica_id, ready_at) for replica_id, ready_at in self.alive.items())
        o = observation(
            specs={1: spec(replica_policy=self.policy, load_balancer=self.door)},
            replicas=rows,
            now=self.now,
            load=replace(load(**report), at=self.now),
            memory=Memory(autoscale=self.memory),
        )
        target = autoscale.target(o)
        self.memory = target.memory
        self.texts += [note.because.text for note in target.notes]
        while len(self.alive) < target.count:
            self.alive[max(self.alive, default=0) + 1] = self.now + self.start_s
        while len(self.alive) > target.count:
            del self.alive[max(self.alive)]
        self.targets.append(target.count)
        return target.count

    def _row(self, replica_id: int, ready_at: float) -> Replica:
        return replica(replica_id, ReplicaStatus.READY if ready_at <= self.now else ReplicaStatus.STARTING)

    @property
    def changes(self) -> int:
        return sum(a != b for a, b in zip(self.targets, self.targets[1:], strict=False))


# ---- requests a second, with the delays


def test_a_fixed_number_is_the_target() -> None:
    assert autoscale.target(observation(specs={1: spec(3)})).count == 3


def test_demand_must_last_for_the_upscale_delay() -> None:
    first = scaled(9.0, AutoscaleMemory(1))
    assert (first.count, first.memory.above_since_at) == (1, NOW)
    assert first.wake_at == NOW + 300
    assert first.waiting[0].code is ReasonCode.UPSCALE_DELAY
    assert scaled(9.0, AutoscaleMemory(1, above_since_at=NOW - 299)).count == 1
    assert scaled(9.0, AutoscaleMemory(1, above_since_at=NOW - 300)).count == 5


def test_idleness_must_last_for_the_downscale_delay() -> None:
    assert scaled(0.0, calm_for(1199, 5)).count == 5
    down = scaled(0.0, calm_for(1200, 5))
    assert down.count == 1
    assert down.notes[0].because.code is ReasonCode.SCALED
    assert down.notes[0].because.facts["qps"] == 0.0


def test_it_goes_down_only_to_what_was_asked_for_meanwhile() -> None:
    peaks = (Peak(NOW - 1200, 5.0), Peak(NOW - 700, 3.0), Peak(NOW - 300, 2.0), Peak(NOW - 1, 0.0))
    memory = AutoscaleMemory(5, heard_at=NOW - 1, watched_since_at=NOW - 5000, peaks=peaks)
    down = scaled(0.0, memory)
    assert down.count == 3
    assert down.wake_at == NOW + 500
    assert "at most 3 wanted in the last 1200 s, was 5" in down.notes[0].because.text


def test_one_jitter_does_not_cost_the_whole_delay() -> None:
    service = Service(replace(SCALING, upscale_delay_seconds=100.0))
    for second in range(110):
        service.hear(arrivals_per_s=1.0 if second == 50 else 9.0)
    assert service.targets[99] == 1
    assert service.targets[-1] == 5


def test_from_zero_it_scales_at_once_for_a_held_request() -> None:
    policy = replace(SCALING, min_replicas=0)
    assert scaled(0.0, AutoscaleMemory(0), policy).count == 0
    assert scaled(0.0, AutoscaleMemory(0), policy, held=1).count == 1


def test_the_first_request_after_zero_does_not_ask_for_many() -> None:
    """A door that has just begun knows the rate of one second only."""
    policy = replace(SCALING, min_replicas=0, target_qps_per_replica=0.1)
    assert scaled(1.0, AutoscaleMemory(0), policy, window_s=1.0, held=1).count == 1


def test_a_request_under_way_keeps_the_last_replica() -> None:
    policy = replace(SCALING, min_replicas=0)
    assert scaled(0.0, calm_for(5000, 1), policy, in_flight={1: 1}).count == 1
    assert scaled(0.0, calm_for(5000, 1), policy).count == 0


def test_an_open_answer_in_which_nothing_moves_does_not_keep_it() -> None:
    policy = replace(SCALING, min_replicas=0)
    assert scaled(0.0, calm_for(5000, 1), policy, in_flight={1: 1}, quiet=1).count == 0


def test_without_a_report_the_target_stays() -> None:
    specs = {1: spec(replica_policy=SCALING)}
    memory = calm_for(5000, 4)
    silent = autoscale.target(observation(specs=specs, memory=Memory(autoscale=memory)))
    assert silent.count == 4
    assert scaled(0.0, silent.memory).count == 4, "what happened meanwhile is not known, so the delay begins anew"


def test_a_gap_in_what_is_heard_begins_the_delay_anew() -> None:
    memory = replace(calm_for(5000, 4), heard_at=NOW - 31)
    assert scaled(0.0, memory).count == 4


def test_overprovision_comes_on_top() -> None:
    policy = ReplicaPolicy(2, 2, num_overprovision=1)
    assert autoscale.target(observation(specs={1: spec(replica_policy=policy)})).count == 3


def test_a_load_on_the_line_does_not_flap() -> None:
    policy = ReplicaPolicy(1, 10, target_qps_per_replica=1.0, upscale_delay_seconds=0, downscale_delay_seconds=0)
    service = Service(policy)
    for second in range(600):
        service.hear(arrivals_per_s=2.0 + (0.04 if second % 2 else -0.04))
    assert set(service.targets[5:]) == {2}


# ---- bursts


def test_a_burst_of_requests_a_second_does_not_wait_for_the_delay() -> None:
    burst = scaled(1.0, AutoscaleMemory(1), burst_arrivals_per_s=10.0, in_flight={1: 3})
    assert burst.count == 5
    assert burst.notes[0].because.facts["burst"] == 1
    assert burst.memory.burst_until_at == NOW + autoscale.CALM_S


def test_a_cluster_that_chance_makes_is_no_burst() -> None:
    """Five requests within six seconds, where two are the most that are meant to come: that happens now and then."""
    policy = replace(SCALING, target_qps_per_replica=0.3)
    assert scaled(0.2, AutoscaleMemory(1), policy, burst_arrivals_per_s=5 / 6, in_flight={1: 1}).count == 1


def test_nothing_is_removed_right_after_a_burst() -> None:
    memory = replace(calm_for(5000, 5), burst_until_at=NOW + 1)
    assert scaled(0.0, memory).count == 5


def step_of_load(service: Service, ongoing: int) -> int:
    """How many reports it takes until more replicas are wanted, when so many requests are suddenly under way."""
    for second in range(1, 30):
        mean = ongoing * second / 60
        burst = ongoing * min(second, 6) / 6
        report = {"ongoing": mean, "burst_ongoing": burst, "steady_ongoing": ongoing if second > 1 else 1}
        if service.hear(in_flight={1: ongoing}, **report) > 1:
            return second
    return 99


def test_a_step_from_one_to_forty_is_answered_within_two_seconds() -> None:
    service = Service(ONGOING, alive={1: NOW})
    service.hear(ongoing=1.0, burst_ongoing=1.0, steady_ongoing=1.0, in_flight={1: 1})
    assert step_of_load(service, 40) <= 2
    assert service.targets[-1] == 5


def test_replicas_that_start_count_in_a_burst() -> None:
    service = Service(ONGOING, start_s=120.0, alive={1: NOW})
    service.hear(ongoing=1.0, burst_ongoing=1.0, steady_ongoing=1.0, in_flight={1: 1})
    step_of_load(service, 40)
    for _ in range(60):
        service.hear(ongoing=40.0, burst_ongoing=40.0, steady_ongoing=40, in_flight={1: 40})
    assert service.targets[-1] == 5


def test_a_backlog_is_not_taken_for_traffic() -> None:
    """600 wait, but 8 a second come, and a replica finishes 4: two carry the traffic, and three more the backlog."""
    rates = (ServiceRate("host", 400.0, 800.0),)
    memory = AutoscaleMemory(1, rates=rates)
    report = load(
        ongoing=300.0, burst_ongoing=600.0, steady_ongoing=600, held=592, in_flight={1: 8}, arrivals_per_s=8.0
    )
    burst = decided(
        memory, ReplicaPolicy(1, 100, target_ongoing_requests_per_replica=8.0), report, replicas=(replica(1),)
    )
    assert burst.count == 5
    assert "backlog of 592" in burst.notes[0].because.text


def test_what_waits_because_replicas_are_full_is_a_burst() -> None:
    service = Service(SCALING, door=LoadBalancer(max_concurrency_per_replica=4), alive={1: NOW})
    service.hear(arrivals_per_s=0.1, in_flight={1: 1})
    assert service.hear(arrivals_per_s=0.3, in_flight={1: 4}, held=6, steady_ongoing=10, burst_ongoing=10.0) == 3


# ---- the other signals


@pytest.mark.parametrize("field", ["first_byte", "whole"])
def test_a_missed_latency_asks_for_more_and_a_good_one_for_fewer(field: str) -> None:
    key = {"first_byte": "target_ttft_s", "whole": "target_latency_s"}[field]
    policy = ReplicaPolicy(1, 10, upscale_delay_seconds=0, downscale_delay_seconds=0, **{key: 1.0})  # type: ignore[arg-type]
    ready = tuple(replica(i) for i in range(1, 5))
    slow = decided(AutoscaleMemory(4), policy, load(**{field: bins(3.0, 100)}, in_flight={1: 1}), replicas=ready)
    assert slow.count == 8, "no more than twice as many at once"
    assert "p95" in slow.notes[0].because.text
    fast = decided(calm_for(60, 4), policy, load(**{field: bins(0.2, 100)}, in_flight={1: 1}), replicas=ready)
    assert fast.count == 3, "one fewer at a time"
    few = decided(calm_for(60, 4), policy, load(**{field: bins(3.0, 5)}, in_flight={1: 1}), replicas=ready)
    assert few.count == 4, "five answers tell nothing"
    coming = (*ready, replica(5, ReplicaStatus.STARTING))
    waits = decided(AutoscaleMemory(5), policy, load(**{field: bins(3.0, 100)}, in_flight={1: 1}), replicas=coming)
    assert waits.count == 5, "the one that starts may be enough"


def bins(seconds: float, count: int) -> tuple[int, ...]:
    counts = [0] * (len(BOUNDS_S) + 1)
    counts[sum(bound < seconds for bound in BOUNDS_S)] = count
    return tuple(counts)


@given(st.lists(st.floats(0.001, 250.0), min_size=30, max_size=200), st.floats(50.0, 99.0))
def test_a_percentile_lies_in_its_bin(values: list[float], percent: float) -> None:
    counts = [0] * (len(BOUNDS_S) + 1)
    for value in values:
        counts[sum(bound < value for bound in BOUNDS_S)] += 1
    told = signals.percentile(counts, percent)
    exact = sorted(values)[min(len(values) - 1, int(percent / 100 * len(values)))]
    assert told is not None
    assert sum(bound < told for bound in BOUNDS_S) <= sum(bound < exact for bound in BOUNDS_S)


AT_ONCE = ReplicaPolicy(1, 20, upscale_delay_seconds=0, downscale_delay_seconds=0)
READY = tuple(replica(i) for i in range(1, 5))


def engines(**values: float) -> dict[int, EngineSample]:
    return {r.id: EngineSample(NOW, **values) for r in READY}


@pytest.mark.parametrize(
    ("policy", "samples", "count"),
    [
        (replace(AT_ONCE, target_tokens_per_second_per_replica=500.0), engines(tokens_per_s=1000.0), 8),
        (replace(AT_ONCE, target_tokens_per_second_per_replica=500.0), {}, 4),
        (replace(AT_ONCE, target_kv_cache_use=0.6), engines(kv_cache_use=0.9), 6),
        (replace(AT_ONCE, target_engine_waiting_per_replica=2.0), engines(waiting=3.0), 6),
        (replace(AT_ONCE, target_engine_waiting_per_replica=2.0), engines(waiting=40.0), 8),
        (replace(AT_ONCE, target_engine_waiting_per_replica=2.0), engines(waiting=1.5), 4),
        (replace(AT_ONCE, target_engine_waiting_per_replica=2.0), engines(waiting=0.0), 3),
    ],
)
def test_what_engines_tell_is_followed(policy: ReplicaPolicy, samples: dict[int, EngineSample], count: int) -> None:
    report = load(in_flight={1: 1})
    assert decided(calm_for(60, 4), policy, report, engines=samples, replicas=READY).count == count


def test_the_users_metric_is_followed_and_its_silence_changes_nothing() -> None:
    policy = replace(AT_ONCE, custom_metric=CustomMetric("http://m", 10.0))
    said = MetricReading(NOW, 65.0)
    assert decided(calm_for(60, 4), policy, load(), metric=said).count == 7
    for unsaid in (None, MetricReading(NOW, None, "no route to host"), MetricReading(NOW - 100, 65.0)):
        assert decided(calm_for(60, 4), policy, load(), metric=unsaid).count == 4


def test_the_queue_asks_for_replicas_beside_those_that_are_busy() -> None:
    policy = replace(AT_ONCE, target_queue_length_per_replica=5.0)
    report = load(held=12, in_flight={r.id: 4 for r in READY})
    assert decided(calm_for(60, 4), policy, report, replicas=READY).count == 7


def test_the_largest_demand_wins_and_is_named() -> None:
    policy = replace(AT_ONCE, target_qps_per_replica=1.0, target_ongoing_requests_per_replica=2.0)
    most = decided(AutoscaleMemory(1), policy, load(arrivals_per_s=3.0, ongoing=11.0, in_flight={1: 11}))
    assert most.count == 6
    assert most.notes[0].because.facts["signal"] == "requests under way"


def test_a_schedule_sets_the_bounds() -> None:
    morning = Bounds("0 8 * * *", 4, 6, until_at=NOW + 50)
    up = decided(AutoscaleMemory(1), SCALING, load(), schedule=morning)
    assert (up.count, up.wake_at) == (4, NOW + 50)
    assert "the schedule '0 8 * * *' wants 4 replicas" in up.notes[0].because.text
    fixed = decided(AutoscaleMemory(1), ReplicaPolicy(1, 1), load(), schedule=morning)
    assert fixed.count == 4


# ---- machines that differ


A100 = replace(HERE, instance_type="big", accelerator=Accelerator("A100", 1), price_per_hour=4.0)
L4 = replace(HERE, instance_type="small", accelerator=Accelerator("L4", 1), price_per_hour=1.0)


def test_rates_by_accelerator_count_in_units_of_the_fastest() -> None:
    policy = replace(AT_ONCE, target_qps_per_replica={"A100": 5.0, "L4": 1.0})
    slow = tuple(replica(i, offering=L4) for i in (1, 2))
    up = decided(AutoscaleMemory(2), policy, load(arrivals_per_s=6.0), replicas=slow, offerings=(L4,))
    assert up.count == 6
    up = decided(AutoscaleMemory(2), policy, load(arrivals_per_s=6.0), replicas=slow, offerings=(A100, L4))
    assert up.count == 3


def test_what_machines_are_worth_is_learnt_from_what_they_finish() -> None:
    service = Service(ONGOING)
    rows = (replica(1, offering=A100), replica(2, offering=L4))
    memory = AutoscaleMemory(2)
    for second in range(1, 120):
        at = NOW + second
        report = load(at=at, done_per_s={1: 4.0, 2: 1.0}, busy={1: 4.0, 2: 4.0}, in_flight={1: 4, 2: 4}, ongoing=8.0)
        o = observation(
            specs={1: spec(replica_policy=ONGOING)}, replicas=rows, now=at, load=report, memory=Memory(autoscale=memory)
        )
        memory = autoscale.target(o).memory
    assert service.changes == 0
    weights = autoscale.capacity.learnt_weights(memory.rates)
    assert weights["A100:1"] == 1.0
    assert weights["L4:1"] == pytest.approx(0.25, rel=0.06)


def test_the_dearest_throughput_goes_first_but_never_a_ready_one_before_a_pending_one() -> None:
    policy = replace(AT_ONCE, target_qps_per_replica={"A100": 5.0, "L4": 1.0})
    rows = [replica(1, offering=A100), replica(2, offering=L4), replica(3, ReplicaStatus.PENDING, offering=A100)]
    order = autoscale.capacity.removal_order(rows, spec(replica_policy=policy))
    assert [r.id for r in order] == [3, 2, 1]


# ---- as published


def test_the_published_request_rate_needs_fifteen_looks_in_a_row() -> None:
    policy = replace(SCALING, autoscaler="request_rate")
    service = Service(policy)
    while service.hear(arrivals_per_s=9.0) == 1:
        assert len(service.targets) < 400
    assert len(service.targets) == 281, "the fifteenth look, twenty seconds apart"
    service = Service(policy)
    for second in range(400):
        service.hear(arrivals_per_s=1.0 if second == 260 else 9.0)
    assert service.targets[-1] == 1, "one look at which it was not asked for begins the count anew"


def test_the_published_concurrency_panics_and_forgets_at_once() -> None:
    service = Service(replace(ONGOING, autoscaler="concurrency"))
    service.hear(ongoing=4.0, burst_ongoing=4.0, in_flight={1: 4})
    for _ in range(4):
        service.hear(ongoing=8.0, burst_ongoing=40.0, in_flight={1: 40})
    assert service.targets[-1] == 5
    for _ in range(70):
        service.hear(ongoing=1.0, burst_ongoing=1.0, in_flight={1: 1})
    assert service.targets[-1] <= 2


# ---- what may never happen


LOADS = st.fixed_dictionaries(
    {
        "arrivals_per_s": st.floats(0, 50),
        "burst_arrivals_per_s": st.floats(0, 200),
        "ongoing": st.floats(0, 100),
        "burst_ongoing": st.floats(0, 200),
        "steady_ongoing": st.floats(0, 200),
        "held": st.integers(0, 50),
        "in_flight": st.dictionaries(st.integers(1, 5), st.integers(0, 30)),
        "done_per_s": st.dictionaries(st.integers(1, 5), st.floats(0, 30)),
        "busy": st.dictionaries(st.integers(1, 5), st.floats(0, 30)),
    }
)
POLICIES = st.builds(
    ReplicaPolicy,
    min_replicas=st.integers(0, 3),
    max_replicas=st.integers(3, 9),
    target_qps_per_replica=st.sampled_from([1.0, 7.5, {"A100": 3.0}]),
    target_ongoing_requests_per_replica=st.sampled_from([1.0, 8.0]),
    target_ttft_s=st.sampled_from([None, 0.5]),
    upscale_delay_seconds=st.sampled_from([0.0, 5.0, 300.0]),
    downscale_delay_seconds=st.sampled_from([0.0, 5.0, 1200.0]),
    autoscaler=st.sampled_from(["responsive", "request_rate", "concurrency"]),
    num_overprovision=st.integers(0, 1),
)


@settings(deadline=None, max_examples=150)
@given(POLICIES, st.lists(st.tuples(LOADS, st.floats(0.1, 60)), max_size=30))
def test_the_target_never_leaves_its_bounds(
    policy: ReplicaPolicy, story: list[tuple[dict[str, object], float]]
) -> None:
    service = Service(policy, start_s=5.0)
    for report, pause_s in story:
        service.now += pause_s
        service.memory = codec.loads(AutoscaleMemory, codec.dumps(service.memory))
        count = service.hear(**report)
        assert policy.min_replicas <= count - policy.num_overprovision <= policy.max_replicas


def noisy(rng: Random, level: float) -> float:
    return level * rng.uniform(0.8, 1.2)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.5, 60.0), st.integers(0, 10_000), st.sampled_from([0.0, 60.0]))
def test_a_constant_load_with_noise_does_not_make_it_go_up_and_down(level: float, seed: int, delay: float) -> None:
    """The last minute of a load that varies by a fifth either way, as the door would tell it."""
    policy = replace(ONGOING, max_replicas=30, upscale_delay_seconds=delay, downscale_delay_seconds=max(60.0, delay))
    service, rng = Service(policy), Random(seed)
    samples = [noisy(rng, level) for _ in range(60)]
    for _ in range(600):
        samples = [*samples[1:], noisy(rng, level)]
        mean, burst = sum(samples) / 60, sum(samples[-6:]) / 6
        service.hear(ongoing=mean, burst_ongoing=burst, steady_ongoing=min(samples[-2:]), in_flight={1: int(level) + 1})
    assert service.changes <= 3
    late = service.targets[300:]
    assert late == sorted(late, reverse=True), "what went down came up again"


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0.0, 30.0), min_size=3, max_size=10))
def test_it_never_has_less_than_was_asked_for_within_the_delay(levels: list[float]) -> None:
    policy = ReplicaPolicy(
        0, 100, target_ongoing_requests_per_replica=1.0, upscale_delay_seconds=0.0, downscale_delay_seconds=90.0
    )
    service, asked = Service(policy), list[float]()
    for level in levels:
        for _ in range(40):
            service.hear(
                ongoing=level, burst_ongoing=level, steady_ongoing=level, in_flight={1: int(level)} if level else {}
            )
            asked.append(level)
            recent = asked[-86:]  # the peaks are known to a thirtieth of the delay
            assert service.targets[-1] >= max(recent) * (1 - autoscale.TOLERANCE) - 1e-6


def test_the_same_observation_gives_the_same_target() -> None:
    o: Observation = observation(specs={1: spec(replica_policy=ONGOING)}, load=load(ongoing=30.0, in_flight={1: 30}))
    assert autoscale.target(o) == autoscale.target(o)
