"""What a Service YAML must not say: each refusal names its place, its reason and mostly a way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from skyserve.errors import SpecError
from skyserve.spec.load import load_service
from skyserve.spec.overrides import Overrides


def refusal(text: str, overrides: Overrides | None = None) -> SpecError:
    with pytest.raises(SpecError) as caught:
        load_service(text, fingerprint_key=b"key", name_suffix="0a1b", overrides=overrides, label="s.yaml")
    return caught.value


def service(body: str, resources: str = "ports: 8080") -> str:
    """A Service YAML with these lines under `service:`, the first of them in line 4."""
    return f"run: serve\nresources: {{{resources}}}\nservice:\n" + "".join(f"  {line}\n" for line in body.splitlines())


def resources(body: str) -> str:
    """A Service YAML with these lines under `resources:`, the first of them in line 4."""
    return "run: serve\nservice: {replicas: 1}\nresources:\n" + "".join(f"  {line}\n" for line in body.splitlines())


def task(body: str) -> str:
    """A Service YAML with these lines at the top level, the first of them in line 4."""
    return f"run: serve\nservice: {{replicas: 1}}\nresources: {{ports: 8080}}\n{body}\n"


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("", "1:1", "nothing in it"),
        ("# only a comment\n", "1:1", "nothing in it"),
        ("- a\n", "1:1", "is a map"),
        ("just words", "1:1", "is a map"),
        ("a: 1\n---\nb: 2\n", "2:1", "more than one document"),
        ("run: [", "1:7", "not valid YAML"),
        ("run: *x", "1:6", "undefined alias"),
        ("run: * 8 * * *", "1:7", "not valid YAML"),
        ("a: b: c", "1:5", "mapping values are not allowed"),
        ("\trun: x", "1:1", "cannot start any token"),
        ("run: \x07", "1:1", "U+0007"),
        ("run: a\nrun: b\n", "2:1", "'run' is given twice"),
        ("run: !!python/name:os.system x", "1:6", "means nothing here"),
        ("? [a]\n: b\n", "1:3", "a key must be a plain word"),
        ('service: {}\nrun: "\\0"', "2:6", "NUL"),
        ('service: {}\nrun: "\\ud800"', "2:6", "half surrogate"),
        ("run: &x [*x]", "1:6", "too large or nested too deeply"),
        (f"run: {'[' * 70}{']' * 70}", "1:66", "too large or nested too deeply"),
    ],
)
def test_the_text_itself(text: str, where: str, message: str) -> None:
    error = refusal(text)
    assert error.where == f"s.yaml:{where}"
    assert message in error.message


def test_aliases_cannot_explode() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "too large" in refusal("\n".join(lines)).message


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("run: x\nserivce: {}\n", "unknown key 'serivce'", "did you mean `service`?"),
        (task("replicas: 2"), "unknown key 'replicas'", "`replicas` belongs under `service:`"),
        (service("replcas: 2"), "unknown key 'replcas' in `service`", "did you mean `replicas`?"),
        (service("ready: 2\nzzz: 1"), "unknown key 'ready' in `service`", "also s.yaml:5:3: unknown key 'zzz'"),
        (
            service("readiness_probe: {pth: /}"),
            "unknown key 'pth' in `service.readiness_probe`",
            "did you mean `path`?",
        ),
        (
            service("replica_policy: {min_replicas: 1, max_replica: 2}"),
            "unknown key 'max_replica' in `service.replica_policy`",
            "did you mean `max_replicas`?",
        ),
        (service("load_balancer: {quue_size: 1}"), "in `service.load_balancer`", "did you mean `queue_size`?"),
        (service("tls: {keyfil: a, keyfile: a, certfile: b}"), "in `service.tls`", "did you mean `keyfile`?"),
        (resources("ports: 80\naccelerator: L4"), "in `resources`", "did you mean `accelerators`?"),
        (resources("ports: 80\nany_of: [{cpu: 4}]"), "in `resources.any_of[0]`", "did you mean `cpus`?"),
    ],
)
def test_unknown_keys(text: str, message: str, hint: str) -> None:
    error = refusal(text)
    assert message in error.message
    assert hint in (error.hint or "")


def test_a_missing_section_is_answered_with_what_a_file_needs() -> None:
    error = refusal("run: x\nresources: {ports: 1}\n")
    assert error.hint == "a Service YAML needs `service:`, `resources:` and `run:`"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("service: {}\nresources: {ports: 1}\n", "`run` is missing"),
        ("run: x\nresources: {ports: 1}\n", "`service` is missing"),
        ("run:\nservice: {}\nresources: {ports: 1}\n", "`run` is missing"),
        ("run: ' '\nservice: {}\nresources: {ports: 1}\n", "`run` must be a text that is not empty"),
        ("run: 5\nservice: {}\nresources: {ports: 1}\n", "`run` must be a text that is not empty, not 5"),
        (task("service2: {}"), "unknown key"),
        (task("name: my service"), "`name` must be a name of at most 63"),
        (task("name: ../x"), "`name` must be"),
        (task(f"name: {'a' * 64}"), "`name` must be"),
        (task("name: a-"), "`name` must be"),
        (task("name: '$(id)'"), "`name` must be"),
        (task('name: "a\\n"'), "`name` must be"),
        (task("setup: [a]"), "`setup` must be a shell script, not a list"),
        (task("num_nodes: 0"), "`num_nodes` must be a whole number of 1 or more"),
        (task("num_nodes: true"), "`num_nodes` must be a whole number"),
        (task("envs: [A]"), "`envs` must be a map"),
        (task("envs: {A B: 1}"), "'A B' in `envs` must be a name"),
        (task("envs: {A: [1]}"), "`envs.A` must be a single value"),
        (task("envs: {A: }"), "`envs.A` has no value"),
        (task("secrets: {A: }"), "`secrets.A` has no value"),
        (task("envs: {A: 1}\nsecrets: {A: 2}"), "A is both in `envs` and in `secrets`"),
        (task("workdir: {ref: main}"), "`workdir.url` is missing"),
        (task("workdir: https://me:secret@host/x.git"), "`workdir`: the URL of the repository holds a password"),
        (task("workdir: https://host/x.tar"), "`workdir` from such a URL is not supported"),
        (task("file_mounts: {/data: {name: x}}"), "`file_mounts./data` holds a storage object"),
        (task("file_mounts: {/data: s3://bucket}"), "`file_mounts` from such a URL is not supported"),
        (task("file_mounts: {/data: }"), "`file_mounts./data` must be a path"),
        (task("volumes: {/data: {size: 1}}"), "`volumes./data` holds a storage object"),
        (task("pool: {workers: 1}"), "`pool` belongs to pools of workers"),
        (service("workers: 2"), "`service.workers` belongs to pools of workers"),
        (service("pool: true"), "`service.pool` belongs to pools of workers"),
        (service("replicas: -1"), "`service.replicas` must be a whole number of 0 or more, not -1"),
        (service("replicas: true"), "`service.replicas` must be a whole number of 0 or more, not true"),
        (service("replicas: 1.5"), "`service.replicas` must be a whole number of 0 or more, not 1.5"),
        (service("replicas: '2'"), "not the text '2'"),
        (service("replicas: 99999999999999999999"), "`service.replicas` must be a whole number"),
        (service("readiness_probe: health"), "must be a path that starts with / and holds no spaces or a map"),
        (service("readiness_probe: {path: 'a b'}"), "`service.readiness_probe.path` must be a path"),
        (service("readiness_probe: '/ HTTP/1.1'"), "must be a path"),
        (service("readiness_probe: [/]"), "or a map, not a list"),
        (service("readiness_probe: {timeout_seconds: 0}"), "must be a number above 0, not 0"),
        (service("readiness_probe: {timeout_seconds: .nan}"), "must be a number above 0, not .nan"),
        (service("readiness_probe: {timeout_seconds: .inf}"), "must be a number above 0, not .inf"),
        (service("readiness_probe: {initial_delay_seconds: -5}"), "must be a number of 0 or more, not -5"),
        (service("readiness_probe: {endpoint_probe_interval_seconds: 0}"), "must be a number above 0"),
        (service("readiness_probe: {consecutive_failure_threshold_timeout: x}"), "must be a number of 0 or more"),
        (service("readiness_probe: {post_data: '{a'}"), "is a text that is not JSON"),
        (service("readiness_probe: {post_data: '[NaN]'}"), "is a text that is not JSON"),
        (service("readiness_probe: {post_data: {a: .inf}}"), "a number that JSON cannot write"),
        (service("readiness_probe: {post_data: [1]}"), "must be a map or a JSON text, not a list"),
        (service("readiness_probe: {headers: {'a b': x}}"), "must be a header name"),
        (service('readiness_probe: {headers: {a: "x\\r\\ny: z"}}'), "without line breaks"),
        (service("replica_policy: {max_replicas: 1}"), "`service.replica_policy.min_replicas` is missing"),
        (service("replica_policy: {min_replicas: 3, max_replicas: 1}"), "`max_replicas` is 1, less than"),
        (service("replica_policy: {min_replicas: 1, max_replicas: 3}"), "nothing says when"),
        (service("replica_policy: {min_replicas: 1, target_qps_per_replica: 1}"), "needs `max_replicas`"),
        (
            service("replica_policy: {min_replicas: 1, max_replicas: 2, target_qps_per_replica: 0}"),
            "must be a number above 0 or a map, not 0",
        ),
        (
            service("replica_policy: {min_replicas: 1, max_replicas: 2, target_qps_per_replica: {L4: 0}}"),
            "`service.replica_policy.target_qps_per_replica.L4` must be a number above 0, not 0",
        ),
        (
            service("replica_policy: {min_replicas: 1, max_replicas: 2, target_qps_per_replica: {L4: 2}}"),
            "by accelerator needs another load balancing policy",
        ),
        (service("replicas: 1\nreplica_policy: {min_replicas: 1}"), "exclude each other"),
        (service("replica_policy: {min_replicas: 1, spot_placer: dynamic_fallback}"), "for services on spot"),
        (service("replica_policy: {min_replicas: 1, dynamic_ondemand_fallback: true}"), "for services on spot"),
        (service("replica_policy: {min_replicas: 1, base_ondemand_fallback_replicas: 1}"), "for services on spot"),
        (
            service("replica_policy: {min_replicas: 1, spot_placer: other}"),
            "must be one of risk_aware, dynamic_fallback",
        ),
        (service("load_balancing_policy: fastest"), "must be one of round_robin, least_load, instance_aware"),
        (service("load_balancer: {mode: relay}"), "must be one of proxy, redirect"),
        (service("load_balancer: {retry: never}"), "must be one of idempotent, safe"),
        (service("load_balancer: {stream_timeout_seconds: 0}"), "must be a number above 0"),
        (service("load_balancer: {queue_size: -1}"), "must be a whole number of 0 or more"),
        (service("tls: {keyfile: a}"), "`service.tls.certfile` is missing"),
        (service("replica_tls: {verify: false, ca_file: a}"), "has no effect with `verify: false`"),
        (service("replica_tls: {server_name: https://a}"), "must be a host name"),
        (service("tls: {certfile: a}"), "`service.tls.keyfile` is missing"),
        (service("ports: 0"), "`service.ports` must be a whole number from 1 to 65535"),
        (service("ports: 8081"), "`service.ports` is 8081, which `resources.ports` does not open"),
        (service("ports: '8080-8081'", "ports: '8080-8082'"), "must be one port"),
        (service("ports: '70000'", ""), "must be within 1 and 65535"),
        (service("replicas: 1", ""), "no port is given"),
    ],
)
def test_service_and_task(text: str, message: str) -> None:
    assert message in refusal(text).message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ports: 0", "`resources.ports` must be a whole number from 1 to 65535"),
        ("ports: 70000", "`resources.ports` must be a whole number from 1 to 65535"),
        ("ports: '70000'", "must be within 1 and 65535"),
        ("ports: '8082-8080'", "the lower one first"),
        ("ports: '1-60000'", "must open at most 100 ports"),
        ("ports: 8080-8082", "opens 3 ports, and nothing says which one serves"),
        ("ports: [8080, 8081]", "opens 2 ports, and nothing says which one serves"),
        ("ports: true", "`resources.ports` must be"),
        ("ports: 80\nuse_spot: yes", "`resources.use_spot` must be true or false, not the text 'yes'"),
        ("ports: 80\ncpus: -1", "`resources.cpus` must be an amount"),
        ("ports: 80\ncpus: 0", "`resources.cpus` must be above 0"),
        ("ports: 80\ncpus: true", "`resources.cpus` must be an amount such as 8 or 8+, not true"),
        ("ports: 80\ncpus: 4x", "`resources.cpus` must be an amount"),
        ("ports: 80\nmemory: 32XB", "`resources.memory` has a unit that is not known"),
        ("ports: 80\nmemory: 4x+", "must be a multiple such as 4x"),
        ("ports: 80\ndisk_size: 10MB", "must be a whole number of GiB"),
        ("ports: 80\ndisk_size: [1]", "`resources.disk_size` must be a size"),
        ("ports: 80\ndisk_tier: fast", "must be one of low, medium, high, ultra, best"),
        ("ports: 80\nmax_hourly_cost: 0", "must be a number above 0"),
        ("ports: 80\naccelerators: L4:x", "`resources.accelerators` must be an accelerator"),
        ("ports: 80\naccelerators: L4:0", "must ask for more than 0"),
        ("ports: 80\naccelerators: {L4: -1}", "`resources.accelerators.L4` must be a number above 0"),
        ("ports: 80\naccelerators: {'L4:1': 2}", "gives two counts for 'L4:1'"),
        ("ports: 80\njob_recovery: {}", "`resources.job_recovery` is for jobs"),
        ("ports: 80\ninfra: a/b/c/d", "must be cloud/region/zone"),
        ("ports: 80\ninfra: aws\nregion: us-east-1", "`resources.region` and `resources.infra` both say where"),
        ("ports: 80\nimage_id: {us-east-1: ami-1}", "`resources.image_id` by region is not supported yet"),
        ("ports: 80\npriority: 1\npriority_class: high", "mean the same"),
        ("ports: 80\nany_of: []", "`resources.any_of` has no alternatives"),
        ("ports: 80\nany_of: {}", "`resources.any_of` must be a list"),
        ("ports: 80\nany_of: [{cloud: aws}]\nordered: [{cloud: gcp}]", "exclude each other"),
        ("ports: 80\nany_of: [{use_spot: true}, {use_spot: false}]", "mix spot and on-demand"),
        ("any_of: [{ports: 80}, {ports: 81}]", "`resources.ports` differs between alternatives"),
        ("any_of: [{ports: 80}, {cpus: 1}]", "`resources.ports` differs between alternatives"),
        ("ports: 80\naccelerators: [L4, A100]\nany_of: [{cloud: aws}]", "leave the order open"),
        ("ports: 80\naccelerators: {L4: 1, A100: 1}\nordered: [{cloud: aws}]", "leave the order open"),
    ],
)
def test_resources(text: str, message: str) -> None:
    assert message in refusal(resources(text)).message


@pytest.mark.parametrize(
    ("overrides", "where", "message"),
    [
        (Overrides(name="a b"), "--service-name", "`name` must be a name"),
        (Overrides(cpus="many"), "--cpus", "`resources.cpus` must be an amount"),
        (Overrides(num_nodes=0), "--num-nodes", "`num_nodes` must be a whole number of 1 or more"),
        (Overrides(ports=("99999",)), "--ports", "must be within 1 and 65535"),
        (Overrides(envs={"A B": "x"}), "--env A B", "must be a name"),
        (Overrides(envs={"A": "\udc80"}), "--env A", "not a text in UTF-8"),
        (Overrides(secrets={"A": "\udc80"}), "--secret A", "not a text in UTF-8"),
        (Overrides(gpus="L4:none"), "--gpus", "must be an accelerator"),
    ],
)
def test_flags_are_checked_as_keys_are(overrides: Overrides, where: str, message: str) -> None:
    error = refusal(task(""), overrides)
    assert (error.where, error.excerpt) == (where, "")
    assert message in error.message


def test_a_made_up_name_is_checked() -> None:
    with pytest.raises(SpecError, match="must be a name"):
        load_service(task(""), fingerprint_key=b"", name_suffix="../x")
    assert load_service(task(""), fingerprint_key=b"").spec.name == "sky-service"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("run: café".encode("latin-1"))
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (1 << 20) + b"\n")
    cases = {
        tmp_path / "none.yaml": "there is no file",
        tmp_path: "is a directory",
        latin: "is not UTF-8 text: byte 8",
        large: "is larger than 1 MiB",
        latin / "below": "cannot be read: Not a directory",
    }
    for path, message in cases.items():
        with pytest.raises(SpecError, match=message) as caught:
            load_service(path, fingerprint_key=b"", name_suffix="0a1b")
        assert caught.value.where == str(path)
