"""`step`: observe, decide, commit, act. And `run`: one step after the other for as long as the service exists."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from skyserve.clock import Clock, sleep_unless
from skyserve.controller import keys
from skyserve.controller.metric import MetricQuestion, metric_question, needs_values
from skyserve.controller.probe import Question, probed, question
from skyserve.controller.senses import Acting, Doorkeeping, Probing, Quoting, Scraping, SecretReading, Watching
from skyserve.decide import progress
from skyserve.decide.reconcile import asks_for_change, decide
from skyserve.decide.rollout import on_trial
from skyserve.errors import Conflict, LeaseLost, StoreUnavailable
from skyserve.model.decision import Observation, Plan
from skyserve.model.evidence import Listing, LoadReport, Silent
from skyserve.model.offering import Offering
from skyserve.model.replica import ReplicaStatus
from skyserve.model.routing import RoutingTable
from skyserve.model.service import Kind, ReplicaTls, ServiceSpec
from skyserve.spec.cron import Timetable
from skyserve.store.base import Lease, ServiceState, Store

LEASE_S = 30.0
"""How long a controller that says nothing keeps its services to itself."""
STORE_RETRY_S = 1.0
LONGEST_SLEEP_S = 10.0
"""A service is looked at this often even when nothing is expected to happen."""
SHORTEST_PAUSE_S = 0.02
"""Nudges that come together are answered by one step."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class World:
    """One service's senses and hands. `trouble` is what keeps the loop from working, in words; empty when nothing.

    `asked` are the questions to replicas, by version and endpoint, so that those without
    secrets are not written anew on every step. `timetable` knows until when the bounds of a schedule hold.
    `last` is what was observed last, with what was then planned.
    """

    service: str
    holder: str
    store: Store
    secrets: SecretReading
    clock: Clock
    watches: Mapping[str, Watching]
    offers: Quoting
    prober: Probing
    scraper: Scraping
    hands: Acting
    door: Doorkeeping
    nudged: asyncio.Event = field(default_factory=asyncio.Event)
    trouble: str = ""
    lease: Lease | None = None
    asked: dict[tuple[int, str], Question] = field(default_factory=dict, repr=False)
    timetable: Timetable = field(default_factory=Timetable, repr=False)
    last: Observation | None = field(default=None, repr=False)

    def nudge(self) -> None:
        """Something happened: look again now."""
        self.nudged.set()

    def crosses(self, load: LoadReport) -> bool:
        """Whether a load report calls for another number of replicas than the one before: worth a look at once."""
        return self.last is not None and asks_for_change(self.last, load, self.clock.now())


async def step(world: World) -> Plan:
    """One turn of the loop. A crash anywhere in it is harmless: the next one begins again at observe."""
    lease = await _hold_lease(world)
    state = await world.store.load(world.service)
    observation = await observe(world, state)
    plan = decide(observation)
    try:
        revision = await world.store.commit(observation, plan, lease=lease)
    except LeaseLost:
        world.lease = None
        raise
    world.last = replace(observation, replicas=plan.replicas, memory=plan.memory)
    world.hands.seen(observation.outcomes)
    act(world, observation, plan, revision)
    return plan


async def _hold_lease(world: World) -> Lease:
    now = world.clock.now()
    if world.lease is None or world.lease.expires_at - now < LEASE_S / 2:
        world.lease = await world.store.lease(world.service, world.holder, now=now, ttl_s=LEASE_S)
    return world.lease


async def observe(world: World, state: ServiceState) -> Observation:
    """Gather what is known right now. Nothing here waits for a provider, a replica or the door."""
    tag = f"{state.name}-{state.uid}"
    answers, answered = _answers(world, state, tag), world.prober.results()
    offered = await _offerings(world, state)
    aim = state.memory.rollout.aim(state.latest_version)
    now, policy = world.clock.now(), state.specs[progress.carrier(state.latest_version, state.memory)].replica_policy
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
        providers=answers,
        probes={id_: answer for id_, answer in answered.items() if id_ > 0},
        trials={-id_: answer for id_, answer in answered.items() if id_ < 0},
        outcomes=world.hands.outcomes(),
        in_flight=world.hands.in_flight(answers),
        load=world.door.load,
        offerings=offered.pop(aim, ()),
        other_offerings=offered,
        evict=state.evict,
        halted=state.halted,
        health=state.health,
        memory=state.memory,
        created_at=state.created_at,
        engines=world.scraper.samples(),
        metric=world.scraper.reading(),
        schedule=world.timetable.bounds_at(policy.schedules, now),
    )


async def _offerings(world: World, state: ServiceState) -> dict[int, tuple[Offering, ...]]:
    """What there is for the version that the service aims for, and for the one that it may have to go back to."""
    if not state.wanted:
        return {}
    rollout = state.memory.rollout
    versions = {rollout.aim(state.latest_version), rollout.good}
    specs = {version: spec for version, spec in state.specs.items() if version in versions}
    return {version: await world.offers.of(spec, state.health) for version, spec in specs.items()}


def _answers(world: World, state: ServiceState, tag: str) -> dict[str, Listing | Silent]:
    """What each provider said last. One that has replicas and is not here any more is silent, like any other."""
    answers = {name: watch.answer(tag) for name, watch in world.watches.items()}
    for replica in state.replicas:
        if replica.offering is not None:
            name = replica.offering.provider
            if name not in answers:
                answers[name] = Silent(world.clock.now(), "it is not enabled here any more")
    return answers


