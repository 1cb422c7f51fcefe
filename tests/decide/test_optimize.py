"""Ranking, choosing, cooling down: which pool is asked, which is not, and why."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from tests.decide.builders import HERE, NOW, THERE, listing, observation, replica, spec

from skyserve.decide import health, optimize
from skyserve.decide.reconcile import decide
from skyserve.model.evidence import Outcome, OutcomeKind
from skyserve.model.health import Cooldown, CooldownKind
from skyserve.model.offering import CapacityType, Location, Offering
from skyserve.model.replica import ReplicaStatus
from skyserve.model.resources import Accelerator, ResourceChoice, Resources
from skyserve.model.service import ReplicaPolicy

S = ReplicaStatus


def cooling(offering: Offering, until_at: float = NOW + 5, **changes: object) -> Cooldown:
    capacity_type, kind = offering.capacity_type.value, CooldownKind.CAPACITY
    place = str(offering.location)
    entry = Cooldown(place, offering.instance_type, capacity_type, kind, NOW - 1, until_at, 1, "full")
    return replace(entry, **changes)  # type: ignore[arg-type]


def test_the_first_pool_that_is_not_cooling_is_taken_and_the_others_explained() -> None:
    choice = optimize.choose((HERE, THERE), (cooling(HERE),), NOW)
    assert choice.offering == THERE
    assert choice.rejected == ((HERE.pool, "cooling down until 13:46:45 UTC after no capacity: full"),)
    choice = optimize.choose((HERE, THERE), (), NOW)
    assert choice.offering == HERE
    assert choice.rejected == ((THERE.pool, "dearer or less preferred: $1.00/h"),)


def test_with_every_pool_cooling_the_wait_is_known() -> None:
    choice = optimize.choose((HERE,), (cooling(HERE),), NOW)
    assert (choice.offering, choice.retry_at, choice.why) == (None, NOW + 5, "full")


def refused(known: Cooldown | None = None, kind: OutcomeKind = OutcomeKind.CAPACITY, **place: object) -> Cooldown:
    pending = replica(1, S.PENDING)
    outcome = replace(Outcome(pending.token, kind, NOW, detail="full"), **place)  # type: ignore[arg-type]
    o = observation(outcomes=(outcome,), replicas=(pending,), health=(known,) if known else ())
    (entry,) = health.learn(o, (pending,), (replace(pending, offering=None),))
    return entry


def test_refusals_double_the_wait_and_time_forgives() -> None:
    first_s = health.FIRST_WAIT_S[CooldownKind.CAPACITY]
    assert refused().until_at == NOW + first_s
    assert refused(cooling(HERE, NOW - 1)).until_at == NOW + 2 * first_s
    assert refused(cooling(HERE, NOW - 1, strikes=3)).until_at == NOW + 8 * first_s
    assert refused(cooling(HERE, NOW - 1, strikes=20)).until_at == NOW + 32 * first_s
    assert refused(cooling(HERE, NOW - 1 - 2 * health.STRIKE_FADES_S, strikes=3)).strikes == 2
    assert refused(cooling(HERE, NOW - 1e6, strikes=9)).strikes == 1


def test_a_providers_own_wait_is_honoured() -> None:
    assert refused(retry_after_s=2.0).until_at == NOW + 2


def test_two_refusals_by_one_pool_in_one_step_are_one_strike() -> None:
    both = (replica(1, S.PENDING), replica(2, S.PENDING))
    outcomes = tuple(Outcome(r.token, OutcomeKind.CAPACITY, NOW, detail="full") for r in both)
    (entry,) = health.learn(observation(outcomes=outcomes, replicas=both), both, ())
    assert entry.strikes == 1


def test_how_far_a_refusal_reaches() -> None:
    east = Offering("aws", "p5.48xlarge", Location("aws", "us-east-1", "us-east-1a"), CapacityType.SPOT, None, 1, 1, 9)
    cousin = replace(east, instance_type="p5e.48xlarge")
    next_door = replace(east, location=Location("aws", "us-east-1", "us-east-1b"))
    west = replace(east, location=Location("aws", "us-west-2", "us-west-2a"))

    def blocked(**place: object) -> list[bool]:
        pending = replica(1, S.PENDING, offering=east)
        kind = place.pop("kind", OutcomeKind.CAPACITY)
        outcome = replace(Outcome(pending.token, kind, NOW), **place)  # type: ignore[arg-type]
        learnt = health.learn(observation(outcomes=(outcome,)), (pending,), ())
        return [health.blocking(x, learnt, NOW) is not None for x in (east, cousin, next_door, west)]

    assert blocked() == [True, False, False, False]
    assert blocked(location="aws/us-east-1", instance_types="p5*") == [True, True, True, False]
    assert blocked(kind=OutcomeKind.QUOTA) == [True, False, True, False]
    assert blocked(kind=OutcomeKind.CREDENTIALS) == [True, True, True, True]
    assert blocked(location="aws/us-east-1/us-east-1b") == [False, False, True, False]


def test_an_accepted_launch_clears_the_pool_and_given_back_capacity_is_asked_for_at_once() -> None:
    pending = replica(1, S.PENDING)
    accepted = Outcome(pending.token, OutcomeKind.ACCEPTED, NOW)
    known = (cooling(HERE, NOW - 1),)
    (entry,) = health.learn(observation(outcomes=(accepted,), health=known), (pending,), ())
    assert entry.strikes == 0
    assert health.merge(known, (entry,)) == ()
    leaving = replica(1, S.SHUTTING_DOWN)
    (entry,) = health.learn(observation(health=(cooling(HERE, NOW + 50),)), (leaving,), ())
    assert entry.until_at == NOW


def gpu(name: str, price: float, count: float = 1, **changes: object) -> Offering:
    accelerator = Accelerator(name, count)
    base = Offering("fake", name, Location("fake", "r"), CapacityType.ON_DEMAND, accelerator, 8, 32, price)
    return replace(base, **changes)  # type: ignore[arg-type]


def test_an_ordered_list_goes_before_the_price() -> None:
    wanted = tuple(Resources(accelerators=Accelerator(name)) for name in ("A100", "L4"))
    both = (gpu("L4", 1.0), gpu("A100", 4.0))
    ordered = spec(resources=ResourceChoice(wanted, ordered=True))
    assert [o.instance_type for o in optimize.rank(both, ordered)] == ["A100", "L4"]
    any_of = spec(resources=ResourceChoice(wanted))
    assert [o.instance_type for o in optimize.rank(both, any_of)] == ["L4", "A100"]


def test_a_target_by_accelerator_makes_the_price_that_of_throughput() -> None:
    wanted = tuple(Resources(accelerators=Accelerator(name)) for name in ("A100", "L4"))
    policy = ReplicaPolicy(1, 4, target_qps_per_replica={"L4": 1.0, "A100": 8.0})
    asked = spec(resources=ResourceChoice(wanted), replica_policy=policy)
    assert [o.instance_type for o in optimize.rank((gpu("L4", 1.0), gpu("A100", 4.0)), asked)] == ["A100", "L4"]


def test_a_target_by_accelerator_is_what_a_replica_weighs() -> None:
    wanted = ResourceChoice((Resources(accelerators=Accelerator("A100")),))
    policy = ReplicaPolicy(2, 4, target_qps_per_replica={"L4": 1.0, "A100": 8.0, "A100:2": 15.0})
    asked = spec(resources=wanted, replica_policy=policy)
    offerings = (gpu("L4", 1.0), gpu("A100", 4.0), gpu("A100", 8.0, 2), gpu("T4", 1.0), None)
    assert [optimize.weight(offering, asked) for offering in offerings] == [1.0, 8.0, 15.0, 1.0, 1.0]
    assert optimize.weight(gpu("A100", 4.0), spec()) == 1.0
    mixed = (replica(1, offering=gpu("L4", 1.0)), replica(2, offering=gpu("A100", 4.0)))
    plan = decide(observation(replicas=mixed, specs={1: asked}, providers=listing(*mixed)))
    assert [(row.replica_id, row.weight) for row in plan.endpoints] == [(1, 1.0), (2, 8.0)]


def test_nothing_above_the_users_limit_is_ever_chosen() -> None:
    wanted = (Resources(accelerators=Accelerator("L4"), max_hourly_cost=0.9),)
    assert optimize.rank((gpu("L4", 1.0),), spec(resources=ResourceChoice(wanted))) == ()


def test_a_long_list_is_told_in_brief() -> None:
    many = [gpu("L4", float(i), location=Location("fake", f"r{i}")) for i in range(1, 100)]
    rejected = optimize.choose(many, (), NOW).rejected
    assert len(rejected) == optimize.EXPLAINED + 1
    assert rejected[-1][0] == "86 more pools"


pools = st.builds(
    Offering,
    provider=st.just("fake"),
    instance_type=st.sampled_from(["a", "b", "c"]),
    location=st.builds(Location, cloud=st.sampled_from(["x", "y"]), region=st.sampled_from(["1", "2"])),
    capacity_type=st.just(CapacityType.ON_DEMAND),
    accelerator=st.none(),
    vcpus=st.just(4.0),
    memory_gib=st.just(16.0),
    price_per_hour=st.sampled_from([0.1, 0.2, 0.3]),
)
markets = st.lists(pools, unique_by=lambda o: o.pool, max_size=12)


@given(markets, st.sets(st.integers(0, 11)), st.randoms())
def test_the_choice_is_never_dominated_and_never_a_matter_of_order(
    offerings: list[Offering], cold: set[int], random: object
) -> None:
    entries = [cooling(o) for i, o in enumerate(offerings) if i in cold]
    ranked = optimize.rank(offerings, spec())
    choice = optimize.choose(optimize.shortlist(ranked, entries, NOW), entries, NOW)
    free = [o for i, o in enumerate(offerings) if i not in cold]
    if not free:
        assert choice.offering is None
        return
    assert choice.offering is not None
    assert choice.offering.price_per_hour == min(o.price_per_hour for o in free)
    random.shuffle(offerings)  # type: ignore[attr-defined]
    again = optimize.choose(optimize.rank(offerings, spec()), entries, NOW)
    assert again.offering == choice.offering
    for rejected in [o for o in offerings if o != choice.offering]:
        fewer = optimize.rank([o for o in offerings if o != rejected], spec())
        assert optimize.choose(fewer, entries, NOW).offering == choice.offering


@given(markets)
def test_the_shortlist_chooses_as_the_whole_list_would(offerings: list[Offering]) -> None:
    ranked = optimize.rank(offerings, spec())
    entries = [cooling(o) for o in ranked[: len(ranked) // 2]]
    short = optimize.shortlist(ranked, entries, NOW)
    assert optimize.choose(short, entries, NOW).offering == optimize.choose(ranked, entries, NOW).offering


def test_one_type_with_different_accelerators_is_several_pools() -> None:
    n1 = [gpu(name, 1.0, instance_type="n1-standard-8") for name in ("T4", "V100")]
    assert n1[0].pool != n1[1].pool
    pending = replica(1, S.PENDING, offering=n1[0])
    outcome = Outcome(pending.token, OutcomeKind.CAPACITY, NOW)
    learnt = health.learn(observation(outcomes=(outcome,)), (pending,), ())
    assert [health.blocking(o, learnt, NOW) is not None for o in n1] == [True, False]
