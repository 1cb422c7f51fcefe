"""`sky serve up`: plan, question, creation, wait, and every way out of it."""

from __future__ import annotations

import pytest

from skyserve.model.resources import Accelerator
from skyserve.model.view import ProviderView


@pytest.fixture
def coming(fake, make_service, make_replica):
    """A service `web` that gets ready over a few looks, as it does after its creation."""
    one, two = make_replica(1), make_replica(2)
    fake.script = {
        "web": [
            make_service("web", "NO_REPLICA", target=0),
            make_service("web", "REPLICA_INIT", make_replica(1, "PROVISIONING"), make_replica(2, "PENDING")),
            make_service("web", "REPLICA_INIT", make_replica(1, "STARTING"), make_replica(2, "STARTING")),
            make_service("web", "READY", one, make_replica(2, "STARTING")),
            make_service("web", "READY", one, two),
        ]
    }
    return fake


def test_waits_until_all_replicas_are_ready(sky, coming, yaml):
    result = sky("serve", "up", str(yaml), "-n", "web", "--yes")
    assert result.code == 0
    assert result.out == "http://127.0.0.1:30001\n"
    assert "Replica autoscaling policy:       Fixed 2 replicas" in result.err
    stages = [line.split()[:3] for line in result.err.splitlines() if line.startswith("replica ")]
    assert stages == [
        ["replica", "1", "PROVISIONING"],
        ["replica", "2", "PENDING"],
        ["replica", "1", "STARTING"],
        ["replica", "2", "STARTING"],
        ["replica", "1", "READY"],
        ["replica", "2", "READY"],
    ]
    assert "Service name: web" in result.err
    assert "curl http://127.0.0.1:30001/health" in result.err


def test_a_probe_that_is_a_post_is_not_offered_as_a_plain_curl(sky, fake, yaml):
    yaml.write_text(yaml.read_text().replace("/health", "{path: /chat, post_data: {a: 1}}"))
    result = sky("serve", "up", str(yaml), "-n", "web", "-y", "--async")
    assert result.code == 0
    assert "sky serve down web" in result.err
    assert "try it" not in result.err


def test_json_is_the_service_alone(sky, coming, yaml):
    result = sky("serve", "up", str(yaml), "-n", "web", "-y", "-o", "json")
    assert result.json["name"] == "web"
    assert result.json["ready"] == 2


def test_async_does_not_wait(sky, fake, yaml):
    result = sky("serve", "up", str(yaml), "-n", "web", "-y", "--async")
    assert (result.code, result.out) == (0, "http://127.0.0.1:30001\n")


def test_flags_envs_and_secrets_reach_the_controller(sky, fake, yaml, tmp_path):
    env_file = tmp_path / "env"
    env_file.write_text("# models\nexport MODEL='tiny'\nSIZE=1\n")
    sky.environ = {"HF_TOKEN": "mine-and-private"}
    args = ("--env-file", str(env_file), "--env", "SIZE=2", "--secret", "HF_TOKEN", "--gpus", "L4:1", "--cpus", "4+")
    result = sky("serve", "up", str(yaml), "-n", "web", "-y", "--async", *args)
    assert result.code == 0, result.err
    (body,) = fake.calls("POST", "/v1/services")
    assert body["spec"]["envs"] == {"MODEL": "tiny", "SIZE": "2"}
    assert body["secrets"] == {"HF_TOKEN": "mine-and-private"}
    assert "mine-and-private" not in str(body["spec"])
    assert "mine-and-private" not in result.err
    assert body["spec"]["resources"]["alternatives"][0]["accelerators"] == {"name": "L4", "count": 1}


def test_a_variable_that_is_not_set(sky, fake, yaml):
    result = sky("serve", "up", str(yaml), "-y", "--env", "NOT_SET_HERE")
    assert result.code == 2
    assert result.err.startswith("error: --env NOT_SET_HERE: NOT_SET_HERE is not set in your environment\n")


