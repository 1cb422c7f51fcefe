"""A small engine for tests: HTTP on $PORT, standard library only. Its manners are set by the environment.

START_S: seconds before it listens. GATE: a file that must be there before it does. EXIT: exit at once with this code.
NEVER: never listen. STUBBORN: ignore SIGTERM and leave a grandchild in a session of its own. UNHEALTHY: a file whose
existence makes /health answer 500. CERTFILE, KEYFILE: speak TLS. FAILS: of the POSTs, each such one is answered with
500.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

REPLICA = os.environ.get("SKYPILOT_SERVE_REPLICA_ID", "?")
VERSION = os.environ.get("ENGINE_VERSION", "1")
ASKED = count(1)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer leaves in one piece: who is killed has given none, or all of it

    def do_GET(self) -> None:
        if self.path == "/health" and os.path.exists(os.environ.get("UNHEALTHY", "/nonexistent")):
            self._answer(500, {"error": "sick"})
        elif self.path == "/missing":
            self._answer(404, {"error": "nothing here"})
        elif self.path.startswith("/stream"):
            self._stream(int(self.path.rpartition("/")[2]))
        else:
            self._answer(200, self._facts())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "FAILS" in os.environ and next(ASKED) % int(os.environ["FAILS"]) == 0:
            self._answer(500, {"error": "out of luck"})
            return
        if self.path == "/slow":
            time.sleep(0.3)
        self._answer(200, {**self._facts(), "echo": body.decode()})

    def _facts(self) -> dict[str, str]:
        return {"replica": REPLICA, "version": VERSION, "path": self.path}

    def _answer(self, status: int, body: dict[str, str]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, events: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        for number in [*range(events), "[DONE]"]:
            data = f"data: {number}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()
            time.sleep(0.05)
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    print(f"engine of replica {REPLICA} starts", flush=True)
    if "EXIT" in os.environ:
        print("engine: no such model: gpt-none", file=sys.stderr, flush=True)
        sys.exit(int(os.environ["EXIT"]))
    if "STUBBORN" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
    time.sleep(float(os.environ.get("START_S", "0")))
    while "GATE" in os.environ and not os.path.exists(os.environ["GATE"]):
        time.sleep(0.05)
    if "NEVER" in os.environ:
        signal.pause()
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
    server.daemon_threads = True
    if "CERTFILE" in os.environ:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(os.environ["CERTFILE"], os.environ["KEYFILE"])
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


if __name__ == "__main__":
    main()
