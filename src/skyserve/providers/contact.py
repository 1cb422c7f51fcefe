"""The line to one rented machine: hears its agent, hands it its order, and calls again when the line breaks.

Knows the agent's terms and the clock; must not know the cloud, nor what the controller makes of what is heard.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from skyserve.clock import Clock
from skyserve.errors import SkyServeError
from skyserve.providers import agent, boot
from skyserve.providers.openssh import Ssh
from skyserve.providers.remote_agent import HALTED, Hosted, Load, RemoteAgent, State

SILENCE_S = 20.0
"""An agent says something every five seconds; one that says nothing for so long is not heard any more."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0

Wanted = Callable[[], Awaitable["tuple[agent.Order, Load] | None"]]
"""The order that the machine was rented for, secrets included, and its files; None when nobody waits for it any more.

Raises SkyServeError when it cannot be had."""


class Contact:
    """One machine. `state` is what its agent told last, however long ago; `heard` says whether the line stands."""

    def __init__(self, ssh: Ssh, token: str, *, clock: Clock, wanted: Wanted, changed: Callable[[], None]) -> None:
        self.agent = RemoteAgent(ssh)
        self.state: State | None = None
        self.heard = False
        self._line_trouble = "nothing was heard of it yet"
        self._order_trouble = ""
        self._ssh = ssh
        self._token = token
        self._clock = clock
        self._wanted = wanted
        self._changed = changed
        self._upgraded = False
        self._handing: asyncio.Task[None] | None = None
        self._hearing = asyncio.create_task(self._hear())

    @property
    def hosted(self) -> Hosted | None:
        """The instance that the machine was rented for."""
        return None if self.state is None else self.state.of(self._token)

    @property
    def trouble(self) -> str:
        """Why it is not heard, or cannot begin; empty when all is well."""
        return self._line_trouble or self._order_trouble

    async def close(self) -> None:
        """Hang up. What is known stays known."""
        tasks = [task for task in (self._hearing, self._handing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._ssh.close()

    async def _hear(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                async with contextlib.aclosing(self.agent.watch()) as states:
                    while True:
                        async with asyncio.timeout(SILENCE_S):
                            state = await anext(states)
                        pause_s = _FIRST_PAUSE_S
                        self._note(state)
            except StopAsyncIteration:
                self._line_trouble = "its agent stopped talking"
            except TimeoutError:
                self._line_trouble = f"its agent said nothing for {SILENCE_S:g} s"
            except (SkyServeError, OSError) as error:
                self._line_trouble = str(error)
            self.heard = False
            await self._clock.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 1.6)

    def _note(self, state: State) -> None:
        news = state != self.state or not self.heard
        self.state, self.heard, self._line_trouble = state, True, ""
        if self._handing is None or self._handing.done():
            self._handing = asyncio.create_task(self._hand(state))
        if news:
            self._changed()

    async def _hand(self, state: State) -> None:
        """Give the machine what it lacks: a newer agent, its order, or what it needs to go on after a stop."""
        try:
            if state.agent != boot.digest() and not self._upgraded:
                self._upgraded = True
                await self.agent.install()
            await self._hand_order(state.of(self._token))
            self._order_trouble = ""
        except (SkyServeError, OSError) as error:
            self._order_trouble = f"its order could not be delivered: {error}"

    async def _hand_order(self, hosted: Hosted | None) -> None:
        if hosted is not None and hosted.phase != HALTED:
            return
        if hosted is not None and not hosted.needs_secrets:
            await self.agent.resume(self._token, {})
        elif (wanted := await self._wanted()) is not None:
            await self.agent.launch(*wanted)  # which lets what was halted go on too
