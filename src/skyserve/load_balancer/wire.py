"""The words between controller and door: one JSON object a line, both ways. Both ends use this module.

It knows the format and nothing else; it must not know sockets, and imports only the model.

Controller to door: `table`, `stop`. Door to controller: `hello` once, then `load`. Between the workers of a door: the
same but for `hello`, and `samples` to the first of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from skyserve.load_balancer.recent import by_version
from skyserve.model.evidence import LoadReport, VersionAnswers
from skyserve.model.routing import Endpoint, RoutingTable
from skyserve.model.service import LoadBalancer, ReplicaTls, Tls

_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._\-]+):[0-9]{1,5}")


class BadWord(ValueError):
    """A line that is not one of the words above; the text says why."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Accept nothing more, and exit when the requests under way are done, in `grace_s` seconds at the latest."""

    grace_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Hello:
    """The door introduces itself. `boot` is new in each life; `table` is the number it obeys; `port` it listens on."""

    boot: str
    pid: int
    table: int
    port: int


@dataclass(frozen=True, slots=True)
class DoorReport:
    """What the door tells of itself. Counts by status only grow while it lives (`load.boot`).

    `suspects` are ids of replicas that refused or did not answer: worth a probe at once.
    """

    load: LoadReport
    suspects: tuple[int, ...] = ()
    responses: Mapping[int, int] = field(default_factory=dict)
    retries: int = 0


Sample = tuple[str, tuple[tuple[str, str], ...], float]
"""A name, labels and their values, and the number."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What workers that are gone have counted."""

    requests_total: int = 0
    responses: Mapping[int, int] = field(default_factory=dict)
    retries: int = 0
    versions: tuple[VersionAnswers, ...] = ()

    def plus(self, report: DoorReport) -> Totals:
        """One more is gone, and this was its last report."""
        codes = {*self.responses, *report.responses}
        return Totals(
            self.requests_total + report.load.requests_total,
            {code: self.responses.get(code, 0) + report.responses.get(code, 0) for code in codes},
            self.retries + report.retries,
            by_version([*self.versions, *report.load.versions]),
        )


class Lines:
    """Cuts what arrives into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole now."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines


def encode_samples(samples: Iterable[Sample]) -> bytes:
    """One line: what a worker counts for operators."""
    return _line({"type": "samples", "samples": list(samples)})


def is_samples(line: bytes) -> bool:
    """Whether a line is for `decode_samples`."""
    return line.startswith(b'{"type":"samples"')


def decode_samples(line: bytes) -> list[Sample]:
    """Read what a worker counts. Raises BadWord."""
    rows = _object(line).get("samples")
    if not isinstance(rows, list):
        raise BadWord("samples is not a list")
    try:
        return [(str(name), tuple((str(k), str(v)) for k, v in labels), _number(value)) for name, labels, value in rows]
    except (TypeError, ValueError) as error:
        raise BadWord(f"malformed samples: {error!r}") from error


def encode_table(table: RoutingTable) -> bytes:
    """One line: the routing table."""
    return _line({"type": "table", **asdict(table)})


def encode_stop(stop: Stop) -> bytes:
    """One line: the order to stop."""
    return _line({"type": "stop", "grace_s": stop.grace_s})


def encode_hello(hello: Hello) -> bytes:
    """One line: the door's introduction."""
    return _line({"type": "hello", **asdict(hello)})


def encode_report(report: DoorReport) -> bytes:
    """One line: the door's report. `load.at` is not sent; whoever hears it knows when."""
    load = asdict(report.load)
    del load["at"]
    rest = {"suspects": report.suspects, "responses": dict(report.responses), "retries": report.retries}
    return _line({"type": "load", **load, **rest})


def decode_order(line: bytes) -> RoutingTable | Stop:
    """Read what the controller said. Raises BadWord."""
    word = _object(line)
    try:
        if word.get("type") == "table":
            return _table(word)
        if word.get("type") == "stop":
            return Stop(_number(word.get("grace_s", 10.0)))
    except (KeyError, TypeError, ValueError) as error:
        raise BadWord(f"malformed {word.get('type')}: {error!r}") from error
    raise BadWord(f"unknown type {word.get('type')!r}")


def decode_report(line: bytes, *, at: float) -> Hello | DoorReport:
    """Read what the door said; `at` is when it was heard, Unix seconds. Raises BadWord."""
    word = _object(line)
    try:
        if word.get("type") == "hello":
            return Hello(str(word["boot"]), _whole(word["pid"]), _whole(word["table"]), _whole(word["port"]))
        if word.get("type") == "load":
            return _report(word, at)
    except (KeyError, TypeError, ValueError) as error:
        raise BadWord(f"malformed {word.get('type')}: {error!r}") from error
    raise BadWord(f"unknown type {word.get('type')!r}")


def _line(word: Mapping[str, object]) -> bytes:
    return json.dumps(word, separators=(",", ":")).encode() + b"\n"


def _object(line: bytes) -> dict[str, object]:
    try:
        word = json.loads(line)
    except ValueError as error:
        raise BadWord(f"not JSON: {error}") from error
    return _mapping(word)