def test_paths_become_absolute(sky, fake, yaml, tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    monkeypatch.chdir(tmp_path)
    assert sky("serve", "up", str(yaml), "-y", "--async", "--workdir", "code").code == 0
    (body,) = fake.calls("POST", "/v1/services")
    assert body["spec"]["workdir"] == str(tmp_path / "code")
    result = sky("serve", "up", str(yaml), "-y", "--workdir", "nowhere")
    assert result.code == 2
    assert f"there is no {tmp_path / 'nowhere'}" in result.err


def test_a_name_is_made_up(sky, fake, yaml):
    sky("serve", "up", str(yaml), "-y", "--async")
    (body,) = fake.calls("POST", "/v1/services")
    assert len(body["spec"]["name"]) == len("sky-service-1a2b")


def test_plan_table_is_framed_as_in_the_tour(sky, fake, yaml):
    a100 = Accelerator("A100-80GB", 2)
    fake.candidates = (
        ProviderView("azure", "Standard_NC48ads_A100_v4", "azure/eastus", 48, 440, a100, 7.35, chosen=True),
        ProviderView("gcp", "g2-standard-96", "gcp/us-east4/us-east4-a", 96, 384, Accelerator("L4", 8), 7.98),
        ProviderView("local", "host", "local/localhost", 2, 7.8, None, 0.0, refusal="no accelerator"),
    )
    fake.warnings = ("prices are a week old",)
    result = sky("serve", "up", str(yaml))
    frame = "-" * 103
    table = [
        "== Optimizer ==",
        "Estimated cost: $7.3 / hour",
        "Estimated cost of the service: $14.70 / hour with 2 replicas",
        "",
        "Considered resources (1 node):",
        frame,
        " CLOUD   INSTANCE                   vCPUs   Mem(GB)   ACCELERATORS   REGION/ZONE   COST ($)   CHOSEN   ",
        frame,
        " Azure   Standard_NC48ads_A100_v4   48      440       A100-80GB:2    eastus        7.35          ✔     ",
        " GCP     g2-standard-96             96      384       L4:8           us-east4-a    7.98                ",
        frame,
        "warning: prices are a week old",
    ]
    lines = result.err.splitlines()
    begin = lines.index(table[0])
    assert lines[begin : begin + len(table)] == table
    assert (result.code, result.out) == (2, "")  # there was nobody to ask
    assert fake.calls("POST", "/v1/services") == []


def test_pools_that_are_alike_share_a_row(sky, fake, yaml):
    l4 = Accelerator("L4", 1)
    fake.candidates = (
        ProviderView("aws", "g6.xlarge", "aws/us-east-1/us-east-1a", 4, 16, l4, 0.2, "", True, "SPOT"),
        ProviderView("aws", "g6.2xlarge", "aws/us-east-1/us-east-1b", 8, 32, l4, 0.3, "", False, "SPOT"),
        ProviderView("aws", "g6.xlarge", "aws/us-east-1", 4, 16, l4, 0.8),
    )
    lines = sky("serve", "up", str(yaml)).err.splitlines()
    rows = [line.split() for line in lines if line.startswith(" AWS")]
    assert rows == [
        ["AWS", "g6.xlarge[Spot]", "4", "16", "L4:1", "us-east-1a", "0.20", "✔", "+1", "pool"],
        ["AWS", "g6.xlarge", "4", "16", "L4:1", "us-east-1", "0.80"],
    ]
    assert "To list them: sky show-gpus L4:1 --all" in lines


def test_nothing_feasible(sky, fake, prices, yaml):
    fake.candidates = ()
    fake.refusals = (("L4:8", "local has no accelerator"),)
    result = sky("serve", "up", str(yaml), "-y", "--gpus", "L4:8")
    assert result.code == 1
    assert result.err.splitlines()[-4:] == [
        "error: nothing here can run this service",
        "  L4:8: local has no accelerator",
        "the cheapest offer elsewhere: GCP g2-standard-96 (L4:8) in us-east4, $7.98 / hour",
        "hint: `sky check gcp` says what keeps it from being used, `sky serve up YAML --dryrun` shows all; "
        "nothing was created",
    ]
    assert fake.calls("POST", "/v1/services") == []


def test_nothing_feasible_anywhere(sky, fake, prices, yaml):
    fake.candidates = ()
    err = sky("serve", "up", str(yaml), "-y", "--gpus", "A1000:2").err
    assert "did you mean A100-80GB?" in err
    err = sky("serve", "up", str(yaml), "-y", "--gpus", "L4:8", "--memory", "1000+").err
    assert "hint: without `memory` it could run on GCP g2-standard-96 (L4:8) in us-east4, $7.98 / hour; nothing" in err


def test_nothing_feasible_and_no_prices(sky, fake, damaged, yaml):
    fake.candidates = ()
    result = sky("serve", "up", str(yaml), "-y", "-o", "json")
    assert result.json["error"]["code"] == "INFEASIBLE"
    assert "the price lists cannot be read either" in result.json["error"]["hint"]


def test_a_taken_name_is_refused_before_the_question(sky, fake, yaml, make_service):
    fake.services = {"web": make_service("web", "READY")}
    result = sky("serve", "up", str(yaml), "-n", "web", answer="y\n")
    assert result.code == 1
    assert "a service called 'web' exists already" in result.err
    assert "Proceed?" not in result.err


def test_the_question(sky, coming, yaml, plain):
    result = sky("serve", "up", str(yaml), "-n", "web", answer="what\n\n")
    assert result.code == 0
    assert result.err.count("Launching a new service 'web'. Proceed? [Y/n]: ") == 2
    assert "replica 2    READY" in plain(result.err)


@pytest.mark.parametrize("answer", ["n\n", "No\n", ""])
def test_the_answer_no(sky, fake, yaml, plain, answer):
    result = sky("serve", "up", str(yaml), "-n", "web", answer=answer)
    assert result.code == 2
    assert "error: Nothing was created." in plain(result.err)
    assert fake.calls("POST", "/v1/services") == []


def test_nobody_to_ask(sky, fake, yaml):
    result = sky("serve", "up", str(yaml), "-n", "web", "-o", "json")
    assert result.code == 2
    assert result.json["error"]["code"] == "CANCELLED"
    assert result.json["error"]["hint"].startswith("add --yes")
    assert fake.calls("POST", "/v1/services") == []


def test_ctrl_c_at_the_question(sky, fake, yaml, pressed):
    result = sky("serve", "up", str(yaml), "-n", "web", stdin=pressed())
    assert result.code == 130
    assert "Nothing was created." in result.err
    assert fake.calls("POST", "/v1/services") == []


def test_ctrl_c_while_waiting(sky, coming, yaml):
    sky.interrupt_after_sleeps = 1
    result = sky("serve", "up", str(yaml), "-n", "web", "-y")
    assert (result.code, result.out) == (130, "")
    assert "Service 'web' keeps starting without this command." in result.err
    assert "sky serve down web" in result.err


def test_failed_service_shows_the_last_lines(sky, fake, yaml, make_service, make_replica):
    broken = make_replica(1, "FAILED", detail="ImportError: no module named vllm")
    fake.script = {"web": [make_service("web", "REPLICA_INIT", make_replica(1, "STARTING"))] * 2}
    fake.script["web"].append(make_service("web", "FAILED", broken))
    result = sky("serve", "up", str(yaml), "-n", "web", "-y", "-o", "json")
    assert result.code == 1
    assert result.json["error"]["code"] == "SERVICE_NOT_READY"
    assert "ImportError: no module named vllm" in result.err
    assert "sky serve logs web 1" in result.err
    assert "sky serve down web" in result.err


def test_timeout(sky, fake, yaml, make_service, make_replica):
    fake.script = {"web": [make_service("web", "REPLICA_INIT", make_replica(1, "STARTING"))]}
    result = sky("serve", "up", str(yaml), "-n", "web", "-y", "--timeout", "5")
    assert result.code == 1
    assert "service 'web' is REPLICA_INIT after 5 s, 0 of 1 ready. It goes on without this command." in result.err


def test_taken_down_while_waiting(sky, fake, yaml, make_service, make_replica):
    fake.script = {"web": [make_service("web", "REPLICA_INIT", make_replica(1, "STARTING")), None]}
    result = sky("serve", "up", str(yaml), "-n", "web", "-y")
    assert result.code == 1
    assert "taken down meanwhile" in result.err


def test_ready_with_a_replica_that_waits_for_room(sky, fake, yaml, make_service, make_replica):
    waiting = make_replica(2, "PENDING", detail="waits for a free GPU")
    fake.script = {"web": [make_service("web", "READY", make_replica(1), waiting, note="1 of 2 has no room")]}
    result = sky("serve", "up", str(yaml), "-n", "web", "-y")
    assert result.code == 0
    assert "1 of 2 replicas ready; 1 of 2 has no room" in result.err
    assert "waits for a free GPU" in result.err


def test_scaled_to_zero_is_as_wanted(sky, fake, tmp_path, make_service):
    path = tmp_path / "zero.yaml"
    policy = "{min_replicas: 0, max_replicas: 3, target_qps_per_replica: 1}"
    path.write_text(f"service:\n  replica_policy: {policy}\nresources:\n  ports: 8080\nrun: serve $PORT\n")
    fake.script = {"web": [make_service("web", "NO_REPLICA")]}
    assert sky("serve", "up", str(path), "-n", "web", "-y").code == 0


def test_a_wrong_yaml_is_pointed_at(sky, fake, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("service:\n  replica: 2\nresources:\n  ports: 8080\nrun: x\n")
    result = sky("serve", "up", str(path), "-y", "-o", "json")
    assert result.code == 2
    assert result.json["error"]["code"] == "SPEC"
    assert result.json["error"]["where"] == f"{path}:2:3"
    assert f"error: {path}:2:3: " in result.err
    assert "    replica: 2\n    ^^^^^^^" in result.err
    assert fake.calls("POST", "/v1/plan") == []
