"""Actions -> provider calls, all at once and off the loop's path. What became of them is observed in a later step."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Coroutine, Mapping

from skyserve.clock import Clock
from skyserve.controller.cluster import keep_up
from skyserve.controller.files import Files
from skyserve.decide.optimize import asked_for
from skyserve.errors import (
    CapacityUnavailable,
    CredentialsRejected,
    OrderRejected,
    PlaceRefused,
    ProviderError,
    ProviderUnavailable,
    QuotaExceeded,
    StoreError,
    Throttled,
)
from skyserve.model.codec import dumps
from skyserve.model.decision import Halt, Launch, Observation, Plan, Resume, Terminate
from skyserve.model.evidence import Listing, Outcome, OutcomeKind
from skyserve.model.replica import Replica
from skyserve.model.service import Kind, ServiceSpec
from skyserve.providers.base import LaunchOrder, Provider
from skyserve.store.secrets import SecretStore

_KINDS: tuple[tuple[type[ProviderError], OutcomeKind], ...] = (
    (CapacityUnavailable, OutcomeKind.CAPACITY),
    (QuotaExceeded, OutcomeKind.QUOTA),
    (Throttled, OutcomeKind.THROTTLED),
    (CredentialsRejected, OutcomeKind.CREDENTIALS),
    (OrderRejected, OutcomeKind.REJECTED),
)

log = logging.getLogger(__name__)


class Hands:
    """Calls under way for one service, and the outcomes that no committed step has seen yet.

    `hurry` is told which provider's listing is out of date.
    """

    def __init__(
        self,
        providers: Mapping[str, Provider],
        secrets: SecretStore,
        files: Files,
        clock: Clock,
        nudge: Callable[[], None],
        hurry: Callable[[str], None] = lambda provider: None,
    ) -> None:
        self._providers = providers
        self._secrets = secrets
        self._files = files
        self._clock = clock
        self._nudge = nudge
        self._hurry = hurry
        self._running: dict[str, asyncio.Task[Outcome]] = {}
        self._outcomes: dict[str, Outcome] = {}
        self._answered: dict[str, tuple[str, float]] = {}

    def outcomes(self) -> tuple[Outcome, ...]:
        """What calls came to since the last committed step."""
        return tuple(self._outcomes[key] for key in sorted(self._outcomes))

    def seen(self, outcomes: tuple[Outcome, ...]) -> None:
        """These are part of a committed step: forget them."""
        for outcome in outcomes:
            if self._outcomes.get(outcome.key) == outcome:
                del self._outcomes[outcome.key]

    def in_flight(self, listings: Mapping[str, object]) -> tuple[str, ...]:
        """Calls under way, and terminations too recent for the listings to show what they did."""
        for instance_id, (provider, until_at) in list(self._answered.items()):
            listing = listings.get(provider)
            if isinstance(listing, Listing) and listing.at > until_at:
                del self._answered[instance_id]
        return tuple(sorted(self._running.keys() | self._answered.keys()))

    def start(self, observation: Observation, plan: Plan) -> None:
        """Start every call the plan asks for, unless the same one is still under way."""
        for action in plan.actions:
            if isinstance(action, Launch) and action.replica.offering is not None:
                order = self._launch(observation, action.replica, action.replica.offering.provider)
                self._start(action.replica.token, order)
            elif isinstance(action, Terminate | Halt | Resume):
                self._start(action.instance_id, self._change(action), listed_by=action.provider)

    def _start(self, key: str, call: Coroutine[None, None, Outcome], *, listed_by: str | None = None) -> None:
        if key in self._running:
            call.close()
            return
        task = self._running[key] = asyncio.create_task(call)
        task.add_done_callback(lambda done: self._record(key, done, listed_by))

    def _record(self, key: str, task: asyncio.Task[Outcome], listed_by: str | None) -> None:
        """Keep what a call came to. One that broke in a way that nobody foresaw got no clear answer.

        A termination, granted or refused, is not asked for again before a later listing still shows the instance.
        """
        del self._running[key]
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            outcome = task.result()
        else:
            log.error("the call for %s broke off", key, exc_info=error)
            detail = f"internal error: {type(error).__name__}: {error}"
            outcome = Outcome(key, OutcomeKind.UNAVAILABLE, self._clock.now(), detail=detail)
        self._outcomes[key] = outcome
        if listed_by is not None:
            self._answered[key] = (listed_by, outcome.at + outcome.retry_after_s)
            self._hurry(listed_by)
        self._nudge()

    async def _launch(self, observation: Observation, replica: Replica, provider_name: str) -> Outcome:
        spec = observation.specs[replica.launched_version]
        try:
            order = launch_order(observation.tag, spec, replica, self._secrets, self._files)
        except StoreError as error:  # its secrets are damaged: the same order cannot be written next time either
            return Outcome(replica.token, OutcomeKind.REJECTED, self._clock.now(), detail=error.message)
        try:
            instance = await self._provider(provider_name).launch(order)
        except ProviderError as error:
            return refusal(replica.token, error, self._clock.now())
        return Outcome(replica.token, OutcomeKind.ACCEPTED, self._clock.now(), instance_id=instance.id)

    async def _change(self, action: Terminate | Halt | Resume) -> Outcome:
        instance_id = action.instance_id
        try:
            provider = self._provider(action.provider)
            if isinstance(action, Terminate):
                await provider.terminate(instance_id)
            elif isinstance(action, Halt):
                await provider.stop(instance_id)
            else:
                await provider.start(instance_id)
        except ProviderError as error:
            return refusal(instance_id, error, self._clock.now())
        return Outcome(instance_id, OutcomeKind.ACCEPTED, self._clock.now())

    def _provider(self, name: str) -> Provider:
        if name not in self._providers:
            raise ProviderUnavailable(f"{name} is not enabled here any more")
        return self._providers[name]

    async def close(self) -> None:
        """Stop waiting for answers; what was asked for shows up in the listings."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def refusal(key: str, error: ProviderError, now: float) -> Outcome:
    """A provider's error as an outcome: the class decides the reaction."""
    kind = next((kind for cls, kind in _KINDS if isinstance(error, cls)), OutcomeKind.UNAVAILABLE)
    if isinstance(error, PlaceRefused):
        place = {"location": error.location, "instance_types": error.instance_types}
        return Outcome(key, kind, now, detail=error.message, retry_after_s=error.retry_after_s, **place)
    retry_after_s = error.retry_after_s if isinstance(error, Throttled) else 0.0
    return Outcome(key, kind, now, detail=error.message, retry_after_s=retry_after_s)


