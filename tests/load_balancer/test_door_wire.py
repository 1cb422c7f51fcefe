"""The words between controller and door survive the trip."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyserve.load_balancer.wire import (
    BadWord,
    DoorReport,
    Hello,
    Stop,
    decode_order,
    decode_report,
    encode_hello,
    encode_report,
    encode_stop,
    encode_table,
)
from skyserve.model.evidence import LoadReport
from skyserve.model.routing import Endpoint, RoutingTable
from skyserve.model.service import LoadBalancer, Tls

positive = st.floats(0.001, 1e6)
counts = st.dictionaries(st.integers(0, 10**6), st.integers(0, 10**9), max_size=4)
endpoints = st.builds(
    Endpoint,
    st.integers(0, 10**6),
    st.sampled_from(["127.0.0.1:80", "[::1]:65535", "replica-1.svc:8080"]),
    positive,
    st.booleans(),
)
tables = st.builds(
    RoutingTable,
    st.integers(0, 2**60),
    st.text(max_size=9),
    st.builds(
        LoadBalancer,
        st.sampled_from(["proxy", "redirect"]),
        st.none() | positive,
        st.integers(0, 10**6),
        positive,
        st.sampled_from(["safe", "idempotent"]),
        positive,
        st.none() | positive,
        st.none() | positive,
        st.none() | st.integers(1, 10**6),
        st.none() | positive,
        positive,
        st.sampled_from(["header:X-Id", "cookie:sid"]),
        st.integers(1, 64),
        st.just(("A_KEY",)),
    ),
    st.lists(endpoints, max_size=4).map(tuple),
    st.booleans(),
    st.none() | st.just(Tls("/k", "/c")),
    api_keys=st.none() | st.lists(st.sampled_from(["0" * 64, "9af" + 61 * "1"])).map(tuple),
    keys_unread=st.booleans(),
)
reports = st.builds(
    DoorReport,
    st.builds(
        LoadReport,
        st.just(5.0),
        st.text(max_size=9),
        st.integers(0, 2**60),
        counts,
        st.integers(0, 999),
        st.integers(0, 10**12),
        positive,
        positive,
    ),
    st.lists(st.integers(0, 99)).map(tuple),
    counts,
    st.integers(0, 999),
)


@given(tables)
def test_a_table_survives(table: RoutingTable) -> None:
    line = encode_table(table)
    assert line.count(b"\n") == 1
    assert decode_order(line) == table


@given(reports)
def test_a_report_survives_and_its_hearer_dates_it(report: DoorReport) -> None:
    assert decode_report(encode_report(report), at=5.0) == report


def test_the_others_survive() -> None:
    assert decode_order(encode_stop(Stop(3.0))) == Stop(3.0)
    assert decode_order(b'{"type":"stop"}') == Stop(10.0)
    assert decode_report(encode_hello(Hello("b", 1, 2, 3)), at=0.0) == Hello("b", 1, 2, 3)


def test_settings_that_are_not_said_have_their_defaults() -> None:
    assert decode_order(b'{"type":"table","number":1,"endpoints":[]}') == RoutingTable(1)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"type":"table"}',
        b'{"type":"table","number":"1","endpoints":[]}',
        b'{"type":"table","number":true,"endpoints":[]}',
        b'{"type":"table","number":1,"endpoints":{}}',
        b'{"type":"table","number":1,"endpoints":[{"replica_id":1,"address":"a:1\\r\\nX: y"}]}',
        b'{"type":"table","number":1,"endpoints":[{"replica_id":1,"address":"a:99999"}]}',
        b'{"type":"table","number":1,"endpoints":[{"replica_id":1,"address":"a:1","weight":0}]}',
        b'{"type":"table","number":1,"endpoints":[],"settings":{"mode":"x"}}',
        b'{"type":"stop","grace_s":"x"}',
    ],
)
def test_what_is_not_a_word_is_refused(line: bytes) -> None:
    with pytest.raises(BadWord):
        decode_order(line)


def test_a_report_that_is_not_one_is_refused() -> None:
    for line in (b"", b'{"type":"load"}', b'{"type":"table"}', b'{"type":"hello","boot":"b"}'):
        with pytest.raises(BadWord):
            decode_report(line, at=0.0)
