"""What the keys of a Service YAML come to mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from skyserve.errors import SpecError
from skyserve.model.resources import Accelerator, Quantity, Resources
from skyserve.model.service import LoadBalancer, ReadinessProbe, ReplicaPolicy, ReplicaTls, ServiceSpec, Tls
from skyserve.spec.load import LoadedService, load_service
from skyserve.spec.overrides import Overrides


def load(text: str, overrides: Overrides | None = None) -> LoadedService:
    return load_service(text, fingerprint_key=b"key", name_suffix="0a1b", overrides=overrides)


def spec_of(*, service: str = "{}", resources: str = "{ports: 8080}", more: str = "") -> ServiceSpec:
    return load(f"run: serve\nservice: {service}\nresources: {resources}\n{more}\n").spec


def alternatives(resources: str) -> tuple[Resources, ...]:
    return spec_of(resources=resources).resources.alternatives


def test_the_least_service_has_the_usual_defaults() -> None:
    text = "run: serve\nservice: {}\nresources: {ports: 8080}\n"
    expected = ServiceSpec(name="sky-service-0a1b", run="serve", port=8080, source=text)
    spec = load(text).spec
    assert spec.resources.alternatives == (Resources(ports=(8080,)),)
    assert spec == ServiceSpec(name="sky-service-0a1b", run="serve", port=8080, source=text, resources=spec.resources)
    assert spec.readiness_probe == expected.readiness_probe == ReadinessProbe()


def test_all_of_service() -> None:
    spec = spec_of(
        service="""
  readiness_probe:
    path: /ready
    post_data: '{"n": $COUNT, "text": "${TEXT}"}'
    headers: {Authorization: Bearer $KEY, X-Number: 5}
    initial_delay_seconds: 1
    timeout_seconds: 2.5
    endpoint_probe_interval_seconds: 3
    consecutive_failure_threshold_timeout: 0
  replica_policy:
    min_replicas: 0
    max_replicas: 5
    target_qps_per_replica: {a100-80gb: 2, L4:1: 0.5}
    num_overprovision: 1
    upscale_delay_seconds: 4
    downscale_delay_seconds: 5
    base_ondemand_fallback_replicas: 1
    dynamic_ondemand_fallback: true
    spot_placer: Dynamic_Fallback
  ports: "8081"
  load_balancing_policy: Instance_Aware_Least_Load
  load_balancer:
    mode: REDIRECT
    stream_timeout_seconds: 60
    queue_size: 0
    queue_timeout_seconds: 1
    retry: Idempotent
    connect_timeout_seconds: 1.5
    first_byte_timeout_seconds: 6
    request_timeout_seconds: 7
    max_concurrency_per_replica: 8
    max_body_mib: 0.5
    slow_start_seconds: 9
    session_key: cookie:Sid
    workers: 2
  tls: {keyfile: ~/key.pem, certfile: ~/cert.pem}
  replica_tls: {ca_file: ~/ca.pem, server_name: replica.internal}
