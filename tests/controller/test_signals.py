"""What the loop has read, and what it then knows: engines' metrics, the user's metric, schedules."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from tests.controller.rig import QuietScraper, Rig, chat, rig

from skyserve.clock import VirtualClock
from skyserve.controller.loop import observe, step
from skyserve.errors import StoreUnavailable
from skyserve.model.scaling import Bounds, CustomMetric, EngineSample, MetricReading, Schedule
from skyserve.model.service import ReplicaPolicy, ReplicaTls, ServiceSpec, UpdateMode
from skyserve.providers.fake import FakeProvider
from skyserve.store.secrets import SecretStore

METRIC = CustomMetric("http://queue/depth", 50, headers={"Authorization": "Bearer $TOKEN"})


def spec(policy: ReplicaPolicy, secrets: dict[str, str] | None = None) -> ServiceSpec:
    return replace(chat(), replica_policy=policy, secrets=secrets or {})


class LostSecrets:
    """Secrets on a disk that cannot be read."""

    def get(self, tag: str, version: int) -> dict[str, str]:
        raise StoreUnavailable("the secrets cannot be read")


async def up(tmp_path: Path, service: ServiceSpec) -> tuple[Rig, QuietScraper]:
    clock = VirtualClock()
    made = await rig(tmp_path, FakeProvider(clock), clock, service)
    assert isinstance(made.world.scraper, QuietScraper)
    return made, made.world.scraper


def test_pages_of_replicas_that_speak_tls_are_read_over_tls(tmp_path: Path) -> None:
    async def scenario() -> None:
        policy = ReplicaPolicy(1, 4, target_engine_waiting_per_replica=2)
        trust = ReplicaTls(verify=False)
        made, scraper = await up(tmp_path, replace(spec(policy), replica_tls=trust))
        (ready,) = await made.until_ready(1)
        assert scraper.pages == {ready.id: f"https://{ready.endpoint}/metrics"}
        assert dict(scraper.tls) == {ready.id: trust}
        await made.close()

    asyncio.run(scenario())


def test_pages_of_ready_replicas_are_read_where_a_target_needs_them(tmp_path: Path) -> None:
    async def scenario() -> None:
        policy = ReplicaPolicy(2, 4, target_engine_waiting_per_replica=2, engine_metrics_path="/m")
        made, scraper = await up(tmp_path, spec(policy))
        await made.step()
        assert scraper.pages == {}, "nobody is ready"
        ready = await made.until_ready(2)
        assert scraper.pages == {r.id: f"http://{r.endpoint}/m" for r in ready}
        assert scraper.metric is None
        made.world.prober.sick.add(ready[0].id)  # type: ignore[attr-defined]
        await made.step()
        assert scraper.pages.keys() == {ready[1].id}
        await made.world.store.want_down("chat", purge=False)
        await made.step()
        assert scraper.pages == {}
        await made.close()

    asyncio.run(scenario())


def test_without_such_a_target_nothing_is_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        made, scraper = await up(tmp_path, spec(ReplicaPolicy(2, 4, 1.0)))
        await made.until_ready(2)
        assert scraper.pages == {}
        assert scraper.metric is None
        await made.close()

    asyncio.run(scenario())


def test_each_replica_shows_its_metrics_where_its_own_version_says(tmp_path: Path) -> None:
    async def scenario() -> None:
        policy = ReplicaPolicy(1, 1, target_kv_cache_use=0.8)
        made, scraper = await up(tmp_path, spec(policy))
        (old,) = await made.until_ready(1)
        changed = replace(spec(replace(policy, engine_metrics_path="/new")), run="serve --faster")
        await made.world.store.put_version(changed, mode=UpdateMode.ROLLING, now=made.clock.now())
        paths = set()
        for _ in range(40):
            await made.step()
            paths.add(frozenset((id_, url.rpartition("/")[2]) for id_, url in scraper.pages.items()))
        assert frozenset({(old.id, "metrics")}) in paths
        assert frozenset({(old.id + 1, "new")}) in paths
        await made.close()

    asyncio.run(scenario())


def test_the_metric_is_asked_for_with_secrets_filled_in(tmp_path: Path) -> None:
    async def scenario() -> None:
        made, scraper = await up(tmp_path, spec(ReplicaPolicy(1, 4, custom_metric=METRIC), {"TOKEN": "fingerprint"}))
        readable, made.world.secrets = made.world.secrets, LostSecrets()
        with pytest.raises(StoreUnavailable):
            await step(made.world)
        assert scraper.metric is None, "without its secrets it is not asked"
        assert isinstance(readable, SecretStore)
        readable.put("chat-u1", 1, {"TOKEN": "hunter2"})
        made.world.secrets = readable
        await step(made.world)
        assert scraper.metric is not None
        assert scraper.metric.headers == {"Authorization": "Bearer hunter2"}
        await made.world.store.want_down("chat", purge=False)
        await made.step()
        assert scraper.metric is None
        await made.close()

    asyncio.run(scenario())


def test_what_was_read_is_observed(tmp_path: Path) -> None:
    async def scenario() -> None:
        morning, evening = Schedule("0 8 * * *", 3, 5), Schedule("0 20 * * *", 1)
        made, scraper = await up(tmp_path, spec(ReplicaPolicy(1, 4, schedules=(morning, evening))))
        scraper.heard = {1: EngineSample(1.0, waiting=2.0)}
        scraper.value = MetricReading(1.0, 7.0)
        eight_at = made.clock.now() // 86400 * 86400 + 86400 + 8 * 3600
        await made.clock.advance(eight_at - made.clock.now() - 1)
        found = []
        for _ in range(2):
            observation = await observe(made.world, await made.world.store.load("chat"))
            assert observation.engines == scraper.heard
            assert observation.metric == scraper.value
            found.append(observation.schedule)
            await made.clock.advance(1)
        assert found == [Bounds("0 20 * * *", 1, None, eight_at), Bounds("0 8 * * *", 3, 5, eight_at + 12 * 3600)]
        await made.close()

    asyncio.run(scenario())
