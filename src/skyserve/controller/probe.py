"""Readiness probes: one task per replica, concurrent, beside the loop. A slow replica delays nobody else."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import aiohttp

from skyserve.clock import Clock, sleep_unless
from skyserve.model.evidence import ProbeResult
from skyserve.model.replica import Replica, ReplicaStatus
from skyserve.model.service import ReadinessProbe, ReplicaTls
from skyserve.spec.substitute import substitute, substitute_json
from skyserve.trust import context_for

FIRST_INTERVAL_S = 0.25
"""A replica that starts or has stumbled is asked this soon again; the longer it takes, the more seldom."""
PATIENCE = 20.0
"""... namely every 1/PATIENCE of the time it has been waited for, up to the configured interval."""

_PROBED = frozenset({ReplicaStatus.STARTING, ReplicaStatus.READY, ReplicaStatus.NOT_READY})


@dataclass(frozen=True, slots=True)
class Question:
    """What one replica is asked, complete. Secrets may be filled in, so body and headers are never shown."""

    endpoint: str
    path: str
    body: bytes | None = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    timeout_s: float
    interval_s: float
    tls: ReplicaTls | None = None


def question(
    endpoint: str, probe: ReadinessProbe, values: Mapping[str, str], tls: ReplicaTls | None = None
) -> Question:
    """A spec's probe for one endpoint, with envs and secrets filled in."""
    headers = {name: substitute(value, values) for name, value in probe.headers.items()}
    body = None
    if probe.post_data is not None:
        body = substitute_json(probe.post_data, values).encode()
        if not any(name.lower() == "content-type" for name in headers):
            headers["Content-Type"] = "application/json"
    timeout_s, interval_s = probe.timeout_seconds, probe.endpoint_probe_interval_seconds
    return Question(endpoint, probe.path, body, headers, timeout_s, interval_s, tls)


class Prober:
    """Asks the replicas of one service. `nudge` is called when an answer differs from the one before."""

    def __init__(self, session: aiohttp.ClientSession, clock: Clock, nudge: Callable[[], None]) -> None:
        self._session = session
        self._clock = clock
        self._nudge = nudge
        self._tasks: dict[int, tuple[Question, asyncio.Task[None]]] = {}
        self._hurry: dict[int, asyncio.Event] = {}
        self._results: dict[int, ProbeResult] = {}

    def results(self) -> Mapping[int, ProbeResult]:
        """The latest answer of each replica that is being asked."""
        return dict(self._results)

    def follow(self, questions: Mapping[int, Question]) -> None:
        """Ask exactly these replicas from now on; a changed question, or one whose task broke, starts afresh."""
        for replica_id, (asked, task) in list(self._tasks.items()):
            if questions.get(replica_id) != asked or task.done():
                task.cancel()
                del self._tasks[replica_id]
                self._results.pop(replica_id, None)
                self._hurry.pop(replica_id, None)
        for replica_id, wanted in questions.items():
            if replica_id not in self._tasks:
                self._hurry[replica_id] = asyncio.Event()
                self._tasks[replica_id] = (wanted, asyncio.create_task(self._ask_for_ever(replica_id, wanted)))

    def hurry(self, replica_id: int) -> None:
        """Ask this one now: the door could not reach it."""
        if replica_id in self._hurry:
            self._hurry[replica_id].set()

    async def _ask_for_ever(self, replica_id: int, asked: Question) -> None:
        hurry = self._hurry[replica_id]
        waiting_since_at = self._clock.now()
        while True:
            hurry.clear()
            ok, detail = await ask(self._session, asked)
            before = self._results.get(replica_id)
            result = ProbeResult(replica_id, self._clock.now(), ok, detail)
            self._results[replica_id] = result
            if before is None or before.ok is not ok:
                waiting_since_at = result.at
                self._nudge()
            pause_s = asked.interval_s if ok else self._impatient(asked, result.at - waiting_since_at)
            await sleep_unless(self._clock, hurry, pause_s)

    @staticmethod
    def _impatient(asked: Question, waited_s: float) -> float:
        return min(asked.interval_s, max(FIRST_INTERVAL_S, waited_s / PATIENCE))

    async def close(self) -> None:
        """Stop asking."""
        tasks = [task for _, task in self._tasks.values()]
        self.follow({})
        await asyncio.gather(*tasks, return_exceptions=True)


async def ask(session: aiohttp.ClientSession, asked: Question) -> tuple[bool, str]:
    """One probe: whether the answer was 200, and in words what it was instead."""
    method, tls = "GET" if asked.body is None else "POST", asked.tls
    try:
        async with session.request(
            method,
            f"{'https' if tls else 'http'}://{asked.endpoint}{asked.path}",
            data=asked.body,
            headers=asked.headers,
            timeout=aiohttp.ClientTimeout(total=asked.timeout_s),
            allow_redirects=False,
            ssl=context_for(tls) if tls else True,
            server_hostname=tls.server_name if tls else None,
        ) as response:
            return response.status == 200, f"{method} {asked.path} answered {response.status}"
    except TimeoutError:
        return False, f"{method} {asked.path} took longer than {asked.timeout_s:g}s"
    except aiohttp.ClientSSLError as error:
        return False, f"no TLS with {asked.endpoint}: {_why_not(error)}"
    except aiohttp.ClientConnectorError:
        return False, f"nothing accepts connections at {asked.endpoint}"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return False, f"{method} {asked.path} failed: {type(error).__name__}"


def _why_not(error: aiohttp.ClientSSLError) -> str:
    """What was wrong with a handshake, in few words."""
    cause = error.certificate_error if isinstance(error, aiohttp.ClientConnectorCertificateError) else error.os_error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {cause.verify_message}"
    return str(getattr(cause, "reason", None) or cause).lower().replace("_", " ")


def probed(replicas: tuple[Replica, ...]) -> list[tuple[Replica, str]]:
    """The replicas to ask, with their endpoints."""
    return [(r, r.endpoint) for r in replicas if r.status in _PROBED and r.endpoint]