def _table(word: Mapping[str, object]) -> RoutingTable:
    return RoutingTable(
        number=_whole(word["number"]),
        policy=str(word.get("policy", "least_load")),
        settings=_settings(_mapping(word.get("settings", {}))),
        endpoints=tuple(_endpoint(_mapping(row)) for row in _list(word["endpoints"])),
        closing=word.get("closing") is True,
        tls=None if word.get("tls") is None else _tls(_mapping(word["tls"])),
        shares={int(key): _number(share) for key, share in _mapping(word.get("shares", {})).items()},
        ready_at=_number_or_none(word.get("ready_at")),
        start_s=_number_or_none(word.get("start_s")),
    )


def _tls(word: Mapping[str, object]) -> Tls:
    return Tls(str(word["keyfile"]), str(word["certfile"]))


def _settings(word: Mapping[str, object]) -> LoadBalancer:
    default = LoadBalancer()
    most, workers = word.get("max_concurrency_per_replica"), word.get("workers")
    return LoadBalancer(
        mode=_one_of(word.get("mode", default.mode), "proxy", "redirect"),
        stream_timeout_seconds=_number_or_none(word.get("stream_timeout_seconds")),
        queue_size=_whole(word.get("queue_size", default.queue_size)),
        queue_timeout_seconds=_number(word.get("queue_timeout_seconds", default.queue_timeout_seconds)),
        retry=_one_of(word.get("retry", default.retry), "idempotent", "safe"),
        connect_timeout_seconds=_number(word.get("connect_timeout_seconds", default.connect_timeout_seconds)),
        first_byte_timeout_seconds=_number_or_none(word.get("first_byte_timeout_seconds")),
        request_timeout_seconds=_number_or_none(word.get("request_timeout_seconds")),
        max_concurrency_per_replica=None if most is None else _whole(most),
        max_body_mib=_number_or_none(word.get("max_body_mib")),
        slow_start_seconds=_number(word.get("slow_start_seconds", default.slow_start_seconds)),
        session_key=str(word.get("session_key", default.session_key)),
        workers=None if workers is None else _whole(workers),
    )


def _endpoint(word: Mapping[str, object]) -> Endpoint:
    address, weight = str(word["address"]), _number(word.get("weight", 1.0))
    if not _ADDRESS.fullmatch(address) or int(address.rpartition(":")[2]) > 65535:
        raise BadWord(f"address {address!r} is not host:port")
    if weight <= 0:
        raise BadWord(f"weight {weight} is not positive")
    tls = word.get("tls")
    return Endpoint(
        _whole(word["replica_id"]),
        address,
        weight,
        word.get("draining") is True,
        None if tls is None else _replica_tls(_mapping(tls)),
        _whole(word.get("version", 0)),
    )


def _replica_tls(word: Mapping[str, object]) -> ReplicaTls:
    ca_file, name = word.get("ca_file"), word.get("server_name")
    return ReplicaTls(
        word.get("verify") is not False,
        None if ca_file is None else str(ca_file),
        None if name is None else str(name),
    )


def _report(word: Mapping[str, object], at: float) -> DoorReport:
    load = LoadReport(
        at=at,
        boot=str(word["boot"]),
        table=_whole(word["table"]),
        in_flight=_counts(word["in_flight"]),
        held=_whole(word["held"]),
        requests_total=_whole(word["requests_total"]),
        arrivals_per_s=_number(word["arrivals_per_s"]),
        window_s=_number(word["window_s"]),
        burst_arrivals_per_s=_number(word["burst_arrivals_per_s"]),
        burst_window_s=_number(word["burst_window_s"]),
        ongoing=_number(word["ongoing"]),
        burst_ongoing=_number(word["burst_ongoing"]),
        steady_ongoing=_number(word["steady_ongoing"]),
        quiet=_whole(word["quiet"]),
        first_byte=_whole_list(word["first_byte"]),
        whole=_whole_list(word["whole"]),
        done_per_s=_rates(word["done_per_s"]),
        busy=_rates(word["busy"]),
        versions=tuple(_answers(_mapping(row)) for row in _list(word["versions"])),
    )
    suspects = _whole_list(word["suspects"])
    return DoorReport(load, suspects, _counts(word["responses"]), _whole(word["retries"]))


def _answers(word: Mapping[str, object]) -> VersionAnswers:
    return VersionAnswers(
        version=_whole(word["version"]),
        answers=_whole(word["answers"]),
        errors=_whole(word["errors"]),
        first_byte=_whole_list(word["first_byte"]),
        whole=_whole_list(word["whole"]),
    )


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise BadWord(f"{value!r:.40} is not a list")
    return value


def _whole_list(value: object) -> tuple[int, ...]:
    return tuple(_whole(one) for one in _list(value))


def _rates(value: object) -> dict[int, float]:
    return {int(key): _number(rate) for key, rate in _mapping(value).items()}


def _counts(value: object) -> dict[int, int]:
    return {int(key): _whole(count) for key, count in _mapping(value).items()}


def _mapping(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise BadWord(f"{value!r:.40} is not an object")
    return value


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadWord(f"{value!r:.40} is not a whole number")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadWord(f"{value!r:.40} is not a number")
    return float(value)


def _number_or_none(value: object) -> float | None:
    return None if value is None else _number(value)


def _one_of(value: object, *words: str) -> str:
    if value not in words:
        raise BadWord(f"{value!r:.40} is not one of {', '.join(words)}")
    return str(value)