def launch_order(tag: str, spec: ServiceSpec, replica: Replica, secrets: SecretStore, files: Files) -> LaunchOrder:
    """All that a machine needs to become this replica."""
    if replica.offering is None:
        raise ValueError(f"replica {replica.id} has no offering yet")
    version = replica.launched_version
    asked = asked_for(replica.offering, spec.resources)
    return LaunchOrder(
        service=tag,
        service_name=spec.name,
        replica_id=replica.id,
        version=version,
        token=replica.token,
        workspace=_workspace(spec, version),
        offering=replica.offering,
        run=keep_up(spec.run) if spec.kind is Kind.CLUSTER else spec.run,
        setup=spec.setup,
        port=spec.port,
        envs=dict(spec.envs),
        secrets=secrets.get(tag, version) if spec.secrets else {},
        workdir=str(files.workdir(version)) if spec.workdir else None,
        file_mounts={target: str(files.mount(version, target)) for target in spec.file_mounts},
        num_nodes=spec.num_nodes,
        ports=tuple(sorted(set(asked.ports) - {spec.port})),
        image_id=asked.image_id,
        disk_size=asked.disk_size,
        disk_tier=asked.disk_tier,
        labels=dict(asked.labels),
    )


def _workspace(spec: ServiceSpec, version: int) -> str:
    """Versions that share replicas share setup's result too; files that were copied belong to one version alone."""
    if spec.workdir or spec.file_mounts:
        return f"v{version}"
    launched_with = [
        spec.run,
        spec.setup or "",
        dumps(spec.resources),
        dumps(dict(spec.envs)),
        dumps(dict(spec.secrets)),
    ]
    return hashlib.sha256("\0".join(launched_with).encode()).hexdigest()[:16]
