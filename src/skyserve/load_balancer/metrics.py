"""What the door counts for operators, as Prometheus text: requests, times, bytes, replicas, its own health.

It knows the door's numbers and the format. It must not know sockets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import add

from skyserve.load_balancer.door import Door
from skyserve.load_balancer.report import Histogram
from skyserve.load_balancer.wire import Sample

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FAMILIES = {
    "requests_total": ("counter", "Requests that have come."),
    "responses_total": ("counter", "Answers that have begun, by status code, the door's own included."),
    "retries_total": ("counter", "Requests that were sent once more."),
    "cuts_total": ("counter", "Answers that broke off."),
    "clients_gone_total": ("counter", "Requests whose client left before their end."),
    "ejections_total": ("counter", "Times that a replica was left out because it refused or did not answer."),
    "held_total": ("counter", "Requests that had to wait for a replica."),
    "request_body_bytes_total": ("counter", "Bytes of request bodies that came."),
    "response_body_bytes_total": ("counter", "Bytes of response bodies that went out."),
    "first_byte_seconds": ("histogram", "From a request's arrival to the head of its answer."),
    "request_seconds": ("histogram", "From a request's arrival to the end of its answer."),
    "loop_lag_seconds": ("histogram", "How late the event loop did what was due."),
    "in_flight": ("gauge", "Requests that a replica has now."),
    "replica_first_byte_seconds": ("gauge", "Moving average of a replica's time to the first byte."),
    "replica_suspect": ("gauge", "Whether a replica refused or did not answer lately."),
    "held": ("gauge", "Requests that wait for a replica now."),
    "table_number": ("gauge", "Number of the routing table in force."),
    "table_age_seconds": ("gauge", "Since the controller was last heard."),
}

_LIKE = {"table_number": min, "table_age_seconds": max, "replica_first_byte_seconds": max, "replica_suspect": max}
"""How several workers' numbers make one, where that is not their sum."""

PREFIX = "skyserve_door_"


def samples(door: Door) -> Iterator[Sample]:
    """Every number, in the order of the families."""
    counters, now = door.counters, door.time()
    yield "requests_total", (), counters.requests_total
    for status, count in sorted(counters.responses.items()):
        yield "responses_total", (("code", str(status)),), count
    yield "retries_total", (), counters.retries
    yield "cuts_total", (), counters.cuts
    yield "clients_gone_total", (), counters.clients_gone
    yield "ejections_total", (), door.pool.ejections
    yield "held_total", (), door.hold.total
    yield "request_body_bytes_total", (), counters.bytes_in
    yield "response_body_bytes_total", (), counters.bytes_out
    yield from _histogram("first_byte_seconds", counters.first_byte)
    yield from _histogram("request_seconds", counters.whole)
    yield from _histogram("loop_lag_seconds", counters.lag)
    pages = sorted(door.pool.pages(), key=lambda page: page.replica_id)
    yield from (("in_flight", (("replica", str(page.replica_id)),), page.own) for page in pages)
    yield from (("replica_first_byte_seconds", (("replica", str(page.replica_id)),), page.ewma_s) for page in pages)
    yield from (("replica_suspect", (("replica", str(page.replica_id)),), int(page.suspect)) for page in pages)
    yield "held", (), len(door.hold)
    yield "table_number", (), door.table.number
    yield "table_age_seconds", (), now - door.heard_at


def text(workers: Iterable[Iterable[Sample]]) -> str:
    """The page: the numbers of all workers as one."""
    summed: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for one in workers:
        for name, labels, value in one:
            known = summed.get((name, labels))
            summed[name, labels] = value if known is None else _LIKE.get(name, add)(known, value)
    order = {name: place for place, name in enumerate(_FAMILIES)}
    rows = sorted(summed.items(), key=lambda row: order[_family(row[0][0])])
    lines: list[str] = []
    family = ""
    for (name, labels), value in rows:
        of = _family(name)
        if of != family:
            family = of
            kind, meaning = _FAMILIES[of]
            lines += [f"# HELP {PREFIX}{of} {meaning}", f"# TYPE {PREFIX}{of} {kind}"]
        said = ",".join(f'{key}="{word}"' for key, word in labels)
        lines.append(f"{PREFIX}{name}{'{' + said + '}' if said else ''} {_number(value)}")
    return "\n".join(lines) + "\n"


def _family(name: str) -> str:
    return name if name in _FAMILIES else name.rpartition("_")[0]


def _histogram(name: str, histogram: Histogram) -> Iterator[Sample]:
    below = 0
    for bound, count in zip((*histogram.bounds, None), histogram.counts, strict=True):
        below += count
        yield f"{name}_bucket", (("le", "+Inf" if bound is None else f"{bound:g}"),), below
    yield f"{name}_sum", (), histogram.total
    yield f"{name}_count", (), below


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.9g}"
