"""What a test node answers to the API server: the logs of its pods, and commands run in them.

Knows the two protocols that kubelets speak for that, and a pod's log file, first process and environment; must not know
how pods come and go.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import sha1
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import IO, TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from tests.bed.kubelet import PodProcess


class NodeServer:
    """What the API server asks nodes for, over TLS: GET /containerLogs/NAMESPACE/POD/CONTAINER?follow=true&tailLines=N,
    and a WebSocket at /exec/NAMESPACE/POD/CONTAINER?command=... in the protocol `v4.channel.k8s.io`."""

    def __init__(self, certificates: Path, address: str, pods: Mapping[str, PodProcess]) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                del format, args

        self._pods = pods
        self._closing = threading.Event()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificates / "apiserver.crt", certificates / "apiserver.key")

        class Server(ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = False

            def handle_error(self, request: object, client_address: object) -> None:
                """A reader that hangs up is no news."""

            def get_request(self) -> tuple[socket.socket, object]:
                connection, client = super().get_request()
                wrapped = tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                wrapped.settimeout(30)
                return wrapped, client

        self._server = Server((address, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="node server")
        self._thread.start()

    @property
    def port(self) -> int:
        port: int = self._server.server_address[1]
        return port

    def stop(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        what, _, name = url.path.split("/")[1:4]
        pod = self._pods.get(name)
        request.close_connection = True
        if what == "exec" and pod is not None and pod.init is not None:
            _Exec(request, pod, parse_qs(url.query)["command"]).run()
            return
        request.send_response(200 if pod else 404)
        request.send_header("Content-Type", "text/plain")
        request.send_header("Transfer-Encoding", "chunked")
        request.send_header("Connection", "close")
        request.end_headers()
        for data in self._log(pod, query) if pod else [b"no such pod"]:
            request.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            request.wfile.flush()
        request.wfile.write(b"0\r\n\r\n")

    def _log(self, pod: PodProcess, query: dict[str, str]) -> Iterator[bytes]:
        follow = query.get("follow") == "true"
        with pod.log.open("rb") as log:
            data = log.read()
            if "tailLines" in query:
                lines = data.splitlines(keepends=True)
                data = b"".join(lines[max(0, len(lines) - int(query["tailLines"])) :])
            while True:
                if data:
                    yield data
                over = pod.over.is_set() or self._closing.is_set()
                data = log.read()
                if data:
                    continue
                if not follow or over:
                    return
                pod.over.wait(0.05)


class _Exec:
    """One command in a pod, over a WebSocket: the first byte of each message tells the stream."""

    _STDIN, _STDOUT, _STDERR, _STATUS = range(4)
    _MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

    def __init__(self, request: BaseHTTPRequestHandler, pod: PodProcess, command: list[str]) -> None:
        self._request = request
        self._writing = threading.Lock()
        inside = ["nsenter", "-t", str(pod.init), "-m", "-p", "-n", f"--root=/proc/{pod.init}/root", "--"]
        environment = (pod.base / "environment").read_bytes().decode().split("\0")[:-1]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [*inside, "env", "--chdir=/", "-i", *environment, *command], stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0
        )

    def run(self) -> None:
        """Until the command ends."""
        key = self._request.headers["Sec-WebSocket-Key"].encode()
        self._request.send_response(101)
        self._request.send_header("Upgrade", "websocket")
        self._request.send_header("Connection", "Upgrade")
        self._request.send_header("Sec-WebSocket-Accept", base64.b64encode(sha1(key + self._MAGIC).digest()).decode())
        self._request.send_header("Sec-WebSocket-Protocol", "v4.channel.k8s.io")
        self._request.end_headers()
        with self._process as process:
            pumps = [
                threading.Thread(target=self._tell, args=(self._STDOUT, process.stdout)),
                threading.Thread(target=self._tell, args=(self._STDERR, process.stderr)),
            ]
            hearing = threading.Thread(target=self._hear)
            for thread in (*pumps, hearing):
                thread.start()
            for thread in pumps:
                thread.join()
            code = process.wait()
            causes = [{"reason": "ExitCode", "message": str(code)}]
            status = {"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": causes}}
            self._send(0x2, bytes([self._STATUS]) + json.dumps(status if code else {"status": "Success"}).encode())
            self._send(0x8, (1000).to_bytes(2, "big"))
            hearing.join()

    def _tell(self, channel: int, stream: IO[bytes]) -> None:
        while data := stream.read(4096):
            self._send(0x2, bytes([channel]) + data)

    def _send(self, kind: int, data: bytes) -> None:
        size = len(data)
        head = bytes([0x80 | kind, size]) if size < 126 else bytes([0x80 | kind, 126]) + size.to_bytes(2, "big")
        with self._writing, suppress(OSError):
            self._request.wfile.write(head + data)
            self._request.wfile.flush()

    def _hear(self) -> None:
        """What the client sends goes to stdin, which ends when the client goes."""
        source, stdin = self._request.rfile, self._process.stdin
        with suppress(OSError, IndexError):
            while True:
                head = source.read(2)
                size = head[1] & 0x7F
                size = int.from_bytes(source.read({126: 2, 127: 8}[size]), "big") if size > 125 else size
                mask = source.read(4)
                data = bytes(byte ^ mask[index % 4] for index, byte in enumerate(source.read(size)))
                if head[0] & 0xF == 0x8:
                    break
                if data and data[0] == self._STDIN and stdin:
                    stdin.write(data[1:])
        if stdin:
            stdin.close()
