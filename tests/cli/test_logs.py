"""`sky serve logs`: which logs, whose line is whose, files, and what Ctrl-C means."""

from __future__ import annotations

import pytest


@pytest.fixture
def talking(fake, make_service, make_replica):
    """A service of two replicas that have said something; the second one's ä is cut in two."""
    fake.services = {"web": make_service("web", "READY", make_replica(1), make_replica(2))}
    fake.logs = {
        ("replica", 1): [b"one\ntw", b"o\n"],
        ("replica", 2): [b"\xc3", b"\xa4 unfinished"],
        ("load_balancer", None): [b"door\n"],
        ("controller", None): [b"brain\n"],
    }
    return fake


def test_one_replica(sky, talking):
    result = sky("serve", "logs", "web", "1", "--no-follow", "--tail", "5")
    assert (result.code, result.out, result.err) == (0, "one\ntwo\n", "")
    assert any("replica=1" in path and "tail=5" in path and "follow=0" in path for _, path, _ in talking.requests)


def test_all_replicas_are_told_apart(sky, talking):
    result = sky("serve", "logs", "web", "--no-follow")
    assert result.out == "(replica 1) one\n(replica 1) two\n(replica 2) ä unfinished\n"


def test_json_lines(sky, talking):
    result = sky("serve", "logs", "web", "--no-follow", "-o", "json")
    assert result.json_lines[-1] == {"source": "replica", "replica_id": 2, "line": "ä unfinished"}


@pytest.mark.parametrize(("flag", "line"), [("--load-balancer", "door\n"), ("--controller", "brain\n")])
def test_other_sources(sky, talking, flag, line):
    assert sky("serve", "logs", "web", flag, "--no-follow").out == line


def test_follow_ends_with_the_replicas(sky, talking):
    talking.ended.set()
    result = sky("serve", "logs", "web", "1", "2")
    assert result.code == 0
    assert sorted(result.out.splitlines()) == ["(replica 1) one", "(replica 1) two", "(replica 2) ä unfinished"]


def test_following_all_ends_with_the_service(sky, talking, make_service, make_replica):
    talking.ended.set()
    sky.virtual = False
    alone = make_service("web", "READY", make_replica(1))
    grown = make_service("web", "READY", make_replica(1), make_replica(2))
    talking.script = {"web": [alone, alone, grown, None]}
    result = sky("serve", "logs", "web")
    assert result.code == 0
    assert sorted(result.out.splitlines()) == ["(replica 2) ä unfinished", "one", "two"]


def test_a_replica_that_has_not_begun_is_waited_for(sky, talking, make_service, make_replica):
    talking.ended.set()
    sky.virtual = False
    talking.logs[("replica", 1)] = []
    starting = make_service("web", "REPLICA_INIT", make_replica(1, "PENDING"))
    talking.script = {"web": [starting, starting, make_service("web", "FAILED", make_replica(1, "FAILED"))]}
    result = sky("serve", "logs", "web", "1")
    assert (result.code, result.out) == (0, "")
    assert sum(path.partition("?")[0].endswith("/logs") for _, path, _ in talking.requests) == 2


def test_no_replicas_yet(sky, fake, make_service):
    fake.services = {"web": make_service("web", "NO_REPLICA")}
    result = sky("serve", "logs", "web", "--no-follow")
    assert (result.code, result.out, result.err) == (0, "", "No existing replicas.\n")


def test_files(sky, talking, tmp_path):
    result = sky("serve", "logs", "web", "--sync-down", "--to", str(tmp_path / "there"))
    names = ["replica-1.log", "replica-2.log", "load_balancer.log", "controller.log"]
    assert result.out.splitlines() == [str(tmp_path / "there" / name) for name in names]
    assert (tmp_path / "there" / "replica-1.log").read_text() == "one\ntwo\n"


def test_files_of_one_replica_as_json(sky, talking, tmp_path):
    path = str(tmp_path / "replica-1.log")
    assert sky("serve", "logs", "web", "1", "-s", "--to", str(tmp_path), "-o", "json").json == {"files": [path]}


def test_wrong_questions(sky, talking):
    assert "it has: 1, 2" in sky("serve", "logs", "web", "7").err
    assert sky("serve", "logs", "web", "1", "--controller").code == 2
    assert sky("serve", "logs", "web", "--to", "x").code == 2
    assert sky("serve", "logs", "nope").code == 1
