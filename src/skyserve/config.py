"""Where things lie and how they are tuned: one frozen `Config`, and the only code that reads the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ENDPOINT_PORTS = range(30001, 31000)
"""Ports that service endpoints are given, lowest free one first."""

_SOCKET_PATH_LIMIT = 100  # sun_path holds 104 bytes on macOS and 108 on Linux


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one installation.

    `home` holds all state (0700). `inherited_env` is what local replicas get of the environment the controller was
    started in: everything but SkyServe's own settings. `public_addresses` are the CIDR ranges from which the door and
    the controller reach machines elsewhere; empty means: to be found out.
    """

    home: Path
    endpoint_host: str = "127.0.0.1"
    public_addresses: tuple[str, ...] = ()
    idle_exit_s: float = 600.0
    debug: bool = False
    inherited_env: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Config:
        """Read the environment: SKYSERVE_HOME, SKYSERVE_IDLE_EXIT_S, SKYSERVE_DEBUG, SKYSERVE_PUBLIC_ADDRESS."""
        env = os.environ if environ is None else environ
        home = env.get("SKYSERVE_HOME")
        return cls(
            home=Path(home).expanduser().resolve() if home else _default_home(),
            idle_exit_s=float(env.get("SKYSERVE_IDLE_EXIT_S", "600")),
            public_addresses=_cidrs(env.get("SKYSERVE_PUBLIC_ADDRESS", "")),
            debug=env.get("SKYSERVE_DEBUG", "") not in ("", "0"),
            inherited_env={key: value for key, value in env.items() if not key.startswith(("SKYSERVE_", "SKYPILOT_"))},
        )

    @property
    def user_home(self) -> Path:
        """The user's home directory, where the clouds' own tools keep their credentials."""
        home = self.inherited_env.get("HOME")
        return Path(home) if home else Path.home()

    @property
    def database(self) -> Path:
        """The embedded database."""
        return self.home / "state.db"

    @property
    def secrets_dir(self) -> Path:
        """Values of the services' secrets, one file (0600) per service and version."""
        return self.home / "secrets"

    @property
    def controller_file(self) -> Path:
        """Where the running controller says its address and token (0600)."""
        return self.home / "controller.json"

    @property
    def controller_lock(self) -> Path:
        """Held by the controller while it lives."""
        return self.home / "controller.lock"

    @property
    def controller_log(self) -> Path:
        """What the controller has to say."""
        return self.home / "controller.log"

    @property
    def local_dir(self) -> Path:
        """The local provider's instances."""
        return self.home / "local"

    def service_dir(self, tag: str) -> Path:
        """Files of one service (by its tag `name-uid`): the door's, and snapshots of its workdirs."""
        return self.home / "services" / tag

    def door_socket(self, tag: str) -> Path:
        """The door's admin socket. A home with a long path gets its sockets in a short directory of their own."""
        path = self.service_dir(tag) / "door.sock"
        if len(str(path).encode()) <= _SOCKET_PATH_LIMIT:
            return path
        import hashlib  # rarely needed, and `sky --help` reads this module too
        import tempfile

        digest = hashlib.sha256(str(path).encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"skyserve-{os.getuid()}" / f"{digest}.sock"


def _cidrs(text: str) -> tuple[str, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return tuple(part if "/" in part else f"{part}/{128 if ':' in part else 32}" for part in parts)


def _default_home() -> Path:
    from platformdirs import user_state_path  # not needed where SKYSERVE_HOME is set

    return user_state_path("skyserve", appauthor=False)