""",
        resources="{ports: [8080-8082], use_spot: true}",
    )
    assert spec.readiness_probe == ReadinessProbe(
        path="/ready",
        post_data='{"n": $COUNT, "text": "${TEXT}"}',
        headers={"Authorization": "Bearer $KEY", "X-Number": "5"},
        initial_delay_seconds=1,
        timeout_seconds=2.5,
        endpoint_probe_interval_seconds=3,
        consecutive_failure_threshold_timeout=0,
    )
    assert spec.replica_policy == ReplicaPolicy(
        min_replicas=0,
        max_replicas=5,
        target_qps_per_replica={"A100-80GB": 2, "L4:1": 0.5},
        num_overprovision=1,
        upscale_delay_seconds=4,
        downscale_delay_seconds=5,
        base_ondemand_fallback_replicas=1,
        dynamic_ondemand_fallback=True,
        spot_placer="dynamic_fallback",
    )
    assert spec.port == 8081
    assert spec.load_balancing_policy == "instance_aware_least_load"
    assert spec.load_balancer == LoadBalancer("redirect", 60, 0, 1, "idempotent", 1.5, 6, 7, 8, 0.5, 9, "cookie:Sid", 2)
    assert spec.tls == Tls("~/key.pem", "~/cert.pem")
    assert spec.replica_tls == ReplicaTls(True, "~/ca.pem", "replica.internal")


@pytest.mark.parametrize(
    ("written", "tls"),
    [
        ("", None),
        ("{}", ReplicaTls()),
        ("{verify: false}", ReplicaTls(verify=False)),
        ("{verify: false, server_name: a.b}", ReplicaTls(verify=False, server_name="a.b")),
        ("{ca_file: ca.pem}", ReplicaTls(ca_file="ca.pem")),
    ],
)
def test_replicas_may_speak_tls(written: str, tls: ReplicaTls | None) -> None:
    assert spec_of(service=f"{{replica_tls: {written}}}").replica_tls == tls


def test_all_of_resources() -> None:
    [resources] = alternatives(
        """
  infra: AWS/us-east-1/*
  accelerators: a100-80gb:2
  accelerator_args: {runtime_version: 2.10}
  cpus: 8+
  memory: 64GB+
  instance_type: p4d.24xlarge
  use_spot: true
  disk_size: 1TB
  disk_tier: Best
  local_disk: nvme:300+
  ephemeral_storage: 100GB
  network_tier: best
  ports: "8080"
  image_id: docker:org/image:1
  labels: {team: a, cost: 7}
  max_hourly_cost: 3.5
  priority: 100
  volumes: ["data:/data", {name: v, path: /v}]
  autostop: {idle_minutes: 5}
"""
    )
    assert resources == Resources(
        cloud="aws",
        region="us-east-1",
        accelerators=Accelerator("A100-80GB", 2),
        accelerator_args={"runtime_version": "2.10"},
        cpus=Quantity(8, at_least=True),
        memory=Quantity(64, at_least=True),
        instance_type="p4d.24xlarge",
        use_spot=True,
        disk_size=1024,
        disk_tier="best",
        local_disk="nvme:300+",
        ephemeral_storage="100GB",
        network_tier="best",
        ports=(8080,),
        image_id="docker:org/image:1",
        labels={"team": "a", "cost": "7"},
        max_hourly_cost=3.5,
        priority="100",
        volumes=("data:/data", '{"name": "v", "path": "/v"}'),
        autostop='{"idle_minutes": 5}',
    )


def test_all_of_the_task() -> None:
    spec = spec_of(
        resources="{ports: 1, image_id: 'docker:$REPO/x'}",
        more="""
name: Mixtral-8x7b
num_nodes: 2
setup: prepare
workdir: ~/code/$PROJECT
file_mounts:
  /data/$PROJECT: ./data/${PROJECT}
  /keep: $OTHER
volumes: {/cache: my-volume}
envs: {PROJECT: one, REPO: org, YES: true, NO: False, COUNT: 010, PI: 3.140, WORD: yes, EMPTY: "", DAY: 2024-01-02}
""",
    )
    assert spec.name == "Mixtral-8x7b"
    assert spec.num_nodes == 2
    assert spec.setup == "prepare"
    assert spec.workdir == "~/code/one"
    assert spec.file_mounts == {"/data/one": "./data/one", "/keep": "$OTHER"}
    assert spec.resources.alternatives[0].image_id == "docker:org/x"
    assert spec.resources.alternatives[0].volumes == ("my-volume:/cache",)
    assert spec.envs == {
        "PROJECT": "one",
        "REPO": "org",
        "YES": "true",
        "NO": "false",
        "COUNT": "010",
        "PI": "3.140",
        "WORD": "yes",
        "EMPTY": "",
        "DAY": "2024-01-02",
    }


@pytest.mark.parametrize(
    ("written", "expected", "ordered"),
    [
        ("L4", ["L4:1"], False),
        ("l4:8", ["L4:8"], False),
        ("A10g:1", ["A10G:1"], False),
        ("A100-40GB:1", ["A100:1"], False),
        ("T4:0.5", ["T4:0.5"], False),
        ("Radeon MI25:1", ["Radeon MI25:1"], False),
        ("{L4: 1, A100: 2}", ["L4:1", "A100:2"], False),
        ("{L4:1, a100:8, A100: 8}", ["L4:1", "A100:8"], False),
        ("[A100:8, L4]", ["A100:8", "L4:1"], True),
        ("[L4]", ["L4:1"], False),
        ("{}", ["None"], False),
        ("", ["None"], False),
    ],
)
def test_accelerators(written: str, expected: list[str], ordered: bool) -> None:
    choice = spec_of(resources=f"\n  ports: 80\n  accelerators: {written}\n").resources
    assert [str(one.accelerators) for one in choice.alternatives] == expected
    assert choice.ordered is ordered


@pytest.mark.parametrize(
    ("key", "written", "expected"),
    [
        ("cpus", "8", Quantity(8)),
        ("cpus", "'8+'", Quantity(8, at_least=True)),
        ("cpus", "0.5", Quantity(0.5)),
        ("memory", "32", Quantity(32)),
        ("memory", "32+", Quantity(32, at_least=True)),
        ("memory", "32GB", Quantity(32)),
        ("memory", "512MB", Quantity(0.5)),
        ("memory", "4x", Quantity(4, per_vcpu=True)),
        ("disk_size", "256", 256),
        ("disk_size", "1024GB", 1024),
        ("disk_size", "2tb", 2048),
        ("ports", "8080", (8080,)),
        ("ports", "[8080, '8080']", (8080,)),
        ("priority_class", "high", "high"),
        ("autostop", "true", "true"),
    ],
)
def test_short_forms(key: str, written: str, expected: object) -> None:
    ports = "" if key == "ports" else "ports: 80, "
    [resources] = alternatives(f"{{{ports}{key}: {written}}}")
    assert getattr(resources, key.removesuffix("_class")) == expected


@pytest.mark.parametrize(
    ("written", "place"),
    [
        ("infra: aws", ("aws", None, None)),
        ("infra: gcp/us-central1", ("gcp", "us-central1", None)),
        ("infra: aws/us-east-1/us-east-1a", ("aws", "us-east-1", "us-east-1a")),
        ("infra: '*'", (None, None, None)),
        ("infra: '*/us-east-1'", (None, "us-east-1", None)),
        ("infra: aws/*/us-east-1a", ("aws", None, "us-east-1a")),
        ("infra: k8s", ("kubernetes", None, None)),
        ("infra: k8s/gke_project/cluster/a", ("kubernetes", "gke_project/cluster/a", None)),
        ("infra: ssh/pool", ("ssh", "pool", None)),
        ("cloud: AWS, region: us-east-1, zone: us-east-1b", ("aws", "us-east-1", "us-east-1b")),
        ("cloud: '*', region: eu", (None, "eu", None)),
    ],
)
def test_places(written: str, place: tuple[str | None, str | None, str | None]) -> None:
    [resources] = alternatives(f"{{ports: 80, {written}}}")
    assert (resources.cloud, resources.region, resources.zone) == place


