"""169.254.169.254 inside a host: HTTP requests are answered in this process, by whatever function the host was given.

A socket belongs to the namespace in which it was made, so it is made next to the host and served from here. Must not
know what any cloud says there.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Final

from tests.bed.network import METADATA, beside, ip
from tests.bed.private import Namespace

Answer = Callable[[str, str, Mapping[str, str]], tuple[int, bytes]]

_PATIENCE_S: Final = 10.0


class MetadataServer(ThreadingMixIn, TCPServer):
    """Answers the host at `address` until `close`.

    `answer` gets method, path and headers (names in lower case) and gives status and body.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 16

    def __init__(self, host: Namespace, address: str, answer: Answer) -> None:
        self.answer = answer
        self._host = host
        self._namespace = beside(host, address)
        super().__init__((METADATA, 80), _Request, bind_and_activate=False)
        self.socket.close()
        self.socket = self._namespace.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        self.server_bind()
        self.server_activate()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="bed-metadata", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering. Does not wait for requests that are being answered."""
        self.shutdown()
        self._thread.join()
        self.server_close()
        self._host.run(lambda: ip("link delete metadata"))
        self._namespace.close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A host that was killed while it asked is no news."""


class _Request(BaseHTTPRequestHandler):
    server: MetadataServer
    timeout = _PATIENCE_S

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            status, body = self.server.answer(self.command, self.path, headers)
        except KeyError:
            status, body = 404, b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: the test's output is not the place."""
