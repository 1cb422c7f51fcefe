"""`sky catalog`: what is in use, the user's own, and fresh prices from a cloud that is a server of the test."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from skyserve.catalog import snapshot
from skyserve.catalog.row import Source
from skyserve.catalog.table import Table

KEY = "key-that-nobody-may-see"
ANSWER = {
    "data": {
        "gpu_1x_new": {
            "instance_type": {
                "gpu_description": "L4 (24 GB)",
                "price_cents_per_hour": 50,
                "specs": {"vcpus": 8, "memory_gib": 32, "gpus": 1},
            },
            "regions_with_capacity_available": [{"name": "us-west-1"}],
        }
    }
}


@pytest.fixture
def lambda_url() -> Iterator[str]:
    """A price API that knows one key."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers.get("Authorization") == f"Bearer {KEY}"
            content = json.dumps(ANSWER if known else {"error": {"code": "auth"}}).encode()
            self.send_response(200 if known else 401)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_status_says_what_is_in_use(sky, prices):
    result = sky("catalog", "status")
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[:3] == [
        ["Prices", "in", "use"],
        ["CLOUD", "ORIGIN", "PRICES", "ACCELERATORS", "REGIONS", "OLDEST", "NEWEST"],
        ["AWS", "used", "4", "1", "2", "-", "-"],
    ]
    assert "Sources" in result.out
    (first, *_) = sky("catalog", "status", "-o", "json").json["clouds"]
    assert (first["origin"], first["summary"]["cloud"]) == ("used", "aws")


def test_use_and_go_back(sky, price_list):
    found = sky("catalog", "use", str(price_list), "-o", "json").json["clouds"]
    assert {one["origin"] for one in found} == {"used"}
    found = sky("catalog", "use", "builtin", "-o", "json").json["clouds"]
    assert {one["origin"] for one in found} == {"built-in"}


def _refreshed(home, table: Table) -> None:
    rows = [row._replace(source="test") for row in table.rows() if row.cloud == "gcp"]
    snapshot.write_cloud(home, "gcp", rows, Source("test", "a test"))


def test_going_back_keeps_refreshed_prices_unless_there_is_nothing_else_to_give_up(sky, home, prices):
    _refreshed(home, snapshot.current(home))
    assert "refreshed" in sky("catalog", "use", "builtin").out
    assert "refreshed" not in sky("catalog", "use", "builtin").out


def test_going_back_gives_up_what_is_damaged(sky, home, prices):
    _refreshed(home, snapshot.current(home))
    for archive in prices.rglob("*.catalog"):
        archive.write_bytes(b"x")
    assert sky("catalog", "status").code == 1
    result = sky("catalog", "use", "builtin")
    assert result.code == 0
    assert "refreshed" not in result.out


@pytest.mark.parametrize("content", [None, "no,price,list\n1,2,3\n"])
def test_a_file_that_cannot_be_used_changes_nothing(sky, prices, tmp_path, content):
    path = tmp_path / "bad.csv"
    if content:
        path.write_text(content)
    before = sky("catalog", "status").out
    result = sky("catalog", "use", str(path), "-o", "json")
    assert result.code == 1
    assert result.json["error"]["code"] == "CATALOG"
    assert sky("catalog", "status").out == before


def test_refresh(sky, home, lambda_url):
    sky.environ = {"LAMBDA_API_KEY": KEY}
    args = ("catalog", "refresh", "--cloud", "lambda", "--base-url", f"lambda={lambda_url}")
    result = sky(*args)
    assert result.code == 0, result.err
    assert result.out == "Lambda: 1 prices\n"
    stages = [line.split()[:2] for line in result.err.splitlines() if line.startswith("Lambda ")]
    assert stages == [["Lambda", "0%"], ["Lambda", "100%"]]
    assert KEY not in result.err
    assert [row.instance_type for row in snapshot.current(home).rows() if row.cloud == "lambda"] == ["gpu_1x_new"]
    (found,) = sky(*args, "-o", "json").json["clouds"]
    assert (found["cloud"], found["rows"], found["error"]) == ("lambda", 1, None)


@pytest.mark.parametrize(("key", "code"), [("", "CREDENTIALS_REJECTED"), ("wrong", "CREDENTIALS_REJECTED")])
def test_a_refresh_that_fails(sky, lambda_url, key, code):
    sky.environ = {"LAMBDA_API_KEY": key} if key else {}
    result = sky("catalog", "refresh", "--cloud", "lambda", "--base-url", f"lambda={lambda_url}", "-o", "json")
    assert result.code == 1
    assert result.json["clouds"][0]["error"]["code"] == code
    assert "Lambda: not refreshed, the last prices stay in use" in result.err


def test_refresh_on_a_terminal(sky, lambda_url, plain):
    sky.environ = {"LAMBDA_API_KEY": KEY}
    result = sky("catalog", "refresh", "--cloud", "lambda", "--base-url", f"lambda={lambda_url}", answer="")
    assert result.code == 0
    assert "100%           1/1 instance types" in plain(result.err)


def test_an_interrupted_refresh_changes_nothing(home):
    """A cloud that accepts the connection and says nothing, until Ctrl-C."""
    command = [sys.executable, "-m", "skyserve.cli.main", "catalog", "refresh", "--cloud", "lambda", "--base-url"]
    environ = {**os.environ, "SKYSERVE_HOME": str(home), "LAMBDA_API_KEY": KEY}
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(30)
        url = f"lambda=http://127.0.0.1:{mute.getsockname()[1]}"
        pipe = subprocess.PIPE
        with subprocess.Popen([*command, url], stdout=pipe, stderr=pipe, env=environ, text=True) as process:
            connection, _ = mute.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "The same command goes on from here" in err
    assert {one.origin for one in snapshot.status(home)} == {snapshot.Origin.BUILT_IN}


@pytest.mark.parametrize("args", [["--cloud", "acme"], ["--base-url", "lambda"]])
def test_a_wrong_refresh(sky, args):
    assert sky("catalog", "refresh", *args).code == 2
