"""The metrics page of an inference engine -> what matters to the number of replicas. Knows engines' names, asks nobody.

Of a page of a thousand lines some five are wanted: lines are found by how they begin, and only those are taken apart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from skyserve.model.scaling import EngineSample

WAITING = frozenset({b"vllm:num_requests_waiting", b"sglang:num_queue_reqs", b"tgi_queue_size",
                     b"llamacpp:requests_deferred"})  # fmt: skip
RUNNING = frozenset({b"vllm:num_requests_running", b"sglang:num_running_reqs", b"tgi_batch_current_size",
                     b"llamacpp:requests_processing"})  # fmt: skip
CACHE = frozenset({b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc", b"sglang:token_usage",
                   b"llamacpp:kv_cache_usage_ratio"})  # fmt: skip
GENERATED = frozenset({b"vllm:generation_tokens_total", b"tgi_request_generated_tokens_sum",
                       b"llamacpp:tokens_predicted_total"})  # fmt: skip
RATE = frozenset({b"sglang:gen_throughput", b"llamacpp:predicted_tokens_seconds"})
_BEGINNINGS = (*WAITING, *RUNNING, *CACHE, *GENERATED, *RATE)
_SERIES = re.compile(rb'([A-Za-z_:][\w:]*(?:\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\})?)[ \t]+(\S+)')


@dataclass(frozen=True, slots=True)
class Page:
    """One reading of a page. `generated` are counters of tokens, by series; `rate` is the engine's own reckoning."""

    waiting: float | None = None
    running: float | None = None
    kv_cache_use: float | None = None
    generated: Mapping[bytes, float] = field(default_factory=dict)
    rate: float | None = None

    @property
    def tells_anything(self) -> bool:
        """Whether any name on it was understood."""
        return self != Page()


def read_page(text: bytes) -> Page:
    """What a page says. Lines that make no sense are passed over; it never raises."""
    values: dict[bytes, float] = {}
    for line in text.split(b"\n"):
        if line.startswith(_BEGINNINGS):
            match = _SERIES.match(line)
            value = None if match is None else _number(match[2])
            if match is not None and value is not None:
                values[match[1]] = value
    return Page(
        waiting=_joined(values, WAITING, sum),
        running=_joined(values, RUNNING, sum),
        kv_cache_use=_share(_joined(values, CACHE, max)),
        generated={series: value for series, value in values.items() if _name(series) in GENERATED},
        rate=_joined(values, RATE, sum),
    )


def sampled(page: Page, at: float, before: Page | None, before_at: float) -> EngineSample:
    """A page as a sample; tokens a second come from the page `before`, where the engine counts tokens."""
    rate = page.rate
    if page.generated:
        rate = None if before is None else _rate(page.generated, before.generated, at - before_at)
    return EngineSample(at, page.waiting, page.running, page.kv_cache_use, rate)


def _rate(now: Mapping[bytes, float], before: Mapping[bytes, float], elapsed_s: float) -> float | None:
    """What counters grew by, a second. One that fell began anew from 0; one that is new says nothing yet."""
    common = now.keys() & before.keys()
    if not common or elapsed_s <= 0:
        return None
    grown = sum(now[series] - (before[series] if now[series] >= before[series] else 0.0) for series in common)
    return _finite(grown / elapsed_s)


def _joined(
    values: Mapping[bytes, float], names: frozenset[bytes], join: Callable[[list[float]], float]
) -> float | None:
    found = [value for series, value in values.items() if _name(series) in names]
    return _finite(join(found)) if found else None


def _name(series: bytes) -> bytes:
    return series.partition(b"{")[0]


def _share(value: float | None) -> float | None:
    return None if value is None else min(1.0, value)


def _number(text: bytes) -> float | None:
    """A number that counts something: finite, and not below 0."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value >= 0 and math.isfinite(value) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
