"""`sky controller`: status, stop and logs, with and without a controller."""

from __future__ import annotations

import fcntl


def test_status(sky, fake, make_service):
    fake.services = {"web": make_service("web", "READY")}
    result = sky("controller", "status")
    assert result.code == 0
    assert "The controller is running: pid 42, version " in result.out
    assert "for 1m.\n" in result.out
    assert result.out.endswith("Services:    web\n")
    found = sky("controller", "status", "-o", "json").json
    assert (found["running"], found["pid"], found["services"]) == (True, 42, ["web"])


def test_status_without_one_starts_none(sky, home):
    assert sky("controller", "status").out == "The controller is not running.\n"
    assert sky("controller", "status", "-o", "json").json == {"running": False, "home": str(home)}
    assert not home.exists()


def test_stop_waits_for_the_lock(sky, fake, home, make_service):
    fake.services = {"web": make_service("web", "READY")}

    class Stopping(type(sky)):
        """Lets the controller's lock go while the command waits for it."""

        def _sleep(self, seconds):
            fcntl.flock(fake.lock, fcntl.LOCK_UN)
            super()._sleep(seconds)

    result = Stopping(home)("controller", "stop")
    assert result.code == 0
    assert result.out == "The controller has stopped.\n"
    assert "Replicas and endpoints go on" in result.err
    assert fake.calls("POST", "/v1/controller/stop") == [{}]


def test_stop_without_services_promises_nothing(sky, fake, home):
    fcntl.flock(fake.lock, fcntl.LOCK_UN)
    result = sky("controller", "stop")
    assert (result.code, result.err) == (0, "")


def test_stop_that_does_not_come(sky, fake):
    result = sky("controller", "stop")
    assert result.code == 1
    assert "still there" in result.err


def test_stop_without_one(sky):
    assert sky("controller", "stop", "-o", "json").json == {"stopped": False}


def test_logs_need_no_controller(sky, home):
    home.mkdir()
    (home / "controller.log").write_text("one\ntwo\nthree\n")
    assert sky("controller", "logs", "--tail", "2").out == "two\nthree\n"
    assert sky("controller", "logs", "--tail", "1", "-o", "json").json_lines == [{"line": "three"}]


def test_logs_follow(sky, home):
    home.mkdir()
    log = home / "controller.log"
    log.write_text("one\n")

    class Growing(type(sky)):
        """Adds to the log while the command sleeps."""

        def _sleep(self, seconds):
            with log.open("a") as file:
                file.write("more\n")
            super()._sleep(seconds)

    result = Growing(home, interrupt_after_sleeps=2)("controller", "logs", "-f")
    assert result.code == 130
    assert result.out == "one\nmore\nmore\n"
    assert "the controller goes on" in result.err


def test_no_log(sky):
    result = sky("controller", "logs")
    assert (result.code, result.out) == (0, "")
