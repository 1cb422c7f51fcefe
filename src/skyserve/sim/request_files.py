"""Request traces from files: which of the known forms a file has, and what is wrong with it, by line.

Reads the file it is given and the one with lengths that stands beside it; must not know what is done with requests.
"""

from __future__ import annotations

import csv
import glob
import gzip
import json
import math
import re
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from skyserve.errors import UsageError
from skyserve.sim.arrivals import (
    Flow,
    Flows,
    Lengths,
    Poisson,
    Recorded,
    Requests,
    from_histogram,
    paired,
    usual_lengths,
)

POISSON = "poisson:"
_FORMS = (
    "CSV with TIMESTAMP, ContextTokens, GeneratedTokens; CSV with t, rate (and client, cv, pattern, p1); JSON lines "
    "with timestamp, input_length, output_length; or a file of arrival instants in seconds, one a line"
)
_AT = ("timestamp", "arrived_at", "time")
_PROMPT = ("contexttokens", "request tokens", "input_length", "input_tokens", "prompt_tokens")
_ANSWER = ("generatedtokens", "response tokens", "output_length", "output_tokens", "completion_tokens")
_GZIP = b"\x1f\x8b"
_WINDOW_S = 600.0
_SMALLEST_SHAPE = 0.02  # below that a gap is either nothing or longer than the sun will shine


def read_requests(asked: str, *, rate_scale: float = 1.0) -> Requests:
    """`poisson:RATE` or the path of a request trace, with all rates multiplied by `rate_scale`.

    Raises UsageError that names the file and the line for what cannot be read.
    """
    if not 0 < rate_scale < math.inf:
        raise UsageError(f"the rate of requests cannot be multiplied by {rate_scale:g}", hint="give a number above 0")
    if asked.startswith(POISSON):
        return Poisson(_poisson_rate(asked) * rate_scale, usual_lengths())
    path = Path(asked).expanduser()
    lines = _Lines(path, _text(path).splitlines())
    first = lines.first()
    if first.startswith("{"):
        return _recorded(lines, _json_rows(lines), 0.001, rate_scale)
    if _is_number(first):
        return _recorded(lines, _plain_rows(lines), 1.0, rate_scale)
    return _table(lines, rate_scale)


