"""The launch examples load, and mean what their readers think."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skyserve.model.resources import Accelerator, Quantity
from skyserve.model.service import ServiceSpec
from skyserve.spec.load import load_service
from skyserve.spec.overrides import Overrides

EXAMPLES = Path(__file__).parents[2] / "examples" / "announcement"
MIXTRAL_SET = ["L4:8", "A10G:8", "A100:4", "A100:8", "A100-80GB:2", "A100-80GB:4", "A100-80GB:8"]


def example(name: str, overrides: Overrides | None = None) -> ServiceSpec:
    loaded = load_service(EXAMPLES / name, fingerprint_key=b"key", overrides=overrides or Overrides(name="svc"))
    assert all(told.startswith("accepted, but not acted on yet: `disk_size`") for told in loaded.warnings)
    return loaded.spec


def accelerators(spec: ServiceSpec) -> list[str]:
    return [str(one.accelerators) for one in spec.resources.alternatives]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_loads(path: Path) -> None:
    spec = example(path.name)
    assert spec.name == "svc"
    assert spec.source == path.read_text()
    assert str(spec.port) in spec.run


@pytest.mark.parametrize(
    ("name", "port", "expected"),
    [
        ("mixtral.yaml", 8080, MIXTRAL_SET),
        ("mixtral-probe.yaml", 8080, MIXTRAL_SET),
        ("mixtral-autoscale.yaml", 8080, MIXTRAL_SET),
        ("huggingface-tgi.yaml", 8082, ["A100:1"]),
        ("codellama.yaml", 8000, [*MIXTRAL_SET[:2], "A10:8", *MIXTRAL_SET[2:]]),
        ("vllm.yaml", 8000, ["L4:1", "A10G:1", "A10:1", "A100:1", "A100-80GB:1"]),
        ("sglang.yaml", 8000, ["L4:1", "A10G:1", "A10:1", "A100:1", "A100-80GB:1"]),
        ("tabby.yaml", 8080, ["T4:1", "L4:1", "A100:1", "A10G:1"]),
        ("lorax.yaml", 8080, ["L4:1", "A100:1", "A10G:1"]),
    ],
)
def test_port_and_accelerators(name: str, port: int, expected: list[str]) -> None:
    spec = example(name)
    assert spec.port == port
    assert accelerators(spec) == expected
    assert not spec.resources.ordered


def test_a_path_is_a_get_probe_with_the_usual_patience() -> None:
    probe = example("mixtral.yaml").readiness_probe
    assert (probe.path, probe.post_data, probe.initial_delay_seconds) == ("/v1/models", None, 1200)


def test_post_data_is_kept_as_json() -> None:
    probe = example("mixtral-probe.yaml").readiness_probe
    assert probe.path == "/v1/chat/completions"
    assert probe.initial_delay_seconds == 1800
    assert json.loads(probe.post_data or "") == {
        "model": "mistralai/Mixtral-8x7B-Instruct-v0.1",
        "messages": [{"role": "user", "content": "Hello! What is your name?"}],
        "max_tokens": 1,
    }


def test_autoscaling_on_spot() -> None:
    spec = example("mixtral-autoscale.yaml")
    policy = spec.replica_policy
    assert (policy.min_replicas, policy.max_replicas, policy.target_qps_per_replica) == (0, 10, 2.5)
    assert all(one.use_spot for one in spec.resources.alternatives)


def test_disk_and_memory() -> None:
    first = example("codellama.yaml").resources.alternatives[0]
    assert first.accelerators == Accelerator("L4", 8)
    assert (first.disk_size, first.disk_tier, first.memory) == (1024, "best", Quantity(32, at_least=True))


def test_env_from_the_command_line() -> None:
    assert example("huggingface-tgi.yaml").envs == {"MODEL_ID": "lmsys/vicuna-13b-v1.5"}
    spec = example("huggingface-tgi.yaml", Overrides(name="tgi", envs={"MODEL_ID": "mistralai/Mistral-7B"}))
    assert spec.envs == {"MODEL_ID": "mistralai/Mistral-7B"}
