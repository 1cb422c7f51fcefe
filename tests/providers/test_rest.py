"""JSON over HTTP: what each status means, what is never followed or told, and launches that happen once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.bed.core import CloudCore
from tests.bed.json_server import Call, Hang, JsonServer, Refuse
from tests.providers.rest_rig import PassingClock

from skyserve.catalog.refresh.answer import Answer
from skyserve.errors import (
    CapacityUnavailable,
    CredentialsRejected,
    OrderRejected,
    ProviderError,
    ProviderUnavailable,
    Throttled,
)
from skyserve.providers.rest import Account, Kept, Launches, Refusal, Rest
from skyserve.providers.vm_cloud import Vm, VmState


class Echo(JsonServer):
    """Answers with whatever `says` returns or raises."""

    def __init__(self, says: Callable[[Call], object]) -> None:
        super().__init__(CloudCore())
        self.says = says

    def answer(self, call: Call) -> tuple[int, object]:
        return 200, self.says(call)

    def unauthorized(self) -> Refuse:
        return Refuse(401, {"detail": "who are you?"})


def refuse(status: int, body: object = None, **headers: str) -> Callable[[Call], object]:
    def says(call: Call) -> object:
        raise Refuse(status, body, {name.replace("_", "-"): value for name, value in headers.items()})

    return says


def hang(call: Call) -> object:
    raise Hang


def ask(
    says: Callable[[Call], object],
    *,
    read: Callable[[Answer], object] = lambda answer: answer["x"].text(),
    call: str = "GET /things",
    key: str = "fake-key",
    explain: Callable[[Refusal], ProviderError | None] = lambda refusal: None,
    **more,
) -> object:
    with Echo(says) as server:
        account = Account("Cumulus", server.url, key, "the key", "export CUMULUS_KEY=KEY")
        rest = Rest(account, explain, timeout_s=more.pop("timeout_s", 5.0))
        return asyncio.run(rest.ask(call, read, **more))


def test_an_answer_is_read():
    seen: list[Call] = []

    def says(call: Call) -> object:
        seen.append(call)
        return {"x": "y"}

    assert ask(says, call="POST /things", body={"a": [1]}, params={"q": "1 2"}) == "y"
    assert seen == [Call("POST", "/things", {"q": "1 2"}, {"a": [1]})]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, OrderRejected),
        (401, CredentialsRejected),
        (403, CredentialsRejected),
        (404, OrderRejected),
        (408, ProviderUnavailable),
        (409, OrderRejected),
        (422, OrderRejected),
        (500, ProviderUnavailable),
        (503, ProviderUnavailable),
        (302, ProviderUnavailable),
    ],
)
def test_each_status_has_its_reaction(status, error):
    with pytest.raises(error) as caught:
        ask(refuse(status, {"message": "so there"}, Location="http://127.0.0.1:1/elsewhere"))
    assert type(caught.value) is error
    assert f"HTTP {status}: so there" in caught.value.message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"code": "a/b", "message": "no such thing"}}, "no such thing"),
        ({"error": "plain"}, "plain"),
        ({"title": "Bad", "status": 400, "detail": "Not valid.", "errors": ["$.a: wrong"]}, "Not valid. $.a: wrong"),
        ({"message": "m"}, "m"),
        ({"title": "Only a title"}, "Only a title"),
        ({"detail": [{"loc": "body"}]}, "HTTP 400"),
        ({"other": 1}, "HTTP 400"),
        ([1], "HTTP 400"),
        (b"<html>", "HTTP 400"),
        (None, "HTTP 400"),
    ],
)
def test_the_clouds_own_words_are_told(body, said):
    with pytest.raises(OrderRejected) as caught:
        ask(refuse(400, body))
    assert said in caught.value.message
    assert "fake-key" not in caught.value.message


@pytest.mark.parametrize(
    ("header", "wait_s"), [("7", 7.0), ("0", 1.0), ("Thu, 01 Jan 2026 00:00:00 GMT", 10.0), (None, 10.0)]
)
def test_too_many_calls_say_how_long_to_wait(header, wait_s):
    with pytest.raises(Throttled) as caught:
        ask(refuse(429, None, **({"Retry_After": header} if header else {})))
    assert caught.value.retry_after_s == wait_s


def test_a_wrong_key_is_told_with_the_way_to_give_another():
    with pytest.raises(CredentialsRejected) as caught:
        ask(lambda call: {"x": "y"}, key="wrong-key")
    assert caught.value.hint == "export CUMULUS_KEY=KEY"
    assert "wrong-key" not in caught.value.message


def test_the_cloud_knows_better_than_the_status():
    def explain(refusal: Refusal) -> ProviderError | None:
        code = refusal.body["code"].text()
        return CapacityUnavailable(refusal.said) if code == "full" else None

    with pytest.raises(CapacityUnavailable, match="nothing left"):
        ask(refuse(400, {"code": "full", "message": "nothing left"}), explain=explain)
    with pytest.raises(OrderRejected):
        ask(refuse(400, {"code": "other", "message": "nothing left"}), explain=explain)
    with pytest.raises(ProviderUnavailable):  # somebody else's error page
        ask(refuse(502, [1]), explain=explain)


@pytest.mark.parametrize("answer", [{"x": 1}, {}, [], b"<html>", None])
def test_an_answer_of_another_shape_is_no_answer(answer):
    with pytest.raises(ProviderUnavailable, match="not the answer"):
        ask(lambda call: answer)


def test_an_empty_list_where_one_is_needed_is_no_answer():
    with pytest.raises(ProviderUnavailable):
        ask(lambda call: {"x": []}, read=lambda answer: answer["x"].elements()[0])


def test_silence_has_a_limit():
    with pytest.raises(ProviderUnavailable, match="no answer to GET /things"):
        ask(hang, timeout_s=0.2)


def test_nobody_listens():
    rest = Rest(Account("Cumulus", "http://127.0.0.1:1", "k", "", ""), lambda refusal: None)
    with pytest.raises(ProviderUnavailable, match="no answer"):
        asyncio.run(rest.ask("GET /", lambda answer: answer))


def test_what_is_gone_need_not_be_ended():
    def run(says: Callable[[Call], object]) -> None:
        with Echo(says) as server:
            rest = Rest(Account("Cumulus", server.url, "fake-key", "", ""), lambda refusal: None)
            asyncio.run(rest.end("DELETE /things/1"))

    run(refuse(404))
    run(lambda call: None)
    with pytest.raises(ProviderUnavailable):
        run(refuse(500))


def vm(number: int) -> Vm:
    return Vm(f"id-{number}", "s", "t", VmState.BOOTING)


def test_at_most_one_launch_per_token():
    launched: list[str] = []
    at_once: list[int] = []
    clock = PassingClock()

    async def nothing() -> list[Vm]:
        return []

    async def run() -> None:
        launches = Launches(clock)

        def launch(token: str):
            async def go() -> Vm:
                at_once.append(len(launched))
                await asyncio.sleep(0.01)
                launched.append(token)
                return vm(len(launched))

            return go

        same = await asyncio.gather(*(launches.once("a", nothing, launch("a")) for _ in range(3)))
        assert {one.id for one in same} == {"id-1"}
        await asyncio.gather(*(launches.once(token, nothing, launch(token)) for token in "bc"))
        assert launched == ["a", "b", "c"]
        assert at_once[-2:] == [1, 1], "different tokens do not wait for each other"
        clock.at += 61
        assert (await launches.once("a", nothing, launch("a"))).id == "id-4"

    asyncio.run(run())


def test_a_failed_launch_is_tried_again():
    async def nothing() -> list[Vm]:
        return []

    async def fail() -> Vm:
        raise ProviderUnavailable("no")

    async def work() -> Vm:
        return vm(1)

    async def found() -> list[Vm]:
        return [vm(3), replace(vm(2), token="a")]

    async def run() -> None:
        launches = Launches(PassingClock())
        with pytest.raises(ProviderUnavailable):
            await launches.once("a", nothing, fail)
        assert (await launches.once("a", nothing, work)).id == "id-1"
        assert (await launches.once("a", found, fail)).id == "id-2", "the listing knows better"

    asyncio.run(run())


def test_an_answer_is_kept_for_a_while_and_a_failure_is_not():
    clock = PassingClock()
    asked: list[str] = []

    async def run() -> None:
        kept: Kept[int] = Kept(clock, 10.0)

        async def answer() -> int:
            asked.append("x")
            if len(asked) == 1:
                raise ProviderUnavailable("no")
            return len(asked)

        with pytest.raises(ProviderUnavailable):
            await kept.get("a", answer)
        assert [await kept.get("a", answer), await kept.get("a", answer), await kept.get("b", answer)] == [2, 2, 3]
        clock.at += 10
        assert await kept.get("a", answer) == 4

    asyncio.run(run())