def _poisson_rate(asked: str) -> float:
    text = asked.removeprefix(POISSON)
    if not _is_number(text) or not 0 < float(text) < math.inf:
        raise UsageError(f"`{asked}` names no rate above 0", hint="poisson:2.5 means 2.5 requests a second")
    return float(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
        return content.decode().removeprefix("\ufeff")
    except FileNotFoundError:
        hint = "give the path of a request trace, or poisson:RATE"
        raise UsageError(f"there is no file {path}", hint=hint) from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text: byte {error.start} is not UTF-8", hint=f"wanted: {_FORMS}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class _Lines:
    path: Path
    lines: Sequence[str]

    def given(self) -> Iterator[tuple[int, str]]:
        """Lines with something on them, with their numbers."""
        for number, line in enumerate(self.lines, 1):
            text = line.strip()
            if text and not text.startswith("#"):
                yield number, text

    def first(self) -> str:
        for _, text in self.given():
            return text
        raise UsageError(f"{self.path} is empty", hint=f"wanted: {_FORMS}")

    def wrong(self, number: int, what: str, hint: str | None = None) -> UsageError:
        return UsageError(f"{self.path}:{number}: {what}", hint=hint)

    def amount(self, number: int, what: str, value: object) -> float:
        """A number of at least 0."""
        try:
            amount = float(value) if isinstance(value, (int, float, str)) else math.nan
        except ValueError:
            amount = math.nan
        if not 0 <= amount < math.inf:
            raise self.wrong(number, f"`{what}` must be a number of at least 0, not {value!r}")
        return amount


_Row = tuple[float, float | None, float | None]


def _recorded(lines: _Lines, rows: Iterator[_Row], unit_s: float, scale: float) -> Recorded:
    instants, prompt, answer = array("d"), array("d"), array("d")
    for at, comes, goes in rows:
        instants.append(at * unit_s)
        if comes is not None and goes is not None:
            prompt.append(comes)
            answer.append(goes)
    if not instants:
        raise UsageError(f"{lines.path} has no requests", hint=f"wanted: {_FORMS}")
    order = sorted(range(len(instants)), key=instants.__getitem__)
    begin = instants[order[0]]
    known = len(prompt) == len(instants)
    return Recorded(
        name=lines.path.name,
        instants=array("d", (instants[i] - begin for i in order)),
        prompt=array("d", (prompt[i] for i in order)) if known else None,
        answer=array("d", (answer[i] for i in order)) if known else None,
        lengths=usual_lengths(),
        scale=scale,
    )


def _plain_rows(lines: _Lines) -> Iterator[_Row]:
    for number, text in lines.given():
        if not _is_number(text) or not math.isfinite(float(text)):
            raise lines.wrong(number, f"an instant in seconds is wanted, not {text[:40]!r}")
        yield float(text), None, None


def _json_rows(lines: _Lines) -> Iterator[_Row]:
    for number, text in lines.given():
        try:
            row = json.loads(text)
        except ValueError:
            raise lines.wrong(number, "this is not a JSON object") from None
        if not isinstance(row, dict) or "timestamp" not in row:
            raise lines.wrong(number, "the JSON object has no `timestamp`")
        at = lines.amount(number, "timestamp", row["timestamp"])
        prompt, answer = (_length(lines, number, row, keys) for keys in (_PROMPT, _ANSWER))
        if prompt is None or answer is None:
            raise lines.wrong(number, "the JSON object has no `input_length` and `output_length`")
        yield at, prompt, answer


def _length(lines: _Lines, number: int, row: Mapping[str, object], keys: Sequence[str]) -> float | None:
    key = next((key for key in keys if key in row), None)
    return None if key is None else lines.amount(number, key, row[key])


def _table(lines: _Lines, scale: float) -> Requests:
    rows = _csv_rows(lines)
    head, columns = next(rows)
    if {"t", "rate"} <= set(columns):
        return _flows(lines, rows, columns, scale)
    if not any(name in columns for name in _AT):
        raise lines.wrong(head, f"no request trace begins with {lines.lines[head - 1][:60]!r}", f"wanted: {_FORMS}")
    return _recorded(lines, _timed_rows(lines, rows, columns), 1.0, scale)


def _csv_rows(lines: _Lines) -> Iterator[tuple[int, list[str]]]:
    """The heading in lower case, then rows with as many cells, each with its line number."""
    width = 0
    for number, text in lines.given():
        cells = [cell.strip() for cell in next(csv.reader([text]))]
        if not width:
            cells, width = [cell.lower() for cell in cells], len(cells)
        if len(cells) != width:
            raise lines.wrong(number, f"{len(cells)} columns where the heading has {width}")
        yield number, cells


def _timed_rows(lines: _Lines, rows: Iterator[tuple[int, list[str]]], columns: list[str]) -> Iterator[_Row]:
    at_column = next(columns.index(name) for name in _AT if name in columns)
    for number, cells in rows:
        row = dict(zip(columns, cells, strict=True))
        prompt, answer = (_length(lines, number, row, keys) for keys in (_PROMPT, _ANSWER))
        yield _instant(lines, number, cells[at_column]), prompt, answer


def _instant(lines: _Lines, number: int, text: str) -> float:
    if _is_number(text) and math.isfinite(float(text)):
        return float(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise lines.wrong(number, f"{text[:40]!r} is neither a date with a time nor a number of seconds") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _flows(lines: _Lines, rows: Iterator[tuple[int, list[str]]], columns: list[str], scale: float) -> Flows:
    windows: dict[float, list[Flow]] = {}
    for number, cells in rows:
        row = dict(zip(columns, cells, strict=True))
        at = lines.amount(number, "t", row["t"])
        rate = lines.amount(number, "rate", row["rate"])
        here = windows.setdefault(at, [])
        if rate > 0:
            here.append(_flow(lines, number, row, rate))
    if not any(windows.values()):
        raise UsageError(f"{lines.path} has no window with a rate above 0")
    starts = sorted(windows)
    window_s = min((later - earlier for earlier, later in pairwise(starts)), default=_WINDOW_S)
    count = round((starts[-1] - starts[0]) / window_s) + 1
    placed: list[list[Flow]] = [[] for _ in range(count)]
    for at, flows in windows.items():
        placed[round((at - starts[0]) / window_s)] += flows
    lengths = _lengths_beside(lines.path) or usual_lengths()
    return Flows(lines.path.name, tuple(map(tuple, placed)), window_s, lengths, scale)


def _flow(lines: _Lines, number: int, row: Mapping[str, str], rate: float) -> Flow:
    client, pattern = row.get("client", ""), row.get("pattern", "").lower()
    if pattern not in ("", "gamma", "weibull", "exponential"):
        raise lines.wrong(number, f"`pattern` must be Gamma, Weibull or Exponential, not {row['pattern']!r}")
    if pattern in ("gamma", "weibull") and row.get("p1"):
        return Flow(client, rate, pattern, max(_SMALLEST_SHAPE, lines.amount(number, "p1", row["p1"])))
    spread = lines.amount(number, "cv", row["cv"]) if row.get("cv") else 1.0
    return Flow(client, rate, "gamma", max(_SMALLEST_SHAPE, 1 / spread**2 if spread > 0 else 1e4))


def _lengths_beside(path: Path) -> Lengths | None:
    """Lengths from the file of the same collection that has them; None when there is no such file."""
    stem = re.sub(r"_(clients|total_rate)\.csv(\.gz)?$", "", path.name)
    found = sorted(path.parent.glob(f"{glob.escape(stem)}*lengths.json*")) if stem != path.name else []
    if not found:
        return None
    try:
        document = json.loads(_text(found[0]))
        windows = [window for client in document.values() for window in client.values()]
        prompt = _pooled(window.get("input_tokens") or window["text_tokens"] for window in windows)
        return paired(from_histogram(prompt), from_histogram(_pooled(window["output_tokens"] for window in windows)))
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise UsageError(
            f"{found[0]} is not a file of lengths: {error}",
            hint="wanted: {client: {t: {input_tokens: '{length: probability}', output_tokens: ...}}}",
        ) from error


def _pooled(texts: Iterator[str]) -> list[tuple[float, float]]:
    weights: dict[float, float] = {}
    for text in texts:
        for length, weight in re.findall(r"(\d+)\s*:\s*([\d.eE+-]+)", text):
            weights[float(length)] = weights.get(float(length), 0.0) + float(weight)
    if not weights:
        raise ValueError("it has no lengths")
    return list(weights.items())
