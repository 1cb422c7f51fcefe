"""Clusters on the command line: launched, worked on, stopped, started, ended."""

from __future__ import annotations

import base64

import pytest

from skyserve.model.view import RUN_ENDED


@pytest.fixture
def dev(make_service, make_replica):
    """A cluster that is up."""
    return make_service("dev", "READY", make_replica(endpoint="http://10.0.0.7:8080"), kind="cluster")


def output(*lines: str) -> list[bytes]:
    return [f"{line}\n".encode() for line in lines]


def test_launch_follows_the_task_to_its_end(sky, fake, dev):
    fake.script["dev"] = [None, dev]
    fake.logs[("replica", 1)] = output("hello", f"{RUN_ENDED} 0")
    fake.ended.set()
    result = sky("launch", "-c", "dev", "-y", "echo", "hello")
    assert (result.code, result.out) == (0, "hello\n")
    [body] = fake.calls("POST", "/v1/services")
    assert (body["spec"]["kind"], body["spec"]["run"], body["spec"]["name"]) == ("cluster", "echo hello", "dev")
    assert "Cluster 'dev' is up" in result.err


def test_a_task_that_fails_is_exit_code_1(sky, fake, dev):
    fake.script["dev"] = [None, dev]
    fake.logs[("replica", 1)] = output(f"{RUN_ENDED} 3")
    fake.ended.set()
    result = sky("launch", "-c", "dev", "-y", "false")
    assert result.code == 1
    assert "exit code 3" in result.err


def test_a_task_may_be_a_yaml_without_a_service(sky, fake, dev, tmp_path):
    path = tmp_path / "task.yaml"
    path.write_text("setup: pip install x\nrun: python x.py\nenvs: {A: b}\n")
    fake.script["dev"] = [None, dev]
    assert sky("launch", "-c", "dev", "-y", "-d", str(path)).code == 0
    [body] = fake.calls("POST", "/v1/services")
    assert (body["spec"]["setup"], body["spec"]["envs"]) == ("pip install x", {"A": "b"})


def test_a_machine_that_does_not_come_up_is_said(sky, fake, make_service, make_replica):
    failed = make_replica(1, "FAILED_PROVISION", detail="no capacity anywhere")
    fake.script["dev"] = [None, make_service("dev", "FAILED", failed, kind="cluster")]
    result = sky("launch", "-c", "dev", "-y", "true")
    assert result.code == 1
    assert "cluster 'dev' failed" in result.err
    assert "no capacity anywhere" in result.err
    assert "sky logs dev" in result.err


def test_launching_it_again_runs_the_task_on_it(sky, fake, dev):
    fake.services["dev"] = dev
    fake.executed = [{"data": base64.b64encode(b"again\n").decode()}, {"exit": 0}]
    result = sky("launch", "-c", "dev", "-y", "echo", "again")
    assert (result.code, result.out) == (0, "again\n")
    assert not fake.calls("POST", "/v1/services")


def test_a_service_is_no_cluster(sky, fake, make_service):
    fake.services["web"] = make_service("web")
    assert "is a service" in sky("launch", "-c", "web", "-y", "true").err
    for command in (("exec", "web", "true"), ("logs", "web"), ("stop", "web", "-y"), ("down", "web", "-y")):
        result = sky(*command)
        assert result.code == 1
        assert "no cluster is called 'web'" in result.err


def test_exec_passes_output_and_exit_code_on(sky, fake, dev):
    fake.services["dev"] = dev
    words = "größe\n".encode()
    fake.executed = [{"data": base64.b64encode(part).decode()} for part in (words[:3], words[3:])] + [{"exit": 7}]
    result = sky("exec", "dev", "ls", "-l", "--all")
    assert (result.code, result.out) == (7, "größe\n")
    assert fake.calls("POST", "/v1/services/dev/execute") == [{"script": "ls -l --all"}]


def test_exec_takes_run_out_of_a_yaml(sky, fake, dev, tmp_path):
    fake.services["dev"] = dev
    path = tmp_path / "task.yaml"
    path.write_text("run: |\n  one\n  two\n")
    assert sky("exec", "dev", str(path)).code == 0
    assert fake.calls("POST", "/v1/services/dev/execute") == [{"script": "one\ntwo\n"}]
    path.write_text("setup: x\n")
    assert "has no `run`" in sky("exec", "dev", str(path)).err


def test_what_the_machine_refuses_is_an_error(sky, fake, dev):
    fake.services["dev"] = dev
    fake.executed = [{"error": "the host does not answer"}]
    result = sky("exec", "dev", "true")
    assert (result.code, result.err) == (1, "error: the host does not answer\n")


def test_status_shows_clusters_above_services(sky, fake, dev, make_service, make_replica):
    fake.services = {"dev": dev, "web": make_service("web", "READY", make_replica())}
    lines = sky("status").out.splitlines()
    assert lines[1].split() == ["NAME", "INFRA", "RESOURCES", "STATUS", "LAUNCHED"]
    assert lines[2].split()[:4] == ["dev", "local/localhost", "1x[host]", "UP"]
    assert any(line.startswith("web") for line in lines[3:])
    assert "web" not in sky("status", "--no-show-services").out
    assert "dev" not in sky("serve", "status").out
    document = sky("status", "-o", "json").json
    assert [one["name"] for one in document["clusters"]] == ["dev"]


def test_status_gives_the_address(sky, fake, dev):
    fake.services["dev"] = dev
    assert sky("status", "dev", "--ip").out == "10.0.0.7\n"
    assert sky("status", "nobody", "--ip").code == 1


def test_stop_and_start_wait_until_it_is_so(sky, fake, dev, make_service, make_replica):
    stopped = make_service("dev", "REPLICA_INIT", make_replica(1, "STOPPED"), kind="cluster")
    fake.services["dev"] = dev
    stopping = make_service("dev", "REPLICA_INIT", make_replica(1, "STOPPED", detail="still"), kind="cluster")
    fake.script["dev"] = [dev, dev, stopping, stopping, stopped]
    assert "Stopped cluster 'dev'" in sky("stop", "dev", "-y").err
    fake.script["dev"] = [stopped, stopped, dev]
    assert sky("start", "dev", "-y", "-o", "json").json == {"clusters": ["dev"]}
    assert fake.calls("PUT", "/v1/services/dev/halted") == [{"halted": True}, {"halted": False}]


def test_down_asks_and_waits(sky, fake, dev):
    fake.services["dev"] = dev
    assert sky("down", "dev").code == 2
    fake.script["dev"] = [dev, dev, None]
    result = sky("down", "dev", "--yes")
    assert (result.code, result.err) == (0, "Terminated cluster 'dev'.\n")
    assert sky("down").code == 2


def test_exec_in_json_is_one_document(sky, fake, dev):
    fake.services["dev"] = dev
    fake.executed = [{"data": base64.b64encode(b"a\n").decode()}, {"exit": 2}]
    result = sky("exec", "-o", "json", "dev", "true")
    assert (result.code, result.json) == (2, {"exit_code": 2, "output": "a\n"})


def test_why_is_for_clusters_too(sky, fake, dev):
    fake.services["dev"] = dev
    assert sky("serve", "why", "dev").code == 0
