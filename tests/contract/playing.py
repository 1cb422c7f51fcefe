"""Plays the cases of the provider contract on a world: side by side where they do not disturb each other.

Knows how cases are run; must not know what they are about, nor any provider.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from tests.contract.world import Stage, World

LIMIT_S = 90.0
"""How long a case may take in all."""

Outcome = BaseException | None
Play = Callable[[Stage], Awaitable[None]] | Callable[[Stage], AsyncIterator[None]]


class How(Enum):
    """With what other cases a case may go on at the same time."""

    TOGETHER = "with any others: it has services of its own"
    RESTARTED = "with others of its kind: the controller is started again in the middle of all of them"
    ALONE = "with none: it disturbs the whole world"


@dataclass(frozen=True)
class Case:
    """One thing that holds for every provider. `needs` are abilities without which it is skipped, with the reason.

    A RESTARTED case yields twice: when it is ready for the restart, and right before it happens.
    """

    name: str
    play: Play
    how: How
    needs: tuple[str, ...]

    def __str__(self) -> str:
        return self.name


CASES: list[Case] = []
"""All cases, in the order of the table."""


def case(name: str, *needs: str, how: How = How.TOGETHER) -> Callable[[Play], Play]:
    """Register a case."""

    def register(play: Play) -> Play:
        CASES.append(Case(name, play, How.RESTARTED if inspect.isasyncgenfunction(play) else how, needs))
        return play

    return register


async def play(world: World, cases: Sequence[Case]) -> Mapping[str, Outcome]:
    """How each case ended, by name: None, Cannot, or what went wrong."""
    outcomes: dict[str, Outcome] = {}
    await world.open()
    try:
        together = [one for one in cases if one.how is How.TOGETHER]
        room = asyncio.Semaphore(world.at_once)
        outcomes.update(await _gathered(together, lambda one: _alone(world, one, room)))
        outcomes.update(await _restarted(world, [one for one in cases if one.how is How.RESTARTED]))
        for one in cases:
            if one.how is How.ALONE:
                outcomes.update(await _gathered([one], lambda one: _alone(world, one, asyncio.Semaphore())))
    finally:
        await world.close()
    return outcomes


async def _alone(world: World, one: Case, room: asyncio.Semaphore) -> None:
    stage = Stage(world, one.name)
    async with room:
        stage.need(*one.needs)
        await _cleared(stage, one.play(stage))  # type: ignore[arg-type]


async def _cleared(stage: Stage, playing: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(LIMIT_S):
            await playing
    finally:
        await stage.clear()


async def _restarted(world: World, cases: Sequence[Case]) -> Mapping[str, Outcome]:
    """All of them up to the restart, the restart, and the rest of those that went well."""
    stages = {one.name: Stage(world, one.name) for one in cases}
    plays = {one.name: one.play(stages[one.name]) for one in cases}

    async def begin(one: Case) -> None:
        stages[one.name].need("restart", *one.needs)
        await step(one)

    async def step(one: Case) -> None:
        async with asyncio.timeout(LIMIT_S):
            await anext(plays[one.name])  # type: ignore[arg-type]

    async def finish(one: Case) -> None:
        async with asyncio.timeout(LIMIT_S):
            async for _ in plays[one.name]:  # type: ignore[union-attr]
                raise AssertionError("a case yields twice")

    async def clear(one: Case) -> None:
        await plays[one.name].aclose()  # type: ignore[union-attr]
        await stages[one.name].clear()

    going, outcomes = list(cases), dict[str, Outcome]()
    for part in (begin, step, finish):
        if part is finish and going:
            await world.open()
        outcomes.update(await _gathered(going, part))
        going = [one for one in going if outcomes[one.name] is None]
    cleared = await _gathered(cases, clear)
    return {name: outcome or cleared[name] for name, outcome in outcomes.items()}


async def _gathered(cases: Iterable[Case], run: Callable[[Case], Awaitable[None]]) -> Mapping[str, Outcome]:
    cases = list(cases)
    ends = await asyncio.gather(*(run(one) for one in cases), return_exceptions=True)
    return dict(zip((one.name for one in cases), ends, strict=True))