def act(world: World, observation: Observation, plan: Plan, revision: int) -> None:
    """Start what the plan asks for: provider calls, the routing table, probes, readings. Nothing is waited for.

    Raises StoreUnavailable when the secrets that a question or the door needs cannot be read; all else has been done
    then, and the door lets nobody in whom it has not let in before.
    """
    world.hands.start(observation, plan)
    try:
        _publish(world, observation, plan, revision)
    finally:
        try:
            _probe(world, observation, plan)
        finally:
            _scrape(world, observation, plan)


def _publish(world: World, observation: Observation, plan: Plan, revision: int) -> None:
    """Tell the door. The API keys are those of the version that is aimed for, proven or not: a key that was taken away
    works no longer than until the next step. While the service goes down they need not be read any more."""
    aim = plan.memory.rollout.aim(observation.latest_version)
    guarded = observation.specs[aim]
    api_keys: tuple[str, ...] | None = None
    unreadable: StoreUnavailable | None = None
    try:
        api_keys = keys.digests(world.secrets, observation.tag, aim, guarded) if observation.wanted else None
    except StoreUnavailable as error:
        unreadable = error
    latest = observation.specs[progress.carrier(observation.latest_version, plan.memory)]
    world.door.publish(
        RoutingTable(
            number=revision,
            policy=latest.load_balancing_policy,
            settings=latest.load_balancer,
            endpoints=plan.endpoints,
            closing=not observation.wanted,
            tls=latest.tls,
            shares=plan.shares,
            ready_at=plan.ready_at,
            start_s=plan.start_s,
            api_keys=api_keys,
            keys_unread=api_keys is None and bool(guarded.load_balancer.api_keys),
        )
    )
    if unreadable is not None:
        raise unreadable


def _probe(world: World, observation: Observation, plan: Plan) -> None:
    """Ask the replicas whether they are ready; under the negative of its id also one that is on trial for the version
    that is aimed for."""
    questions: dict[int, Question] = {}
    following: dict[tuple[int, str], Question] = {}
    unreadable: StoreUnavailable | None = None
    aim = plan.memory.rollout.aim(observation.latest_version)
    tried = on_trial(observation.specs, plan.replicas, aim)
    wanted = [(replica.id, replica.version, endpoint) for replica, endpoint in probed(plan.replicas)]
    wanted += [(-replica.id, aim, endpoint) for replica, endpoint in probed(tuple(tried))]
    for place, version, endpoint in wanted:
        spec = observation.specs[version]
        if spec.kind is Kind.CLUSTER:
            continue
        key = (version, endpoint)
        asked = None if spec.secrets else world.asked.get(key)
        try:
            questions[place] = following[key] = asked or _question(world, observation.tag, spec, *key)
        except StoreUnavailable as error:
            unreadable = error
    world.asked = following
    world.prober.follow(questions)
    if unreadable is not None:
        raise unreadable


def _question(world: World, tag: str, spec: ServiceSpec, version: int, endpoint: str) -> Question:
    """What a replica of a version is asked."""
    secrets = world.secrets.get(tag, version) if spec.secrets else {}
    return question(endpoint, spec.readiness_probe, {**spec.envs, **secrets}, spec.replica_tls)


def _scrape(world: World, observation: Observation, plan: Plan) -> None:
    """Read what the policy goes by beside the requests: of ready replicas, and of the user's."""
    if not observation.wanted:
        world.scraper.follow({}, None)
        return
    pages: dict[int, str] = {}
    tls: dict[int, ReplicaTls] = {}
    carrier = progress.carrier(observation.latest_version, plan.memory)
    if observation.specs[carrier].replica_policy.reads_engines:
        for replica in plan.replicas:
            if replica.status is ReplicaStatus.READY and replica.endpoint:
                spec = observation.specs[replica.version]
                scheme, path = "https" if spec.replica_tls else "http", spec.replica_policy.engine_metrics_path
                pages[replica.id] = f"{scheme}://{replica.endpoint}{path}"
                if spec.replica_tls is not None:
                    tls[replica.id] = spec.replica_tls
    metric: MetricQuestion | None = None
    try:
        metric = _metric(world, observation, carrier)
    finally:
        world.scraper.follow(pages, metric, tls)


def _metric(world: World, observation: Observation, version: int) -> MetricQuestion | None:
    """What is asked for the user's metric, as this version wants it."""
    spec = observation.specs[version]
    metric = spec.replica_policy.custom_metric
    if metric is None:
        return None
    private = spec.secrets and needs_values(metric)
    secrets = world.secrets.get(observation.tag, version) if private else {}
    return metric_question(metric, {**spec.envs, **secrets})


async def run(world: World) -> None:
    """Step until the service is gone. A store that cannot be used is waited for; traffic goes on meanwhile."""
    while True:
        world.nudged.clear()
        try:
            plan = await step(world)
        except Conflict:
            continue
        except StoreUnavailable as error:
            _report_trouble(world, error.message)
            await world.clock.sleep(STORE_RETRY_S)
            continue
        world.trouble = ""
        if plan.finished:
            return
        await world.clock.sleep(SHORTEST_PAUSE_S)
        pause_s = min(LONGEST_SLEEP_S, plan.wake_at - world.clock.now())
        await sleep_unless(world.clock, world.nudged, max(0.0, pause_s))


def _report_trouble(world: World, message: str) -> None:
    if world.trouble != message:
        log.error("service %s: nothing can be decided: %s", world.service, message)
    world.trouble = message
