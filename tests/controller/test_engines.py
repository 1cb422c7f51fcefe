"""What is read of engines' metrics pages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.controller.engine_pages import LLAMA, OLD_VLLM, SGLANG, TGI, VLLM

from skyserve.controller.engines import CACHE, GENERATED, RATE, RUNNING, WAITING, Page, read_page, sampled
from skyserve.model.scaling import EngineSample


@pytest.mark.parametrize(
    ("text", "first", "rate"),
    [
        (VLLM, EngineSample(10.0, 7.0, 22.0, 0.875), 0.0),
        (OLD_VLLM, EngineSample(10.0, 0.0, 1.0, 0.5), 0.0),
        (SGLANG, EngineSample(10.0, 2826.0, 162.0, 0.28, 86.5), 86.5),
        (TGI, EngineSample(10.0, 7.0, 32.0, None), 0.0),
        (LLAMA, EngineSample(10.0, 5.0, 2.0, 0.125), 0.0),
    ],
    ids=["vllm", "old-vllm", "sglang", "tgi", "llamacpp"],
)
def test_four_engines(text: bytes, first: EngineSample, rate: float) -> None:
    page = read_page(text)
    assert page.tells_anything
    assert sampled(page, 10.0, None, 0.0) == first
    assert sampled(page, 12.0, page, 10.0).tokens_per_s == rate


def tokens(*series: tuple[str, float]) -> Page:
    return read_page("".join(f"vllm:generation_tokens_total{labels} {value}\n" for labels, value in series).encode())


@pytest.mark.parametrize(
    ("before", "now", "rate"),
    [
        ([("", 100)], [("", 160)], 30.0),
        ([('{e="0"}', 100), ('{e="1"}', 10)], [('{e="0"}', 160), ('{e="1"}', 20)], 35.0),
        ([("", 100)], [("", 40)], 20.0),  # began anew, and made 40 since
        ([('{e="0"}', 100), ('{e="1"}', 10)], [('{e="0"}', 6), ('{e="1"}', 14)], 5.0),
        ([('{e="0"}', 100)], [('{e="0"}', 120), ('{e="1"}', 1000)], 10.0),  # nobody knows since when
        ([], [("", 1000)], None),
        ([('{e="0"}', 100)], [('{e="1"}', 120)], None),
        ([("", 100)], [], None),
    ],
)
def test_counters_become_rates(
    before: list[tuple[str, float]], now: list[tuple[str, float]], rate: float | None
) -> None:
    assert sampled(tokens(*now), 12.0, tokens(*before), 10.0).tokens_per_s == rate


def test_two_pages_of_one_instant_give_no_rate() -> None:
    assert sampled(tokens(("", 5)), 10.0, tokens(("", 1)), 10.0).tokens_per_s is None


def test_llamacpp_without_the_counter_tells_its_own_rate() -> None:
    page = read_page(b"llamacpp:predicted_tokens_seconds 41.5\n")
    assert sampled(page, 1.0, None, 0.0) == EngineSample(1.0, tokens_per_s=41.5)


@pytest.mark.parametrize(
    ("line", "waiting"),
    [
        (b"vllm:num_requests_waiting 3", 3.0),
        (b"vllm:num_requests_waiting\t 3 1700000000000\r", 3.0),
        (b'vllm:num_requests_waiting{a="b c",d="}{"} 3', 3.0),
        (b'vllm:num_requests_waiting{a="quote \\" and } brace"} 3', 3.0),
        (b"vllm:num_requests_waiting{} 3e0", 3.0),
        (b"vllm:num_requests_waiting 3\nvllm:num_requests_waiting 3", 3.0),  # the same series twice
        (b"vllm:num_requests_waiting NaN", None),
        (b"vllm:num_requests_waiting +Inf", None),
        (b"vllm:num_requests_waiting -1", None),
        (b"vllm:num_requests_waiting three", None),
        (b"vllm:num_requests_waiting", None),
        (b'vllm:num_requests_waiting{a="b 3', None),
        (b"vllm:num_requests_waiting_total 3", None),
        (b"# vllm:num_requests_waiting 3", None),
    ],
)
def test_lines(line: bytes, waiting: float | None) -> None:
    page = read_page(b"other 1\n" + line + b"\nother 2\n")
    assert page.waiting == waiting
    assert page.tells_anything is (waiting is not None)


def test_a_share_is_at_most_everything() -> None:
    assert read_page(b"sglang:token_usage 1.2").kv_cache_use == 1.0


NAMES = st.sampled_from(sorted(WAITING | RUNNING | CACHE | GENERATED | RATE))
PIECES = NAMES | st.binary(max_size=6) | st.sampled_from(
    [b"{", b"}", b'"', b"\\", b"\n", b" ", b"1e308", b"NaN", b"-Inf", b"7", b"#", b'{a="b"} ']
)  # fmt: skip


@given(st.lists(PIECES, max_size=30).map(b"".join), st.lists(PIECES, max_size=30).map(b"".join))
def test_garbage_never_raises(text: bytes, earlier: bytes) -> None:
    page, before = read_page(text), read_page(earlier)
    sample = sampled(page, 2.0, before, 1.0)
    for value in (sample.waiting, sample.running, sample.kv_cache_use, sample.tokens_per_s):
        assert value is None or 0 <= value < float("inf")


@given(NAMES, st.floats(0, 1), st.lists(st.text('ab"}\\{ ,=', max_size=5), max_size=3))
def test_labels_of_any_form(name: bytes, value: float, labels: list[str]) -> None:
    told = ",".join(f"l{n}={_quoted(text)}" for n, text in enumerate(labels))
    page = read_page(name + f"{{{told}}} {value!r}\n".encode())
    found = {page.waiting, page.running, page.kv_cache_use, page.rate, *page.generated.values()}
    assert value in found


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