def test_alternatives_go_over_the_base() -> None:
    choice = spec_of(
        resources="""
  ports: 80
  cpus: 4
  infra: aws
  accelerators: {L4:1, T4:1}
  any_of:
    - {cpus: 8, infra: gcp/us-central1}
    - {region: eu, memory: 16+}
"""
    ).resources
    assert not choice.ordered
    assert [(str(r.cpus), r.cloud, r.region, str(r.accelerators)) for r in choice.alternatives] == [
        ("8", "gcp", "us-central1", "L4:1"),
        ("8", "gcp", "us-central1", "T4:1"),
        ("4", None, "eu", "L4:1"),
        ("4", None, "eu", "T4:1"),
    ]


def test_ordered_alternatives_keep_their_order() -> None:
    choice = spec_of(resources="{ports: 80, ordered: [{cloud: gcp}, {cloud: aws}]}").resources
    assert choice.ordered
    assert [one.cloud for one in choice.alternatives] == ["gcp", "aws"]


def test_anchors_and_merge_keys() -> None:
    choice = spec_of(resources="{ports: 80, any_of: [&a {cpus: 4, memory: 8}, {<<: *a, cpus: 8}]}").resources
    assert [(str(r.cpus), str(r.memory)) for r in choice.alternatives] == [("4", "8"), ("8", "8")]


def test_service_ports_alone_will_do() -> None:
    assert spec_of(service="{ports: 9000}", resources="").port == 9000


def test_a_fixed_number_is_a_policy_without_target() -> None:
    assert spec_of(service="{replicas: 3}").replica_policy == ReplicaPolicy(3, 3)
    assert spec_of(service="{replica_policy: {min_replicas: 2}}").replica_policy == ReplicaPolicy(2, 2)


def test_empty_values_count_as_not_given() -> None:
    spec = spec_of(service="{readiness_probe: , tls: }", resources="{ports: 80, cpus: , infra: null}", more="envs:")
    assert spec.readiness_probe == ReadinessProbe()
    assert spec.envs == {}


def test_warnings() -> None:
    loaded = load(
        "run: x\nservice: {}\nresources: {ports: 80, cloud: asw, accelerators: {L44: 1, Zeta9000: 1}}\n"
        "config: {a: 1}\nexperimental: {b: }\n"
    )
    assert loaded.warnings == (
        "`config` is accepted and not used",
        "`experimental` is accepted and not used",
        "the accelerator 'L44' is not one that is known here; did you mean L4?",
        "the accelerator 'Zeta9000' is not one that is known here; it is taken as it is written",
        "the cloud 'asw' is not one that is known here; did you mean aws?",
    )


@pytest.mark.parametrize(("text", "share"), [("99.9%", 0.999), ("0.98", 0.98), ("50%", 0.5)])
def test_availability_is_a_share_of_the_time(text: str, share: float) -> None:
    policy = f"{{min_replicas: 1, availability: {text}}}"
    spec = load(f"run: x\nservice: {{replica_policy: {policy}}}\nresources: {{ports: 80, use_spot: true}}\n").spec
    assert spec.replica_policy.availability == pytest.approx(share)


