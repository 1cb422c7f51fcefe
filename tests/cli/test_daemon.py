"""Finding and starting the controller: real processes, a real lock."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
import time

import pytest

# A controller in a few lines: takes the lock, or leaves with 75; announces itself; ends on SIGTERM.
CONTROLLER = textwrap.dedent(
    """
    import fcntl, json, os, sys
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from pathlib import Path
    import skyserve

    home = Path(os.environ["SKYSERVE_HOME"])
    lock = os.open(home / "controller.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(75)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            known = {"pid": os.getpid(), "version": skyserve.__version__, "started_at": 0, "home": str(home)}
            answer = {"/v1/controller": known, "/v1/services": {"services": []}}[self.path]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

    server = HTTPServer(("127.0.0.1", 0), Handler)
    print("started", flush=True)
    where = {"pid": os.getpid(), "url": f"http://127.0.0.1:{server.server_port}", "token": "t"}
    (home / "controller.new").write_text(json.dumps(where))
    (home / "controller.new").rename(home / "controller.json")
    server.serve_forever()
    """
)
SKY = textwrap.dedent(
    """
    import sys
    from skyserve.cli.main import main
    from skyserve.cli.render import Screen
    from skyserve.cli.session import Session
    from skyserve.config import Config

    command = (sys.executable, "-c", sys.argv[1])
    session = Session(Config.from_environ(), Screen.standard({}), controller_command=command)
    sys.exit(main(sys.argv[2:], session))
    """
)


def _command(home, controller, *args):
    environ = {**os.environ, "SKYSERVE_HOME": str(home)}
    command = [sys.executable, "-c", SKY, controller, *args]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _result(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.fixture
def stateful(home):
    """A home in which services were left, so that `status` starts a controller; it is ended afterwards."""
    home.mkdir(mode=0o700)
    (home / "state.db").touch()
    yield home
    for line in (home / "controller.json").read_text().split(",") if (home / "controller.json").exists() else []:
        if '"pid"' in line:
            os.kill(int(line.rpartition(":")[2]), signal.SIGTERM)


def test_two_commands_start_one_controller(stateful):
    both = [_command(stateful, CONTROLLER, "serve", "status") for _ in range(2)]
    for code, out, _ in map(_result, both):
        assert (code, out) == (0, "No existing services.\n")
    assert (stateful / "controller.log").read_text().count("started") == 1
    assert stat.S_IMODE((stateful / "controller.log").stat().st_mode) == 0o600


def test_the_next_command_finds_it(stateful):
    assert _result(_command(stateful, CONTROLLER, "serve", "status"))[0] == 0
    code, out, err = _result(_command(stateful, "raise SystemExit(9)", "serve", "status"))
    assert (code, out, err) == (0, "No existing services.\n", "")


def test_a_dead_controller_is_replaced(stateful):
    (stateful / "controller.json").write_text('{"pid": 1, "url": "http://127.0.0.1:9", "token": "old"}')
    assert _result(_command(stateful, CONTROLLER, "serve", "status"))[0] == 0


def test_a_stillborn_controller_tells_why(stateful):
    begun = time.monotonic()
    code, out, err = _result(_command(stateful, "raise SystemExit('the disk is on fire')", "serve", "status"))
    assert (code, out) == (1, "")
    assert "the controller did not start: it ended with exit code 1; it said:\n  the disk is on fire\n" in err
    assert "hint: `sky controller logs` shows more" in err
    assert time.monotonic() - begun < 15


def test_home_is_made_for_this_user_alone(sky, home, yaml):
    sky("serve", "up", str(yaml), "-y")  # its controller does not start
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_a_home_that_cannot_be_made(sky, home, yaml):
    home.write_text("a file is in the way")
    result = sky("serve", "up", str(yaml), "-y", "-o", "json")
    assert result.code == 1
    assert result.json["error"]["code"] == "STORE_UNAVAILABLE"
    assert "SKYSERVE_HOME" in result.json["error"]["hint"]


def test_a_living_controller_that_says_nothing(sky, fake, home):
    (home / "controller.json").unlink()
    result = sky("serve", "status")
    assert result.code == 1
    assert "has not said where it listens" in result.err
