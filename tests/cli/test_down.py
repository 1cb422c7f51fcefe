"""`sky serve down`: what is chosen, what is asked, and the wait for the end."""

from __future__ import annotations

import pytest


@pytest.fixture
def three(fake, make_service, make_replica):
    """Services test-a, test-b and web."""
    for name in ("test-a", "test-b", "web"):
        fake.services[name] = make_service(name, "READY", make_replica(1), make_replica(2))
    return fake


def _deleted(fake) -> list[str]:
    return [path for method, path, _ in fake.requests if method == "DELETE"]


def test_waits_until_it_is_gone(sky, fake, make_service, make_replica):
    leaving = make_service("web", "SHUTTING_DOWN", make_replica(1, "SHUTTING_DOWN"))
    fake.script = {"web": [make_service("web", "READY", make_replica(1)), leaving, leaving, None]}
    result = sky("serve", "down", "web", "-y")
    assert (result.code, result.out) == (0, "")
    assert "replica 1    SHUTTING_DOWN" in result.err
    assert result.err.endswith("Terminated service 'web' with 1 replica.\n")
    assert _deleted(fake) == ["/v1/services/web?purge=0"]


def test_glob_and_question(sky, three):
    result = sky("serve", "down", "test-*", "--async", "--purge", answer="y\n")
    assert result.code == 0
    assert "Terminating services 'test-a', 'test-b' with 4 replicas. Proceed? [Y/n]: " in result.err
    assert _deleted(three) == ["/v1/services/test-a?purge=1", "/v1/services/test-b?purge=1"]


def test_all_as_json(sky, three):
    result = sky("serve", "down", "--all", "-y", "--async", "-o", "json")
    assert result.json == {"services": ["test-a", "test-b", "web"], "replica_id": None, "ended": False}


def test_no_is_no(sky, three):
    result = sky("serve", "down", "web", answer="n\n")
    assert result.code == 2
    assert "Nothing was terminated." in result.err
    assert _deleted(three) == []


def test_nobody_to_ask(sky, three):
    result = sky("serve", "down", "web")
    assert result.code == 2
    assert "add --yes" in result.err


def test_one_replica(sky, fake, make_service, make_replica):
    both = make_service("web", "READY", make_replica(1), make_replica(2))
    fake.script = {"web": [both, both, make_service("web", "READY", make_replica(1))]}
    result = sky("serve", "down", "web", "--replica-id", "2", "-y")
    assert result.code == 0
    assert "Terminated replica 2 of service 'web'." in result.err
    assert _deleted(fake) == ["/v1/services/web/replicas/2"]


def test_no_such_replica(sky, three):
    result = sky("serve", "down", "web", "--replica-id", "9", "-y")
    assert result.code == 2
    assert "service 'web' has no replica 9; it has: 1, 2" in result.err
    assert sky("serve", "down", "test-*", "--replica-id", "1", "-y").code == 2


@pytest.mark.parametrize("args", [(), ("web", "--all")])
def test_names_or_all(sky, fake, args):
    assert sky("serve", "down", *args).code == 2


def test_unknown_name(sky, three):
    result = sky("serve", "down", "wep", "-y")
    assert result.code == 1
    assert "did you mean 'web'?" in result.err


def test_all_of_nothing(sky, home):
    result = sky("serve", "down", "--all", "-y")
    assert (result.code, result.err) == (0, "No existing services.\n")
    assert not home.exists()


def test_ctrl_c_while_waiting(sky, three):
    sky.interrupt_after_sleeps = 0
    result = sky("serve", "down", "web", "-y")
    assert result.code == 130
    assert "The termination of service 'web' with 2 replicas goes on." in result.err
