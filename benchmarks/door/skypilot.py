"""Runs SkyPilot's own load balancer, unchanged, with a controller that knows only which replicas there are.

python skypilot.py PORT CONTROLLER_PORT REPLICA_PORT...      with a Python in whose environment SkyPilot is
"""

from __future__ import annotations

import http.server
import json
import runpy
import sys
import threading


def main() -> None:
    """Serve until killed."""
    _, port, controller, *replicas = sys.argv
    told = json.dumps(
        {"replica_info": {f"http://127.0.0.1:{one}": {"gpu_type": "unknown"} for one in replicas}}
    ).encode()

    class Controller(http.server.BaseHTTPRequestHandler):
        """Says the same to whoever asks."""

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(controller)), Controller)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.argv = ["load_balancer", "--controller-addr", f"http://127.0.0.1:{controller}", "--load-balancer-port", port]
    runpy.run_module("sky.serve.load_balancer", run_name="__main__")


if __name__ == "__main__":
    main()
