"""The controller's own `main`, with providers that ask fakes: `python -m tests.bed.controller FAKES`.

FAKES is a JSON file: by provider the public facts of its fake (url, keys, ...) and the module that knows how to make
the adapter out of them, or a module of the product's own providers. What is not named there is not offered.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from skyserve.clock import Clock
from skyserve.config import Config
from skyserve.controller import __main__ as controller
from skyserve.providers.base import Provider
from skyserve.providers.instrument import Instrumented
from skyserve.providers.vm import VmProvider

_POLL_S = 1.0
"""Real clouds are asked less often: their machines take minutes to come and go."""


class FakeRoster:
    """The providers of a file of fakes."""

    def __init__(self, config: Config, clock: Clock) -> None:
        fakes = json.loads(Path(sys.argv[1]).read_text())
        self.providers: dict[str, Provider] = {
            name: Instrumented(_provider(facts, config, clock), clock) for name, facts in fakes.items()
        }

    def look_again(self) -> tuple[str, ...]:
        """Nothing comes later."""
        return ()


def _provider(facts: dict[str, object], config: Config, clock: Clock) -> Provider:
    module = importlib.import_module(str(facts.pop("module")))
    fake = SimpleNamespace(**facts)
    make: Callable[..., Provider] | None = getattr(module, "provider", None)
    if make is not None:
        return make(config, clock)
    wanted = len(inspect.signature(module.adapter).parameters)
    cloud = module.adapter(*(fake, config, clock)[: min(3, max(2, wanted))])
    made = VmProvider(cloud, config, clock)
    made.capabilities = replace(made.capabilities, poll_interval_s=_POLL_S)
    return made


if __name__ == "__main__":
    controller.Roster = FakeRoster  # type: ignore[assignment,misc]
    sys.exit(controller.main())
