"""What every store must do, whatever it is made of. A test module subclasses StoreContract and provides `run`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from skyserve.errors import Conflict, LeaseLost, ServiceExists, ServiceNotFound, StoreUnavailable
from skyserve.model.decision import (
    AutoscaleMemory,
    FailureMemory,
    Launch,
    Memory,
    Note,
    Observation,
    Plan,
    Reason,
    ReasonCode,
)
from skyserve.model.evidence import Listing, Silent
from skyserve.model.health import Cooldown, CooldownKind
from skyserve.model.replica import Replica, ReplicaStatus
from skyserve.model.rollout import Rejected, RolloutMemory
from skyserve.model.service import ServiceSpec, UpdateMode
from skyserve.store.base import Lease, ServiceState, Store

Run = Callable[..., None]
"""`run(scenario)` awaits `scenario(store)`; `run(scenario, 2)` awaits `scenario(store, other)` on one database."""

BECAUSE = Reason(ReasonCode.BELOW_TARGET, "1 of 2 replicas", {"target": 2, "load": 0.5}, (("aws", "too dear"),))
MEMORY = Memory(
    (FailureMemory(1, 2, 5.0, True, "exit 1"),),
    AutoscaleMemory(3, 1.5, None),
)


def a_spec(name: str = "chat", run: str = "serve") -> ServiceSpec:
    return ServiceSpec(name, run, envs={"B": "2", "A": "1"}, secrets={"TOKEN": "fingerprint"})


def a_replica(id_: int, status: ReplicaStatus = ReplicaStatus.PENDING, version: int = 1) -> Replica:
    return Replica(id_, f"chat-{id_}-1", version, version, status, status_since_at=10.0, created_at=10.0)


def seen(state: ServiceState, now: float = 20.0) -> Observation:
    """What the loop would make of a stored state."""
    return Observation(
        service=state.name,
        uid=state.uid,
        wanted=state.wanted,
        purge=state.purge,
        latest_version=state.latest_version,
        update_mode=state.update_mode,
        revision=state.revision,
        now=now,
        specs=state.specs,
        replicas=state.replicas,
        next_replica_id=state.next_replica_id,
        providers={"local": Listing(now, ()), "ssh": Silent(now, "timeout")},
        evict=state.evict,
        memory=state.memory,
    )


def nothing_to_do(state: ServiceState) -> Plan:
    """The plan that leaves a stored state as it is."""
    return Plan(state.replicas, (), (), state.memory, state.next_replica_id, wake_at=30.0, target=state.target)


def launching(state: ServiceState, *ids: int) -> Plan:
    """The plan that adds new replicas."""
    fresh = tuple(a_replica(id_) for id_ in ids)
    return replace(
        nothing_to_do(state),
        replicas=state.replicas + fresh,
        actions=tuple(Launch(replica, BECAUSE) for replica in fresh),
        next_replica_id=max(ids) + 1,
        target=len(state.replicas) + len(ids),
    )


async def begin(store: Store, name: str = "chat") -> tuple[ServiceState, Lease]:
    """A new service whose lease is ours."""
    await store.create(a_spec(name), uid="u1", port=30001, now=10.0)
    lease = await store.lease(name, "controller-a", now=10.0, ttl_s=30.0)
    return await store.load(name), lease


async def refused(kind: type[Exception], work: Awaitable[object]) -> Exception:
    """Await what must be refused."""
    with pytest.raises(kind) as caught:
        await work
    return caught.value


class StoreContract:
    """One service's life in the store, and what happens when two want the same."""

    def test_a_new_service_starts_at_version_one(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            state = await store.create(a_spec(), uid="u1", port=30001, now=10.5)
            assert state == await store.load("chat")
            assert (state.name, state.uid, state.port, state.created_at) == ("chat", "u1", 30001, 10.5)
            assert (state.wanted, state.purge, state.latest_version) == (True, False, 1)
            assert (state.replicas, state.next_replica_id, state.memory, state.evict) == ((), 1, Memory(), ())
            assert (state.first_ready_at, state.target, state.note) == (None, 0, "")
            assert state.specs == {1: a_spec()}
            assert list(state.specs[1].envs) == ["B", "A"], "in the user's order"

        run(scenario)

    def test_services_are_listed_oldest_first(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            for name, now in (("b", 2.0), ("c", 3.0), ("a", 1.0)):
                await store.create(a_spec(name), uid="u", port=30001, now=now)
            assert list(await store.services()) == ["a", "b", "c"]

        run(scenario)

    def test_a_taken_name_is_refused_also_while_it_goes_down(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            first = await store.create(a_spec(), uid="u1", port=30001, now=1.0)
            error = await refused(ServiceExists, store.create(a_spec(run="other"), uid="u2", port=30002, now=2.0))
            assert "sky serve update chat" in error.hint
            assert "sky serve down chat" in error.hint
            assert await store.load("chat") == first
            await store.want_down("chat", purge=False)
            await refused(ServiceExists, store.create(a_spec(), uid="u2", port=30002, now=2.0))

        run(scenario)

    def test_unknown_services_are_not_found(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            error = await refused(ServiceNotFound, store.load("chat"))
            assert "'chat'" in error.message
            await refused(ServiceNotFound, store.put_version(a_spec(), mode=UpdateMode.ROLLING, now=1.0))
            await refused(ServiceNotFound, store.want_down("chat", purge=True))
            await refused(ServiceNotFound, store.evict("chat", 1))
            await refused(ServiceNotFound, store.lease("chat", "a", now=1.0, ttl_s=1.0))
            await store.delete("chat")
            assert list(await store.services()) == []
            assert list(await store.decisions("chat")) == []

        run(scenario)

    def test_versions_are_numbered_by_the_store(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            before, _ = await begin(store)
            assert await store.put_version(a_spec(run="new"), mode=UpdateMode.BLUE_GREEN, now=11.0) == 2
            state = await store.load("chat")
            assert (state.latest_version, state.update_mode) == (2, UpdateMode.BLUE_GREEN)
            assert state.revision > before.revision
            assert state.specs == {2: a_spec(run="new")}, "no replica needs version 1"
            assert await store.put_version(a_spec(), mode=UpdateMode.ROLLING, now=12.0) == 3

        run(scenario)

    def test_the_newest_versions_are_kept_and_those_in_use(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            state, lease = await begin(store)
            memory = Memory(rollout=RolloutMemory(2, good=1, rejected=(Rejected(2, 12.0, "it failed"),)))
            await store.commit(seen(state), replace(nothing_to_do(state), memory=memory), lease=lease)
            for number in range(2, 15):
                mode = UpdateMode.CANARY if number == 14 else UpdateMode.ROLLING
                await store.put_version(a_spec(run=f"v{number}"), mode=mode, now=10.0 + number)
            kept = await store.versions("chat")
            assert [one.version for one in kept] == [1, *range(5, 15)], "the good one is in use"
            assert (kept[-1].mode, kept[-1].created_at, kept[-1].spec.run) == (UpdateMode.CANARY, 24.0, "v14")
            loaded = await store.load("chat")
            assert sorted(loaded.specs) == [1, 14]
            assert loaded.memory == memory
            await refused(ServiceNotFound, store.versions("nobody"))

        run(scenario)

    def test_a_service_going_down_takes_no_new_version(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            await begin(store)
            await store.want_down("chat", purge=False)
            update = store.put_version(a_spec(), mode=UpdateMode.ROLLING, now=11.0)
            assert "going down" in (await refused(ServiceNotFound, update)).message

        run(scenario)

    def test_the_specs_that_replicas_need_are_loaded(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            state, lease = await begin(store)
            for number in (2, 3, 4):
                await store.put_version(a_spec(run=f"v{number}"), mode=UpdateMode.ROLLING, now=11.0)
            state = await store.load("chat")
            relabelled = replace(a_replica(1, version=3), launched_version=1)
            await store.commit(seen(state), replace(nothing_to_do(state), replicas=(relabelled,)), lease=lease)
            assert sorted((await store.load("chat")).specs) == [1, 3, 4]

        run(scenario)

    def test_a_commit_is_loaded_again_whole(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            state, lease = await begin(store)
            plan = replace(launching(state, 1, 2, 10), memory=MEMORY)
            revision = await store.commit(seen(state), plan, lease=lease)
            after = await store.load("chat")
            assert after.revision == revision > state.revision
            assert (after.replicas, after.memory) == (plan.replicas, MEMORY)
            assert (after.next_replica_id, after.target) == (11, 3)

        run(scenario)

    def test_replicas_change_and_go_with_the_plan(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            state, lease = await begin(store)
            await store.commit(seen(state), launching(state, 1, 2, 3), lease=lease)
            state = await store.load("chat")
            changed = replace(state.replicas[2], status=ReplicaStatus.STARTING, detail="\x00 \ud800 é")
            plan = replace(nothing_to_do(state), replicas=(state.replicas[0], changed))
            await store.commit(seen(state), plan, lease=lease)
            assert (await store.load("chat")).replicas == plan.replicas

        run(scenario)

    def test_a_plan_that_changes_nothing_is_not_written(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            state, lease = await begin(store)
            await store.commit(seen(state), replace(launching(state, 1), memory=MEMORY), lease=lease)
            state = await store.load("chat")
            for now in (21.0, 22.0):
                assert await store.commit(seen(state, now), nothing_to_do(state), lease=lease) == state.revision
            assert await store.load("chat") == state
            assert len(await store.decisions("chat")) == 1

        run(scenario)

    @pytest.mark.parametrize(
        "change",
        [{"memory": MEMORY}, {"next_replica_id": 9}, {"target": 4}, {"waiting": (BECAUSE,)}],
        ids=lambda change: next(iter(change)),
    )
    def test_each_part_of_a_plan_alone_is_a_change(self, run: Run, change: dict[str, object]) -> None:
        async def scenario(store: Store) -> None:
            state, lease = await begin(store)
            plan = replace(nothing_to_do(state), **change)
            assert await store.commit(seen(state), plan, lease=lease) > state.revision
            state = await store.load("chat")
            assert await store.commit(seen(state), plan, lease=lease) == state.revision, "the same again is none"
            assert list(await store.decisions("chat")) == [], "nothing was done: nothing to log"

        run(scenario)

    def test_the_note_says_what_the_last_plan_waits_for(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            state, lease = await begin(store)
            notes = (Note(1, BECAUSE),)
            full = replace(BECAUSE, text="no GPU is free \x00 \ud800")
            for plan, note in (
                (replace(nothing_to_do(state), notes=notes), ""),
                (replace(nothing_to_do(state), notes=notes, waiting=(full, full)), full.text),
                (replace(nothing_to_do(state), waiting=(full, BECAUSE)), f"{full.text} {BECAUSE.text}"),
                (nothing_to_do(state), ""),
            ):
                await store.commit(seen(await store.load("chat")), plan, lease=lease)
                assert (await store.load("chat")).note == note

        run(scenario)

    def test_what_is_learnt_of_pools_is_shared_by_all_services(self, run: Run) -> None:
        entry = Cooldown("aws/us-east-1", "p5*", "SPOT", CooldownKind.CAPACITY, 1.5, 60.5, 2, "no capacity")

        async def scenario(store: Store) -> None:
            state, lease = await begin(store)
            await store.create(a_spec("other"), uid="u2", port=30002, now=1.0)
            await store.commit(seen(state), replace(nothing_to_do(state), learnt=(entry,)), lease=lease)
            assert (await store.load("other")).health == (entry,)
            assert tuple(await store.health()) == (entry,)
            state = await store.load("chat")
            again = replace(entry, strikes=3, until_at=99.5)
            await store.commit(seen(state), replace(nothing_to_do(state), learnt=(again,)), lease=lease)
            assert tuple(await store.health()) == (again,)
            state = await store.load("chat")
            cleared = replace(entry, strikes=0)
            await store.commit(seen(state), replace(nothing_to_do(state), learnt=(cleared,)), lease=lease)
            assert tuple(await store.health()) == ()

        run(scenario)

    def test_health_can_be_forgotten(self, run: Run) -> None:
        entries = [Cooldown(place, "*", "*", CooldownKind.QUOTA, 1.0, 60.0, 1, "quota") for place in ("aws", "gcp")]

        async def scenario(store: Store) -> None:
            state, lease = await begin(store)
            await store.commit(seen(state), replace(nothing_to_do(state), learnt=tuple(entries)), lease=lease)
            assert await store.forget_health(entries[0].scope) == 1
            assert await store.forget_health("nowhere") == 0
            assert tuple(await store.health()) == (entries[1],)
            await store.delete("chat")
            assert tuple(await store.health()) == (entries[1],)
            assert await store.forget_health(None) == 1

        run(scenario)

    def test_the_first_readiness_is_remembered(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            state, lease = await begin(store)
            for now, status, expected in (
                (20.0, ReplicaStatus.STARTING, None),
                (21.5, ReplicaStatus.READY, 21.5),
                (22.0, ReplicaStatus.NOT_READY, 21.5),
                (23.0, ReplicaStatus.READY, 21.5),
            ):
                state = await store.load("chat")
                plan = replace(nothing_to_do(state), replicas=(a_replica(1, status),))
                await store.commit(seen(state, now), plan, lease=lease)
                assert (await store.load("chat")).first_ready_at == expected

        run(scenario)

    def test_what_was_seen_before_another_write_is_refused(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            state, lease = await begin(store)
            await store.evict("chat", 1)
            error = await refused(Conflict, store.commit(seen(state), launching(state, 1), lease=lease))
            assert str(state.revision) in error.message
            assert (await store.load("chat")).replicas == ()
            assert list(await store.decisions("chat")) == []

        run(scenario)

    def test_every_write_but_a_renewal_is_a_new_revision(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            await begin(store)
            for write in (
                store.put_version(a_spec(), mode=UpdateMode.ROLLING, now=11.0),
                store.evict("chat", 1),
                store.want_down("chat", purge=False),
                store.want_down("chat", purge=True),
                store.lease("chat", "controller-b", now=99.0, ttl_s=5.0),
            ):
                before = (await store.load("chat")).revision
                await write
                assert (await store.load("chat")).revision > before

        run(scenario)

    def test_a_renewed_lease_keeps_its_fence_and_disturbs_nothing(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            state, lease = await begin(store)
            renewed = await store.lease("chat", "controller-a", now=25.0, ttl_s=30.0)
            assert renewed == replace(lease, expires_at=55.0)
            assert await store.load("chat") == state
            await store.commit(seen(state), launching(state, 1), lease=lease)
            assert (await store.load("chat")).replicas == (a_replica(1),)

        run(scenario)

    def test_a_lease_passes_on_only_when_it_has_run_out(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            _, lease = await begin(store)
            error = await refused(LeaseLost, store.lease("chat", "controller-b", now=39.9, ttl_s=30.0))
            assert "controller-a" in error.message
            taken = await store.lease("chat", "controller-b", now=40.0, ttl_s=30.0)
            assert taken == Lease("chat", "controller-b", lease.fence + 1, 70.0)
            await refused(LeaseLost, store.lease("chat", "controller-a", now=41.0, ttl_s=30.0))

        run(scenario)

    def test_a_lost_lease_may_not_write_any_more(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            _, lease = await begin(store)
            await store.lease("chat", "controller-b", now=99.0, ttl_s=1.0)
            again = await store.lease("chat", "controller-a", now=199.0, ttl_s=1.0)
            assert again.fence == lease.fence + 2
            state = await store.load("chat")
            error = await refused(LeaseLost, store.commit(seen(state), launching(state, 1), lease=lease))
            assert "controller-a" in error.message
            forged = replace(again, holder="controller-c")
            await refused(LeaseLost, store.commit(seen(state), nothing_to_do(state), lease=forged))
            await refused(LeaseLost, store.commit(seen(state), nothing_to_do(state), lease=replace(again, service="x")))
            await store.commit(seen(state), launching(state, 1), lease=again)

        run(scenario)

    def test_evictions_stay_until_the_replica_is_no_longer_alive(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            state, lease = await begin(store)
            await store.commit(seen(state), launching(state, 1, 2, 3), lease=lease)
            for id_ in (3, 1, 2, 3):
                await store.evict("chat", id_)
            state = await store.load("chat")
            assert state.evict == (1, 2, 3)
            draining = (a_replica(1), a_replica(2, ReplicaStatus.DRAINING))
            revision = await store.commit(seen(state), replace(nothing_to_do(state), replicas=draining), lease=lease)
            after = await store.load("chat")
            assert (after.evict, after.revision) == ((1,), revision)

        run(scenario)

    def test_down_is_remembered_and_purging_stays_asked_for(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            await begin(store)
            for purge, expected in ((False, False), (True, True), (False, True)):
                await store.want_down("chat", purge=purge)
                state = await store.load("chat")
                assert (state.wanted, state.purge) == (False, expected)

        run(scenario)

    def test_a_deleted_service_leaves_nothing_behind(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            state, lease = await begin(store)
            await store.commit(seen(state), launching(state, 1), lease=lease)
            await store.evict("chat", 1)
            await store.delete("chat")
            await store.delete("chat")
            assert list(await store.services()) == []
            assert list(await store.decisions("chat")) == []
            fresh = await store.create(a_spec(), uid="u2", port=30001, now=50.0)
            assert (fresh.replicas, fresh.evict, fresh.next_replica_id) == ((), (), 1)

        run(scenario)

    def test_a_namesake_is_another_service(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            state, lease = await begin(store)
            await store.delete("chat")
            await refused(Conflict, store.commit(seen(state), launching(state, 1), lease=lease))
            await store.create(a_spec(), uid="u2", port=30001, now=50.0)
            namesake = await store.lease("chat", "controller-a", now=50.0, ttl_s=30.0)
            assert namesake == replace(lease, expires_at=80.0), "nothing but the uid tells the two apart"
            await refused(Conflict, store.commit(seen(state), launching(state, 1), lease=lease))

        run(scenario)

    def test_services_do_not_mix(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            state, lease = await begin(store)
            other, _ = await begin(store, "other")
            await store.commit(seen(state), launching(state, 1), lease=lease)
            await store.evict("chat", 1)
            assert await store.load("other") == other
            assert list(await store.decisions("other")) == []
            await store.delete("other")
            assert (await store.load("chat")).evict == (1,)

        run(scenario)

    def test_decisions_are_kept_as_they_were_made(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            state, lease = await begin(store)
            made = []
            for id_ in (1, 2, 3):
                made.append((seen(state, 20.0 + id_), launching(state, id_)))
                await store.commit(*made[-1], lease=lease)
                state = await store.load("chat")
            log = await store.decisions("chat")
            assert [(entry.observation, entry.plan) for entry in log] == made
            assert [(entry.seq, entry.at) for entry in log] == [(1, 21.0), (2, 22.0), (3, 23.0)]
            assert all(entry.policy for entry in log)

        run(scenario)

    @pytest.mark.parametrize(
        ("after", "limit", "expected"),
        [
            (0, None, [1, 2, 3, 4]),
            (2, None, [3, 4]),
            (0, 2, [3, 4]),
            (1, 2, [3, 4]),
            (3, 2, [4]),
            (4, 2, []),
            (0, 0, []),
        ],
    )
    def test_the_newest_decisions_are_given_oldest_first(
        self, run: Run, after: int, limit: int | None, expected: list[int]
    ) -> None:
        async def scenario(store: Store) -> None:
            state, lease = await begin(store)
            for _ in range(4):
                plan = replace(nothing_to_do(state), notes=(Note(None, BECAUSE),))
                await store.commit(seen(await store.load("chat")), plan, lease=lease)
            log = await store.decisions("chat", after=after, limit=limit)
            assert [entry.seq for entry in log] == expected

        run(scenario)

    def test_of_two_creations_exactly_one_wins(self, run: Run) -> None:
        async def scenario(store: Store, other: Store) -> None:
            for number in range(5):
                spec = a_spec(f"chat-{number}")
                results = await asyncio.gather(
                    store.create(spec, uid="ours", port=30001, now=1.0),
                    other.create(spec, uid="theirs", port=30002, now=1.0),
                    return_exceptions=True,
                )
                won = [result for result in results if isinstance(result, ServiceState)]
                lost = [result for result in results if isinstance(result, ServiceExists)]
                assert (len(won), len(lost)) == (1, 1)
                assert await store.load(spec.name) == won[0]

        run(scenario, 2)

    def test_of_two_controllers_exactly_one_gets_the_lease(self, run: Run) -> None:
        async def scenario(store: Store, other: Store) -> None:
            await store.create(a_spec(), uid="u1", port=30001, now=1.0)
            for round_ in range(5):
                now = 100.0 * round_
                results = await asyncio.gather(
                    store.lease("chat", f"a-{round_}", now=now, ttl_s=10.0),
                    other.lease("chat", f"b-{round_}", now=now, ttl_s=10.0),
                    return_exceptions=True,
                )
                won = [result for result in results if isinstance(result, Lease)]
                lost = [result for result in results if isinstance(result, LeaseLost)]
                assert (len(won), len(lost)) == (1, 1)
                assert won[0].fence == round_ + 1

        run(scenario, 2)

    def test_of_two_commits_on_one_revision_exactly_one_is_kept(self, run: Run) -> None:
        async def scenario(store: Store, other: Store) -> None:
            state, lease = await begin(store)
            for _ in range(5):
                id_ = state.next_replica_id
                results = await asyncio.gather(
                    store.commit(seen(state, 1.0), launching(state, id_), lease=lease),
                    other.commit(seen(state, 2.0), launching(state, id_, id_ + 1), lease=lease),
                    return_exceptions=True,
                )
                assert sorted(type(result).__name__ for result in results) == ["Conflict", "int"]
                state = await other.load("chat")
                entry = (await store.decisions("chat"))[-1]
                assert entry.at == (1.0 if isinstance(results[0], int) else 2.0)
                assert state.replicas == entry.plan.replicas

        run(scenario, 2)

    def test_versions_put_at_once_get_a_number_each(self, run: Run) -> None:
        async def scenario(store: Store, other: Store) -> None:
            await begin(store)
            puts = [
                each.put_version(a_spec(run=f"{n}"), mode=UpdateMode.ROLLING, now=1.0)
                for n in range(5)
                for each in (store, other)
            ]
            assert sorted(await asyncio.gather(*puts)) == list(range(2, 12))

        run(scenario, 2)

    def test_closing_twice_is_fine_and_using_a_closed_store_is_refused(self, run: Run) -> None:
        async def scenario(store: Store) -> None:
            await store.close()
            await store.close()
            await refused(StoreUnavailable, store.services())

        run(scenario)
