"""The books, by themselves, on a clock of their own."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from skyserve.load_balancer.pool import EJECTION_MAX_S, IDLE_LIMIT_S, STRIKES, Pool
from skyserve.model.routing import Endpoint


class Conn:
    def __init__(self) -> None:
        self.idle_since = 0.0
        self.closed = False

    def close(self) -> None:
        self.closed = True


def pool_of(*ids: int) -> tuple[Pool[Conn], list[int]]:
    news: list[int] = []
    pool: Pool[Conn] = Pool(lambda: news.append(1))
    pool.apply([Endpoint(id_, f"h:{id_}") for id_ in ids], 0.0)
    return pool, news


def ids(pages) -> list[int]:
    return [page.replica_id for page in pages]


def test_ejection_doubles_to_a_limit_and_allows_one_trial() -> None:
    pool, _ = pool_of(1, 2)
    page = pool.candidates(0.0, ())[0]
    now, seen = 0.0, []
    for _ in range(6):
        pool.enter(page, now)
        pool.refused(page, now)
        pool.leave(page)
        assert ids(pool.candidates(now, ())) == [2]
        assert ids(pool.last_resort(())) == [1, 2]
        seen.append(page.ejected_until - now)
        now = page.ejected_until
        assert ids(pool.candidates(now, ())) == [1, 2]
    assert seen == [1.0, 2.0, 4.0, 8.0, EJECTION_MAX_S, EJECTION_MAX_S]
    pool.enter(page, now)
    assert ids(pool.candidates(now, ())) == [2]
    pool.connected(page, now)
    assert page.accepted_at == now
    assert ids(pool.candidates(now, ())) == [1, 2]
    assert pool.suspects() == ()


def test_a_trial_without_a_verdict_frees_the_place() -> None:
    pool, _ = pool_of(1)
    page = pool.candidates(0.0, ())[0]
    pool.refused(page, 0.0)
    pool.enter(page, 1.0)
    assert ids(pool.candidates(1.0, ())) == []
    pool.leave(page)
    assert ids(pool.candidates(1.0, ())) == [1]


def test_last_resorts_do_not_lengthen_the_ejection() -> None:
    pool, _ = pool_of(1)
    page = pool.candidates(0.0, ())[0]
    for now in (0.0, 0.1, 0.2):
        pool.refused(page, now)
    assert page.ejected_until == 1.0


def test_a_fresh_listing_clears_and_a_mere_repetition_does_not() -> None:
    pool, _ = pool_of(1, 2)
    pool.refused(pool.candidates(0.0, ())[0], 0.0)
    pool.apply([Endpoint(1, "h:1"), Endpoint(2, "h:2")], 0.0)
    assert ids(pool.candidates(0.0, ())) == [2]
    pool.apply([Endpoint(2, "h:2")], 0.0)
    pool.apply([Endpoint(1, "h:1"), Endpoint(2, "h:2")], 0.0)
    assert ids(pool.candidates(0.0, ())) == [1, 2]
    pool.refused(pool.candidates(0.0, ())[0], 0.0)
    pool.apply([Endpoint(1, "other:1"), Endpoint(2, "h:2")], 0.0)
    assert ids(pool.candidates(0.0, ())) == [1, 2]


def test_strikes_need_an_answer_to_be_forgotten() -> None:
    pool, news = pool_of(1, 2)
    page = pool.candidates(0.0, ())[0]
    for _ in range(STRIKES - 1):
        pool.unanswered(page, 0.0)
    pool.connected(page, 0.0)
    assert pool.suspects() == (1,)
    pool.answered(page, 0.5)
    assert (pool.suspects(), page.ewma_s) == ((), 0.5)
    for _ in range(STRIKES):
        pool.unanswered(page, 0.0)
    pool.connected(page, 0.0)
    assert ids(pool.candidates(0.0, ())) == [2]
    pool.answered(page, 1.5)
    assert page.ewma_s == 0.7
    assert ids(pool.candidates(0.0, ())) == [1, 2]
    assert len(news) == 2


def test_one_that_drops_requests_is_left_out_only_while_there_is_another() -> None:
    pool, _ = pool_of(1, 2)
    page, other = pool.candidates(0.0, ())
    for _ in range(STRIKES):
        pool.unanswered(page, 0.0)
    assert ids(pool.candidates(0.0, ())) == [2]
    assert ids(pool.candidates(0.0, {2})) == [1]
    pool.refused(other, 0.0)
    assert ids(pool.candidates(0.0, ())) == [1]
    pool.refused(page, 0.0)
    assert ids(pool.candidates(0.0, ())) == []


def test_idle_connections_are_used_youngest_first_and_not_when_old() -> None:
    pool, _ = pool_of(1)
    page = pool.candidates(0.0, ())[0]
    old, young = Conn(), Conn()
    pool.put_idle(page, old, 0.0)
    pool.put_idle(page, young, 3.0)
    pool.close_old(IDLE_LIMIT_S)
    assert (old.closed, young.closed) == (True, False)
    assert pool.take_idle(page, 4.0, 1.0) is None
    assert pool.take_idle(page, 3.0 + IDLE_LIMIT_S) is None
    assert pool.take_idle(page, 2.9 + IDLE_LIMIT_S) is young
    third = Conn()
    pool.put_idle(page, third, 9.0)
    pool.apply([Endpoint(1, "h:1", draining=True)], 0.0)
    assert third.closed
    fourth = Conn()
    pool.put_idle(page, fourth, 9.0)
    assert fourth.closed


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["enter", "leave", "refuse", "answer", "drop", "list", "drain", "tick"]), st.integers(0, 2)
        )
    )
)
def test_counts_never_drift(steps: list[tuple[str, int]]) -> None:
    pool, _ = pool_of(0, 1, 2)
    now, inside = 0.0, []
    for verb, id_ in steps:
        listed = [Endpoint(n, "h:1", draining=verb == "drain" and n == id_) for n in range(3)]
        if verb == "enter":
            for page in list(pool.last_resort(()))[id_ : id_ + 1]:
                pool.enter(page, now)
                inside.append(page)
        elif verb == "leave" and inside:
            pool.leave(inside.pop(id_ % len(inside)))
        elif verb == "refuse" and inside:
            pool.refused(inside[-1], now)
        elif verb == "answer" and inside:
            pool.answered(inside[-1], 0.1)
        elif verb == "drop":
            pool.apply([row for row in listed if row.replica_id != id_], 0.0)
        elif verb in ("list", "drain"):
            pool.apply(listed, now)
        now += 0.5
        counts = pool.in_flight()
        assert {n: count for n, count in counts.items() if count} == {
            n: count for n in range(3) if (count := sum(page.replica_id == n for page in inside))
        }
    while inside:
        pool.leave(inside.pop())
    assert not any(pool.in_flight().values())
    assert set(pool.candidates(now + 100, ())) <= set(pool.last_resort(()))
