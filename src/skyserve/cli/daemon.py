"""Finds the controller of this installation, and starts it when none runs.

The controller holds a lock while it lives, and writes its address and token to a file. Knows files and processes; knows
nothing of services. The lock is looked at only when the address does not answer, so that looking never keeps a starting
controller from taking it.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from skyserve import __version__
from skyserve.cli import wording
from skyserve.cli.client import ControlClient
from skyserve.errors import ControllerUnavailable, StoreUnavailable, Unauthorized

if TYPE_CHECKING:
    from skyserve.cli.session import Session
    from skyserve.config import Config

START_DEADLINE_S = 20.0
"""How long a controller may take from being started to its first answer."""
_TOKEN_DEADLINE_S = 2.0
_POLL_S = 0.05
_GREETING_TIMEOUT_S = 5.0
_SPAWNS = 2
_LOG_LINES = 8
_LOGS_HINT = "`sky controller logs` shows more"


def has_state(config: Config) -> bool:
    """Whether services may have been left here by a controller."""
    try:
        return config.database.exists()
    except OSError as error:
        raise _unusable(config, error) from error


def find(session: Session) -> ControlClient | None:
    """The controller that runs, or None.

    Raises ControllerUnavailable when one lives but does not answer, Unauthorized when it does not know our token.
    """
    begun_at = session.now()
    while True:
        client, trouble = _greet(session)
        if client is not None:
            return client
        if not lock_is_held(session.config):
            return None
        # It may be starting or leaving, or have given way to another one since its file was read.
        patience_s = _TOKEN_DEADLINE_S if isinstance(trouble, Unauthorized) else START_DEADLINE_S
        if session.now() - begun_at >= patience_s:
            raise trouble or _mute(session.config)
        session.sleep(_POLL_S)


def ensure(session: Session) -> ControlClient:
    """The controller, started if need be. Of two that are started at once, both callers get the one that won."""
    return find(session) or _start(session)


def lock_is_held(config: Config) -> bool:
    """Whether a controller lives."""
    try:
        with config.controller_lock.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unusable(config, error) from error
    return False


def make_home(config: Config) -> None:
    """Create the state directory, for this user alone. Raises StoreUnavailable when that cannot be."""
    try:
        config.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(config, error) from error
    if not os.access(config.home, os.W_OK | os.X_OK):
        raise StoreUnavailable(f"{config.home} is not writable", hint=_home_hint())


def log_tail(config: Config, lines: int, *, start: int = 0) -> list[str]:
    """The last lines of the controller's log after byte `start`; none when there is no log."""
    try:
        with config.controller_log.open("rb") as log:
            log.seek(start)
            return wording.last_lines(log.read().decode(errors="replace"), lines)
    except FileNotFoundError:
        return []


def _greet(session: Session) -> tuple[ControlClient | None, ControllerUnavailable | Unauthorized | None]:
    client = _advertised(session.config)
    if client is None:
        return None, None
    try:
        info = client.controller()
    except (ControllerUnavailable, Unauthorized) as error:
        return None, error
    if info.version != __version__:
        session.screen.warn(
            f"the controller is version {info.version}, this command {__version__}: `sky controller stop` renews it"
        )
    return ControlClient(client.url, client.token), None


def _advertised(config: Config) -> ControlClient | None:
    try:
        found: object = json.loads(config.controller_file.read_text())
    except (FileNotFoundError, ValueError):  # absent, or half written
        return None
    except OSError as error:
        raise _unusable(config, error) from error
    if not isinstance(found, dict) or not found.get("url"):
        return None
    return ControlClient(str(found["url"]), str(found.get("token", "")), timeout_s=_GREETING_TIMEOUT_S)


def _start(session: Session) -> ControlClient:
    config = session.config
    make_home(config)
    session.screen.say("Starting the controller.", "dim")
    logged_before = config.controller_log.stat().st_size if config.controller_log.exists() else 0
    deadline = session.now() + START_DEADLINE_S
    process, spawns = _spawn(session), 1
    trouble: ControllerUnavailable | Unauthorized | None = None
    while session.now() < deadline:
        client, trouble = _greet(session)
        if client is not None:
            return client
        if process.poll() is not None and not lock_is_held(config):
            if process.returncode != os.EX_TEMPFAIL or spawns == _SPAWNS:
                raise _stillborn(config, logged_before, f"it ended with exit code {process.returncode}")
            process, spawns = _spawn(session), spawns + 1  # it lost the lock to one that is gone by now
        session.sleep(_POLL_S)
    raise _stillborn(config, logged_before, trouble.message if trouble else f"no answer in {START_DEADLINE_S:.0f} s")


def _spawn(session: Session) -> subprocess.Popen[bytes]:
    config = session.config
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    try:
        log = os.open(config.controller_log, flags, 0o600)
    except OSError as error:
        raise _unusable(config, error) from error
    try:
        return subprocess.Popen(
            session.controller_command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(config),
            cwd=config.home,
            start_new_session=True,
        )
    except OSError as error:
        raise ControllerUnavailable(f"the controller cannot be started: {error}", hint=_LOGS_HINT) from error
    finally:
        os.close(log)


def _environment(config: Config) -> dict[str, str]:
    return {
        **config.inherited_env,
        "SKYSERVE_HOME": str(config.home),
        "SKYSERVE_PUBLIC_ADDRESS": ",".join(config.public_addresses),
        "SKYSERVE_IDLE_EXIT_S": str(config.idle_exit_s),
        "SKYSERVE_DEBUG": "1" if config.debug else "0",
    }


def _stillborn(config: Config, logged_before: int, why: str) -> ControllerUnavailable:
    lines = log_tail(config, _LOG_LINES, start=logged_before)
    said = "".join(f"\n  {line}" for line in lines)
    return ControllerUnavailable(
        f"the controller did not start: {why}{'; it said:' if said else ''}{said}", hint=_LOGS_HINT
    )


def _mute(config: Config) -> ControllerUnavailable:
    return ControllerUnavailable(
        f"a controller holds {config.controller_lock} but has not said where it listens",
        hint=_LOGS_HINT,
    )


def _unusable(config: Config, error: OSError) -> StoreUnavailable:
    where = Path(str(error.filename)) if error.filename else config.home
    return StoreUnavailable(f"{where} cannot be used: {error.strerror or error}", hint=_home_hint())


def _home_hint() -> str:
    return "free some space or fix the permissions, or set SKYSERVE_HOME to a directory that can be written"
