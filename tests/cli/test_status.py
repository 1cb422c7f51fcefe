"""`sky serve status`: the tables word for word, the endpoint, the watch, and what happens without a controller."""

from __future__ import annotations

from dataclasses import replace


def test_tables(sky, fake, make_service, make_replica):
    ready, starting = make_replica(1), make_replica(12, "STARTING", launched_at=1_700_000_000.0 - 5)
    fake.services = {"web": make_service("web", "READY", ready, starting)}
    result = sky("serve", "status")
    assert result.code == 0
    assert result.err == ""
    assert result.out.splitlines() == [
        "Services",
        "NAME  VERSION  UPTIME    STATUS  REPLICAS  ENDPOINT",
        "web   1        1h 2m 3s  READY   1/2       http://127.0.0.1:30001",
        "",
        "Service Replicas",
        "SERVICE_NAME  ID  VERSION  ENDPOINT                LAUNCHED        INFRA            RESOURCES  STATUS",
        "web           1   1        http://127.0.0.1:40001  2 mins ago      local/localhost  1x[host]   READY",
        "web           12  1        -                       a few secs ago  local/localhost  1x[host]   STARTING",
    ]


def test_verbose_adds_columns(sky, fake, make_service, make_replica):
    fake.services = {"web": make_service("web", "READY", make_replica(1))}
    lines = sky("serve", "status", "-v").out.splitlines()
    assert lines[1].split()[-3:] == ["AUTOSCALING_POLICY", "LOAD_BALANCING_POLICY", "REQUESTED_RESOURCES"]
    assert lines[2].endswith("Fixed 1 replicas    least_load             1x[L4:1]")


def test_service_without_replicas(sky, fake, make_service):
    fake.services = {"web": make_service("web", "NO_REPLICA")}
    lines = sky("serve", "status").out.splitlines()
    assert lines[2] == "web   -        -       NO_REPLICA  0/0       http://127.0.0.1:30001"
    assert lines[-1] == "No existing replicas."


def test_failures_are_told_below_the_table(sky, fake, make_service, make_replica):
    broken = make_replica(3, "FAILED", detail="Traceback\nImportError: no module named vllm\n")
    again, other = replace(broken, id=4), make_replica(5, "FAILED_PROBING", detail="503")
    note = "gave up after 8 rounds\nTraceback"
    fake.services = {"web": make_service("web", "FAILED", broken, again, other, note=note)}
    out = sky("serve", "status").out
    assert out.endswith(
        "\nweb: gave up after 8 rounds\n"
        "\nReplicas 3, 4 of 'web' (FAILED):\n  Traceback\n  ImportError: no module named vllm\n"
        "\nReplica 5 of 'web' (FAILED_PROBING):\n  503\n"
    )


def test_what_a_replica_waits_for_is_told_once(sky, fake, make_service, make_replica):
    waiting = make_replica(2, "PENDING", detail="no capacity: 2 vCPUs asked")
    fake.services = {"web": make_service("web", "NO_REPLICA", waiting, note="no capacity: 2 vCPUs asked")}
    out = sky("serve", "status").out
    assert out.endswith("\nReplica 2 of 'web' (PENDING):\n  no capacity: 2 vCPUs asked\n")
    assert out.count("no capacity") == 1


def test_nothing_was_ever_served(sky, home):
    result = sky("serve", "status")
    assert (result.code, result.out) == (0, "No existing services.\n")
    assert not home.exists()


def test_state_without_a_controller_starts_it(sky, home):
    home.mkdir()
    (home / "state.db").touch()
    result = sky("serve", "status")
    assert result.code == 1
    assert "the controller did not start" in result.err


def test_unknown_name_gets_the_nearest(sky, fake, make_service):
    fake.services = {"mixtral": make_service("mixtral", "READY")}
    result = sky("serve", "status", "mixtrl")
    assert (result.code, result.out) == (1, "")
    assert result.err == "error: no service is called 'mixtrl'\nhint: did you mean 'mixtral'?\n"


def test_endpoint_alone_in_either_order(sky, fake, make_service):
    fake.services = {"web": make_service("web", "READY")}
    for args in (("web", "--endpoint"), ("--endpoint", "web")):
        result = sky("serve", "status", *args)
        assert (result.code, result.out, result.err) == (0, "http://127.0.0.1:30001\n", "")
    assert sky("serve", "status", "web", "--endpoint", "-o", "json").json == {
        "name": "web",
        "endpoint": "http://127.0.0.1:30001",
    }


def test_endpoint_wants_one_name(sky, fake):
    result = sky("serve", "status", "--endpoint")
    assert result.code == 2
    assert "exactly one service" in result.err


def test_json(sky, fake, make_service, make_replica):
    fake.services = {"a": make_service("a", "READY", make_replica(1)), "b": make_service("b", "FAILED")}
    found = sky("serve", "status", "b", "--output", "json").json
    assert [view["name"] for view in found["services"]] == ["b"]
    assert found["services"][0]["status"] == "FAILED"


def test_watch_prints_changes_until_interrupted(sky, fake, make_service, make_replica):
    starting, ready = (make_service("web", word, make_replica(1, word)) for word in ("STARTING", "READY"))
    fake.script = {"web": [starting, starting, ready]}
    sky.interrupt_after_sleeps = 5
    result = sky("serve", "status", "--watch", "-o", "json")
    assert result.code == 130
    assert [line["services"][0]["status"] for line in result.json_lines] == ["STARTING", "READY"]


def test_watch_repaints_on_a_terminal(sky, fake, make_service, make_replica, plain):
    fake.services = {"web": make_service("web", "READY", make_replica(1))}
    sky.interrupt_after_sleeps = 2
    result = sky("serve", "status", "-w", answer="")
    assert result.code == 130
    assert "web   1        1h 2m 3s  READY" in plain(result.out)


def test_colour_only_where_it_is_wanted(sky, fake, make_service):
    fake.services = {"web": make_service("web", "READY")}
    assert "\x1b[32m" in sky("serve", "status", answer="").out
    sky.environ = {"NO_COLOR": "1"}
    assert "\x1b" not in sky("serve", "status", answer="").out
    sky.environ = {"TERM": "dumb"}
    assert "\x1b" not in sky("serve", "status", answer="").out
    sky.environ = {"CLICOLOR_FORCE": "1"}
    assert "\x1b[32m" in sky("serve", "status").out
