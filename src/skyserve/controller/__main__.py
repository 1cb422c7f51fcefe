"""The controller daemon: `python -m skyserve.controller`. One per installation, by a lock on its home."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import secrets
import signal
import socket
import sys
from pathlib import Path

import uvicorn

from skyserve.clock import SystemClock
from skyserve.config import Config
from skyserve.controller.api import Identity, build
from skyserve.controller.supervisor import Supervisor
from skyserve.errors import SkyServeError
from skyserve.providers.registry import Roster
from skyserve.store.secrets import SecretStore
from skyserve.store.sql import open_store

EXIT_ALREADY_RUNNING = 75
IDLE_CHECK_S = 1.0

log = logging.getLogger("skyserve.controller")


def main() -> int:
    """Run until stopped, or until there has been no service for a while. Another one running: exit 75."""
    os.umask(0o077)
    config = Config.from_environ()
    logging.basicConfig(
        level=logging.DEBUG if config.debug else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.INFO)
    try:
        config.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _lock(config.controller_lock)
    except OSError as error:
        log.error("cannot use %s: %s", config.home, error.strerror)
        return 1
    if lock is None:
        return EXIT_ALREADY_RUNNING
    try:
        asyncio.run(_serve(config))
    except SkyServeError as error:
        log.error("%s%s", error.message, f"; hint: {error.hint}" if error.hint else "")
        return error.exit_code
    return 0


def _lock(path: Path) -> int | None:
    """The lock's descriptor, or None when another controller holds it. It is let go by the end of the process alone,
    so that whoever gets it knows that nothing of the one before is left."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


async def _serve(config: Config) -> None:
    clock = SystemClock()
    store = await asyncio.to_thread(open_store, config.database)
    supervisor = Supervisor(config, store, Roster(config, clock), clock, SecretStore(config.secrets_dir))
    await supervisor.start()
    listener = socket.create_server(("127.0.0.1", 0))
    token = secrets.token_urlsafe(32)
    identity = Identity(os.getpid(), clock.now(), token, lambda: setattr(server, "should_exit", True))
    server = uvicorn.Server(
        uvicorn.Config(
            build(supervisor, identity), log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1
        )
    )
    _announce(config, listener.getsockname()[1], token)
    log.info("controller %d serves %s", os.getpid(), config.home)
    idle = asyncio.create_task(_leave_when_idle(config, supervisor, server))
    try:
        await server.serve(sockets=[listener])
    finally:
        idle.cancel()
        config.controller_file.unlink(missing_ok=True)
        await supervisor.close()
        listener.close()
        log.info("controller %d has left; replicas and endpoints go on", os.getpid())


async def _leave_when_idle(config: Config, supervisor: Supervisor, server: uvicorn.Server) -> None:
    while True:
        await asyncio.sleep(IDLE_CHECK_S)
        if not supervisor.names() and supervisor.clock.now() - supervisor.last_service_at > config.idle_exit_s:
            log.info("no service for %gs: leaving", config.idle_exit_s)
            server.should_exit = True


def _announce(config: Config, port: int, token: str) -> None:
    """Write where the API is, whole or not at all."""
    body = {"pid": os.getpid(), "url": f"http://127.0.0.1:{port}", "token": token}
    draft = config.controller_file.with_suffix(".new")
    draft.write_text(json.dumps(body))
    draft.chmod(0o600)
    draft.replace(config.controller_file)


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.exit(main())