@pytest.mark.parametrize("text", ["99.9", "100%", "1", "0%"])
def test_availability_is_neither_nothing_nor_everything(text: str) -> None:
    policy = f"{{min_replicas: 1, availability: {text}}}"
    with pytest.raises(SpecError, match="availability") as caught:
        load(f"run: x\nservice: {{replica_policy: {policy}}}\nresources: {{ports: 80, use_spot: true}}\n")
    assert "0.999" in str(caught.value.hint)


def test_keys_without_an_effect_yet_are_named_once() -> None:
    loaded = load(
        "run: x\nservice: {replica_policy: {min_replicas: 1, dynamic_ondemand_fallback: true}}\nvolumes: {/data: v}\n"
        "resources: {ports: 80, use_spot: true, disk_tier: best, labels: , "
        "any_of: [{infra: aws, disk_tier: low}, {infra: gcp, autostop: 5}]}\n"
    )
    unused = "`volumes`, `autostop`"
    assert loaded.warnings == (f"accepted, but not acted on yet: {unused}",)


def test_a_file_and_its_text_are_the_same_service(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("\ufeffrun: x\nservice: {}\nresources: {ports: 80}\n", encoding="utf-8")
    assert load_service(path, fingerprint_key=b"key", name_suffix="0a1b") == load(path.read_text(encoding="utf-8"))


def test_flags_go_over_keys() -> None:
    overrides = Overrides(
        name="flag",
        envs={"A": "1", "C": "3"},
        workdir="there",
        num_nodes=3,
        infra="gcp/us-central1",
        cpus="16+",
        memory="4x",
        gpus="t4:2",
        instance_type="n1",
        ports=("9000",),
        disk_size=300,
        disk_tier="high",
        image_id="docker:x",
        use_spot=True,
        network_tier="best",
        local_disk="nvme",
    )
    text = (
        "name: file\nrun: x\nworkdir: here\nenvs: {A: , B: 2}\nservice: {}\n"
        "resources: {ports: 80, accelerators: {L4:1, A100:1}, cpus: 4,"
        " any_of: [{cloud: aws, cpus: 2}, {region: eu, use_spot: false}]}\n"
    )
    spec = load(text, overrides).spec
    assert (spec.name, spec.workdir, spec.num_nodes, spec.port) == ("flag", "there", 3, 9000)
    assert spec.envs == {"A": "1", "B": "2", "C": "3"}
    expected = Resources(
        cloud="gcp",
        region="us-central1",
        accelerators=Accelerator("T4", 2),
        cpus=Quantity(16, at_least=True),
        memory=Quantity(4, per_vcpu=True),
        instance_type="n1",
        use_spot=True,
        disk_size=300,
        disk_tier="high",
        local_disk="nvme",
        network_tier="best",
        ports=(9000,),
        image_id="docker:x",
    )
    assert spec.resources.alternatives == (expected, expected)
    assert spec.source == text


def test_the_word_none_takes_a_constraint_away() -> None:
    text = "run: x\nservice: {}\nresources: {ports: 80, infra: aws, accelerators: L4, cpus: 4}\n"
    [resources] = load(text, Overrides(gpus="none", infra="None", cpus="NONE")).spec.resources.alternatives
    assert resources == Resources(ports=(80,))


def test_flags_without_a_resources_section() -> None:
    spec = load("run: x\nservice: {}\n", Overrides(ports=("81",), cpus="2", secrets={"S": "v"})).spec
    assert spec.port == 81
    assert list(spec.secrets) == ["S"]


@pytest.mark.parametrize(
    ("written", "source"),
    [
        ("{url: 'https://host/a.git'}", "git+https://host/a.git"),
        ("{url: 'https://host/a', ref: v1}", "git+https://host/a#v1"),
        ("https://host/a.git#main", "git+https://host/a.git#main"),
        ("git@host:me/a.git", "git+git@host:me/a.git"),
        ("git+ssh://git@host/a", "git+ssh://git@host/a"),
        ("./a.git", "./a.git"),
    ],
)
def test_files_may_come_from_git(written: str, source: str) -> None:
    assert spec_of(more=f"workdir: {written}").workdir == source


def test_a_git_repository_may_be_named_by_flags() -> None:
    flags = Overrides(git_url="https://host/a.git", git_ref="v2")
    assert (
        load("run: serve\nservice: {}\nresources: {ports: 8080}\n", flags).spec.workdir == "git+https://host/a.git#v2"
    )
