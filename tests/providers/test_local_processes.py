"""No process outlives its instance, whatever it does to escape."""

from __future__ import annotations

import asyncio
import os
import signal
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.providers.local_rig import LocalRig, in_state, local_rig, wait_until

from skyserve.model.evidence import InstanceState

ESCAPES = {
    "background": "sleep 1000 &",
    "own session": "setsid sleep 1000 &",
    "nohup, own session, no output": "setsid nohup sleep 1000 </dev/null >/dev/null 2>&1 &",
    "daemonized twice": "(setsid sh -c '(sleep 1000 >/dev/null 2>&1 &) ; exit 0' &)",
    "renamed": "(exec -a VLLM::EngineCore sleep 1000) &",
    "cleared environment": "env -i setsid sleep 1000 &",
    "ignores SIGTERM": "(trap '' TERM; setsid sleep 1000) &",
}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[LocalRig]:
    with local_rig(tmp_path, grace_s=0.3, stop_patience_s=0.2) as rig:
        yield rig


@pytest.mark.parametrize("escape", ESCAPES.values(), ids=ESCAPES.keys())
def test_what_tries_to_escape_is_gone_when_the_instance_is(rig: LocalRig, escape: str) -> None:
    order = rig.order(f"{escape}\necho listening\nexec sleep 1000")

    async def scenario() -> None:
        await rig.up(order)
        await rig.logged("listening")
        await rig.clear()

    asyncio.run(scenario())
    assert rig.leftovers() == []


@pytest.mark.parametrize("escape", ESCAPES.values(), ids=ESCAPES.keys())
def test_what_tries_to_escape_ends_with_the_main_process(rig: LocalRig, escape: str) -> None:
    instance = asyncio.run(rig.ended(rig.order(f"{escape}\nsleep 0.1; exit 7")))
    assert (instance.exit_code, instance.failed_phase) == (7, "run")
    wait_until(lambda: not rig.leftovers())
    assert rig.leftovers() == []


def test_an_engine_that_ignores_sigterm_is_killed_after_the_grace(rig: LocalRig) -> None:
    order = rig.order("trap '' TERM; echo listening; while true; do sleep 1; done")

    async def scenario() -> float:
        await rig.up(order)
        await rig.logged("listening")
        began = time.monotonic()
        await rig.provider.terminate("t1")
        assert time.monotonic() - began < 0.2, "terminate returns on acceptance"
        await rig.until(lambda listed: not listed)
        return time.monotonic() - began

    assert 0.3 <= asyncio.run(scenario()) < 3


def test_an_engine_may_end_in_peace(rig: LocalRig) -> None:
    order = rig.order("trap 'echo saved; exit 0' TERM; echo listening; while true; do sleep 0.05; done")

    async def scenario() -> str:
        await rig.up(order)
        await rig.logged("listening")
        await rig.clear()
        return await rig.logs()

    assert asyncio.run(scenario()).endswith("saved\n[skyserve] stopped\n")


def test_a_signal_that_ends_the_engine_is_told_as_shells_do(rig: LocalRig) -> None:
    instance = asyncio.run(rig.ended(rig.order("kill -SEGV $$")))
    assert instance.exit_code == 128 + signal.SIGSEGV


def test_the_last_words_of_an_engine_that_exits_at_once_are_the_detail(rig: LocalRig) -> None:
    instance = asyncio.run(rig.ended(rig.order(r"""printf 'one\n\033[31mCUDA\a out of memory\033[0m\n'; exit 1""")))
    assert instance.detail == "one\n[31mCUDA out of memory[0m"


def test_long_last_words_are_cut(rig: LocalRig) -> None:
    instance = asyncio.run(rig.ended(rig.order("for i in 1 2 3 4 5 6 7; do printf %0300d $i; echo; done; exit 1")))
    lines = instance.detail.splitlines()
    assert [len(line) for line in lines] == [200, 200, 200, 200, 200]


def test_a_killed_supervisor_is_told_and_nothing_survives(rig: LocalRig) -> None:
    order = rig.order("sleep 1000 & setsid sleep 1000 & env -i sleep 1000 & echo listening; wait")

    async def scenario() -> str:
        await rig.up(order)
        await rig.logged("listening")
        report = rig.instance().report
        assert report
        os.kill(report["pid"], signal.SIGKILL)
        [instance] = await rig.until(in_state(InstanceState.EXITED))
        assert rig.leftovers() == [], "an instance that exited has no process left"
        assert (instance.exit_code, instance.failed_phase) == (None, "run")
        await rig.provider.terminate("t1")
        assert await rig.provider.instances() == ()
        return instance.detail

    assert "the supervisor is gone without a word" in asyncio.run(scenario())


def test_the_main_process_dies_with_its_supervisor_even_if_nobody_looks(rig: LocalRig) -> None:
    asyncio.run(rig.up(rig.order("exec sleep 1000")))
    report = rig.instance().report
    assert report
    os.kill(report["pid"], signal.SIGKILL)
    wait_until(lambda: not rig.leftovers())
    assert rig.leftovers() == []


def test_a_supervisor_that_does_not_stop_is_killed(rig: LocalRig) -> None:
    async def scenario() -> None:
        await rig.up(rig.order())
        report = rig.instance().report
        assert report
        os.kill(report["pid"], signal.SIGSTOP)
        await rig.provider.terminate("t1")
        assert [one.state for one in await rig.provider.instances()] == [InstanceState.STOPPING]
        await rig.until(lambda listed: not listed)

    asyncio.run(scenario())
    assert rig.leftovers() == []


def test_a_supervisor_is_small_and_asleep(rig: LocalRig) -> None:
    asyncio.run(rig.up(rig.order()))
    asyncio.run(rig.logged("listening"))
    report = rig.instance().report
    assert report
    proc = Path(f"/proc/{report['pid']}")
    assert _status(proc, "VmRSS") < 15 * 1024
    wakes = _status(proc, "voluntary_ctxt_switches")
    time.sleep(0.3)
    assert _status(proc, "voluntary_ctxt_switches") == wakes


def test_a_flood_of_output_is_rotated_and_never_stops_the_engine(tmp_path: Path) -> None:
    with local_rig(tmp_path, log_bytes=10_000) as rig:
        script = textwrap.dedent("""
            for i in $(seq 2000); do echo "line $i of a flood"; done
            exit 9
        """)
        assert asyncio.run(rig.ended(rig.order(script))).exit_code == 9
        parts = sorted(path.name for path in rig.instance().path.glob("log*"))
        assert parts == ["log", "log.1", "log.2"]
        assert sum((rig.instance().path / part).stat().st_size for part in parts) < 100_000
        assert asyncio.run(rig.logs(tail=2)) == "line 2000 of a flood\n[skyserve] run ended with exit code 9\n"


def _status(proc: Path, field: str) -> int:
    lines = (proc / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
