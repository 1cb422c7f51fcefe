"""A provider that nothing was ever asked of is none of a service's business: its silence neither shows nor delays."""

from __future__ import annotations

from tests.decide.builders import NOW, listing, observation, replica, spec

from skyserve.decide.reconcile import decide
from skyserve.model.decision import Memory, ReasonCode
from skyserve.model.evidence import Listing, Silent

QUIET = Silent(NOW - 60, "no route")


def test_its_silence_is_not_mentioned() -> None:
    ready = replica(1)
    plan = decide(observation(specs={1: spec(1)}, replicas=(ready,), providers={**listing(ready), "elsewhere": QUIET}))
    assert plan.waiting == ()


def test_its_silence_does_not_keep_a_service_from_going() -> None:
    providers = {"local": Listing(NOW - 0.1, ()), "elsewhere": QUIET}
    asked = Memory(asked=("local",))
    assert decide(observation(wanted=False, providers=providers, memory=asked)).finished


def test_who_was_ever_asked_must_answer_before_a_service_is_gone() -> None:
    providers = {"local": Listing(NOW - 0.1, ()), "elsewhere": QUIET}
    asked = Memory(asked=("elsewhere", "local"))
    plan = decide(observation(wanted=False, providers=providers, memory=asked))
    assert not plan.finished
    assert [reason.code for reason in plan.waiting] == [ReasonCode.PROVIDER_SILENT]
    assert decide(observation(wanted=False, purge=True, providers=providers, memory=asked)).finished


def test_what_is_asked_is_remembered() -> None:
    assert decide(observation(specs={1: spec(1)})).memory.asked == ("local",)
