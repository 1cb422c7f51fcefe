"""`python -m skyserve.load_balancer`: one door for one service, in a process of its own.

It knows the command line, signals and exit codes; all else is in the modules it puts together.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from skyserve.load_balancer import worker
from skyserve.load_balancer.board import Board, new_board
from skyserve.load_balancer.cpus import usual_workers
from skyserve.load_balancer.crew import Crew
from skyserve.load_balancer.door import Door
from skyserve.load_balancer.server import Server, open_listener
from skyserve.load_balancer.sync import AdminServer, TableFile
from skyserve.load_balancer.tls import Certificate
from skyserve.model.service import Tls

EXIT_PORT_IN_USE = 98
"""Exit code when something else listens on the port."""

GRACE_S = 10.0
"""How long requests under way may go on after SIGTERM."""

OTHER_FILES = 64
"""Descriptors left for the log, the admin socket and the loop, and for a few idle connections to replicas."""

MANY_FILES = 1_000_000

PLENTY_OF_FILES = 65_536
"""Descriptors that are asked for where the limit is lower, and granted to who may raise it, such as most roots."""

logger = logging.getLogger("skyserve.load_balancer")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; the exit code."""
    options = _parser().parse_args(argv)
    directory: Path = options.dir
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    os.umask(0o077)
    files = _raise_file_limit()
    if options.worker:
        board, most = Board(options.board, options.worker), _most_clients(files)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(worker.serve((options.host, options.port), options.channel, board, most))
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        listener = open_listener(options.host, options.port)
    except OSError as error:
        logger.error("cannot listen on %s port %d: %s", options.host, options.port, error.strerror)
        return EXIT_PORT_IN_USE if error.errno == errno.EADDRINUSE else 1
    try:
        tls = _certificate(options.tls_keyfile, options.tls_certfile)
    except OSError as error:  # ssl.SSLError is one
        logger.error("cannot use the TLS key and certificate: %s", error)
        listener.close()
        return 1
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(options, files, listener, tls))


async def _serve(options: argparse.Namespace, files: int, listener: socket.socket, tls: Certificate | None) -> int:
    service: str = options.service
    directory: Path = options.dir
    admin_path: Path = options.socket
    loop = asyncio.get_running_loop()
    door = Door(os.urandom(8).hex(), loop.time, Random())
    server = Server(door, _most_clients(files))
    tables = TableFile(directory)
    port: int = listener.getsockname()[1]
    admin = AdminServer(door, tables, port, server.stop)
    crew = admin.crew = Crew(_worker_command(options, port), new_board(), admin.report_soon, usual_workers())
    kept = tables.load()
    if kept is not None:
        admin.obey(kept)
    try:
        await admin.start(admin_path)
    except OSError as error:
        logger.error("cannot open the admin socket %s: %s", admin_path, error)
        listener.close()
        return 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, admin.stop, GRACE_S)
        await server.start(listener, tls)
        gc.collect()
        gc.freeze()  # what is here now stays: no need to look at it again and again
        logger.info("service %s: serving on port %d, routing table %d", service, port, door.table.number)
        await server.stopped
        await crew.gone()
    finally:
        admin.close()
    await asyncio.sleep(0)  # let closed transports say goodbye
    logger.info("service %s: stopped", service)
    return 0


def _most_clients(files: int) -> int:
    return max(1, (files - OTHER_FILES) // 2)


def _worker_command(options: argparse.Namespace, port: int) -> list[str]:
    command = [sys.executable, "-m", "skyserve.load_balancer", "--service", options.service, "--dir", str(options.dir)]
    return [*command, "--host", options.host, "--port", str(port), "--socket", str(options.socket)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m skyserve.load_balancer", description="The door of one service.")
    parser.add_argument("--service", required=True, help="name of the service, for the log")
    parser.add_argument("--dir", required=True, type=Path, help="directory that keeps the last routing table")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=30001, help="port to listen on; 0 takes a free one")
    parser.add_argument("--tls-keyfile", type=Path, help="private key of the endpoint; with it clients speak HTTPS")
    parser.add_argument("--tls-certfile", type=Path, help="its certificate")
    parser.add_argument("--socket", required=True, type=Path, help="path of the admin socket")
    for name in ("--worker", "--channel", "--board"):  # of a further worker, from the first one
        parser.add_argument(name, type=int, default=0, help=argparse.SUPPRESS)
    return parser


def _certificate(keyfile: Path | None, certfile: Path | None) -> Certificate | None:
    return None if keyfile is None or certfile is None else Certificate(Tls(str(keyfile), str(certfile)))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop


def _raise_file_limit() -> int:
    """Each client takes two descriptors, its own and a replica's; take all that we may have, and say how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (hard, PLENTY_OF_FILES):
        if wanted == hard or resource.RLIM_INFINITY != hard < wanted:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MANY_FILES if soft == resource.RLIM_INFINITY else soft


if __name__ == "__main__":
    sys.exit(main())
