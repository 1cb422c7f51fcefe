"""The command, the controller and the door on several clouds at once: fakes of their APIs, real hosts below them."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter

import pytest
from tests.bed.core import CloudCore, Machine
from tests.bed.hosts import Bed
from tests.e2e.cloud_sky import clouds, service_yaml
from tests.e2e.conftest import Sky, wait_for
from tests.e2e.test_service_life import Traffic, get

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

THREE = """
  - {infra: aws/us-east-1, instance_type: m6i.large}
  - {infra: gcp/us-central1, instance_type: e2-standard-2}
  - {infra: azure/eastus, instance_type: Standard_D2s_v5}
"""


@pytest.mark.bed
def test_one_service_on_three_clouds_outlives_a_region(bed: Bed, sky: Sky) -> None:
    with clouds(sky, bed, "aws", "gcp", "azure") as world:
        for core in world.cores.values():
            core.capacity["*"] = 1
        sky(
            *("serve", "up", str(service_yaml(sky, THREE, 3)), "-n", "chat", "-y", "--secret", "GREETING=hello"),
            timeout=180,
        )
        url = sky.endpoint()
        wait_for(lambda: {get(url)["cloud"] for _ in range(12)} == {"aws", "gcp", "azure"}, why="all three answer")
        assert {get(url)["greeting"] for _ in range(12)} == {"hello"}
        assert not any("hello" in machine.user_data for core in world.cores.values() for machine in core.leftovers())
        with Traffic(url) as traffic:
            time.sleep(1)
            (victim,) = world.cores["gcp"].leftovers()
            world.cores["gcp"].capacity["*"] = 0
            bed.host(victim.id).kill()
            world.cores["gcp"].vanish(victim.id)
            time.sleep(3)
        assert traffic.failures == []
        assert len(traffic.answers) > 20
        sky("serve", "down", "chat", "-y", timeout=120)
        world.all_gone()


@pytest.mark.bed
def test_notice_of_a_cloud_starts_a_replacement_before_the_machine_goes(bed: Bed, sky: Sky) -> None:
    place = "\n  - {infra: aws/us-east-1, instance_type: m6i.large, use_spot: true}\n"
    with clouds(sky, bed, "aws") as world:
        yaml = service_yaml(sky, place, 1)
        no_more = "replica_policy: {min_replicas: 1, spot_placer: dynamic_fallback}"  # one machine, and no stand-in
        yaml.write_text(yaml.read_text().replace("replicas: 1\n", f"{no_more}\n"))
        sky("serve", "up", str(yaml), "-n", "chat", "-y", "--secret", "GREETING=hello", timeout=180)
        core = world.cores["aws"]
        (victim,) = core.leftovers()
        with Traffic(sky.endpoint(), clients=2) as traffic:
            noticed_at = time.monotonic()
            core.interrupt(victim.id, notice_s=30.0)
            wait_for(lambda: len(core.leftovers()) == 2, seconds=20, why="no replacement")
            took_s = time.monotonic() - noticed_at
            wait_for(lambda: any(row["id"] != 1 for row in sky.ready().values()), seconds=60, why="not ready in time")
            wait_for(lambda: victim not in core.leftovers(), seconds=60, why="the old machine stays")
            time.sleep(1)
        assert took_s < 6.0, f"the replacement came {took_s:.1f}s after the notice"
        assert traffic.failures == []
        assert "INTERRUPTION_NOTICE" in sky("serve", "why", "chat")
        sky("serve", "down", "chat", "-y", timeout=120)
        world.all_gone()


def test_crashes_of_the_controller_leave_no_machine_and_make_no_second_one(sky: Sky) -> None:
    """200 launches and terminations of machines that never boot, while the controller is killed again and again."""
    rng = random.Random(7)
    rounds, replicas = 5, 40
    with clouds(sky, None, "gcp", boot_s=3600.0) as world:
        core = world.cores["gcp"]
        yaml = service_yaml(sky, "\n  - {infra: gcp/us-central1, instance_type: e2-standard-2}\n", replicas)
        done, kills, slowness = threading.Event(), 0, 1.0

        def disturb() -> None:
            nonlocal kills
            while not done.wait(rng.uniform(0.3, 3.0) * slowness):
                kills += world.kill_controller()

        launched: dict[str, Machine] = {}
        chaos = threading.Thread(target=disturb)
        chaos.start()
        try:
            for number in range(rounds):
                name, slowness = f"chat{number}", how_slow(sky)
                up = ("serve", "up", str(yaml), "-n", name, "-y", "--async", "--secret", "GREETING=x")
                wait_for(lambda n=name, up=up: tried(sky, *up) or exists(sky, n), seconds=90, why="it is not created")
                wait_for(lambda: all_launched(sky, core, replicas), seconds=90, why="not all are launched")
                launched |= core.machines
                down = ("serve", "down", name, "-y", "--async")
                wait_for(lambda n=name, down=down: tried(sky, *down) or not exists(sky, n), seconds=90)
                wait_for(lambda n=name: not exists(sky, n) and not core.leftovers(), seconds=90, why="some are left")
        finally:
            done.set()
            chaos.join()
        names = Counter(machine.name for machine in launched.values())
        assert len(names) >= rounds * replicas
        assert max(names.values()) == 1, "a replica got a second machine"
        assert kills >= rounds


def how_slow(sky: Sky) -> float:
    """How many times longer than usual a command takes now. A controller must live long enough to get somewhere."""
    began_at = time.monotonic()
    sky("--help")
    return max(1.0, (time.monotonic() - began_at) / 0.3)


def tried(sky: Sky, *args: str) -> bool:
    """Whether a command came through, with a controller that may be killed at any time."""
    with sky.start(*args) as process:
        process.communicate(timeout=60)
    return process.returncode == 0


def all_launched(sky: Sky, core: CloudCore, count: int) -> bool:
    """Whether there are so many machines. Asking brings the controller back, where it was killed."""
    tried(sky, "serve", "status")
    return len(core.leftovers()) >= count


def exists(sky: Sky, name: str) -> bool:
    with sky.start("serve", "status", name) as process:
        process.communicate(timeout=60)
    return process.returncode == 0


@pytest.mark.bed
def test_spot_is_stood_in_for_on_demand_and_comes_back(bed: Bed, sky: Sky) -> None:
    """The default policy of spot services, on machines that are really there: up, a zone that is lost, and after."""
    places = "".join(
        f"\n  - {{infra: aws/{region}, instance_type: m6i.large, use_spot: true}}"
        for region in ("us-east-1", "us-west-2")
    )
    with clouds(sky, bed, "aws") as world:
        yaml = service_yaml(sky, f"{places}\n", 1)
        sky("serve", "up", str(yaml), "-n", "chat", "-y", "--secret", "GREETING=hello", timeout=180)
        core = world.cores["aws"]

        def kinds() -> set[bool]:
            return {machine.spot for machine in core.leftovers()}

        wait_for(lambda: kinds() == {True}, seconds=120, why="on-demand machines stay")
        with Traffic(sky.endpoint(), clients=2) as traffic:
            seen = len(traffic.answers)
            for machine in core.leftovers():
                core.interrupt(machine.id, notice_s=20.0)
            wait_for(lambda: False in kinds(), seconds=30, why="nothing stands in")
            wait_for(lambda: kinds() == {True} and len(traffic.answers) > seen + 20, seconds=180, why="no way back")
        assert traffic.failures == []
        why = sky("serve", "why", "chat")
        assert "ON_DEMAND_FALLBACK" in why
        assert "BACK_TO_SPOT" in why
        sky("serve", "down", "chat", "-y", timeout=120)
        world.all_gone()
