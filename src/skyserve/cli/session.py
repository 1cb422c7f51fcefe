"""What every command is handed: settings, the screen, the way to the controller. Knows no command."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from skyserve.cli import wording
from skyserve.config import Config
from skyserve.errors import ServiceNotFound

if TYPE_CHECKING:
    from skyserve.cli.client import ControlClient
    from skyserve.cli.render import Screen
    from skyserve.model.view import ServiceView


class Detached(KeyboardInterrupt):
    """Ctrl-C, and the user has already been told what goes on without this command."""


@dataclass
class Session:
    """One run of `sky`. `as_json` is set by `--output json`; `now` is Unix seconds, `sleep` takes
    seconds, `controller_command` starts a controller."""

    config: Config
    screen: Screen
    as_json: bool = False
    controller_command: tuple[str, ...] = (sys.executable, "-m", "skyserve.controller")
    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep

    def controller(self) -> ControlClient:
        """The controller; it is started when none runs."""
        from skyserve.cli import daemon

        return daemon.ensure(self)

    def existing_controller(self) -> ControlClient | None:
        """The controller, brought back when it died leaving state; None when nothing was ever served from here."""
        from skyserve.cli import daemon

        return daemon.ensure(self) if daemon.has_state(self.config) else daemon.find(self)

    def services(self) -> tuple[ServiceView, ...]:
        """Every service; none when there is neither a controller nor state."""
        return tuple(view for view in self.everything() if view.kind == "service")

    def clusters(self) -> tuple[ServiceView, ...]:
        """Every cluster; none when there is neither a controller nor state."""
        return tuple(view for view in self.everything() if view.kind == "cluster")

    def everything(self) -> tuple[ServiceView, ...]:
        """Every service and every cluster."""
        client = self.existing_controller()
        return client.services() if client else ()

    def service(self, name: str) -> tuple[ControlClient, ServiceView]:
        """The controller and one service. Raises ServiceNotFound."""
        return self._named(name, "service")

    def cluster(self, name: str) -> tuple[ControlClient, ServiceView]:
        """The controller and one cluster. Raises ServiceNotFound."""
        return self._named(name, "cluster")

    def either(self, name: str) -> tuple[ControlClient, ServiceView]:
        """The controller and the service or cluster of that name. Raises ServiceNotFound."""
        return self._named(name, "service", "cluster")

    def _named(self, name: str, *kinds: str) -> tuple[ControlClient, ServiceView]:
        client = self.existing_controller()
        views = [view for view in client.services() if view.kind in kinds] if client else []
        view = next((view for view in views if view.name == name), None)
        if client is None or view is None:
            raise not_found(name, (view.name for view in views), kinds[0])
        return client, view


def not_found(name: str, known: Iterable[str], kind: str = "service") -> ServiceNotFound:
    """The error for a name that no service (or cluster) has, with the nearest one that exists."""
    near = wording.nearest(name, known)
    listing = "sky serve status" if kind == "service" else "sky status"
    hint = f"did you mean '{near}'?" if near else f"`{listing}` lists the {kind}s"
    return ServiceNotFound(f"no {kind} is called '{name}'", hint=hint)


pass_session = click.make_pass_decorator(Session)
