"""What this machine is found to have, and how it is shared out."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from skyserve.errors import CapacityUnavailable
from skyserve.model.resources import Accelerator
from skyserve.providers.machine import Ask, Gpu, Machine, Share, canonical_gpu_name, detect

ANSWER = "0, NVIDIA A100-SXM4-80GB, 81920\n1, Tesla T4, 15360\n2, NVIDIA GB10, [N/A]\n"


def path_with_nvidia_smi(directory: Path, script: str) -> dict[str, str]:
    tool = directory / "nvidia-smi"
    tool.write_text(f"#!/bin/bash\n{script}\n")
    tool.chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A10", "A10"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("Tesla V100-SXM2-32GB", "V100-32GB"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA RTX A6000", "RTXA6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX6000-Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000"),
        ("NVIDIA TITAN V", "TITAN-V"),
    ],
)
def test_gpus_have_the_names_that_yamls_use(raw: str, name: str) -> None:
    assert canonical_gpu_name(raw) == name


def test_gpus_are_asked_of_the_driver(tmp_path: Path) -> None:
    env = path_with_nvidia_smi(tmp_path, f"cat <<'EOF'\n{ANSWER}EOF")
    machine = detect(env)
    assert machine.gpus == (Gpu(0, "A100-80GB", 80.0), Gpu(1, "T4", 15.0), Gpu(2, "GB10", 0.0))
    assert machine.gpu_summary == "A100-80GB:1, T4:1, GB10:1"


@pytest.mark.parametrize(("visible", "indices"), [("1", [1]), ("2,0", [0, 2]), ("", []), ("GPU-5d3f", [0, 1, 2])])
def test_gpus_hidden_from_the_controller_stay_hidden(tmp_path: Path, visible: str, indices: list[int]) -> None:
    env = path_with_nvidia_smi(tmp_path, f"cat <<'EOF'\n{ANSWER}EOF")
    assert [gpu.index for gpu in detect({**env, "CUDA_VISIBLE_DEVICES": visible}).gpus] == indices


@pytest.mark.parametrize("script", ["exit 9", "echo 'No devices were found'", "echo '0, L4'"])
def test_a_driver_that_fails_means_no_gpus(tmp_path: Path, script: str) -> None:
    assert detect(path_with_nvidia_smi(tmp_path, script)).gpus == ()


def test_a_driver_that_hangs_means_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skyserve.providers.machine._NVIDIA_SMI_TIMEOUT_S", 0.1)
    began = time.monotonic()
    assert detect(path_with_nvidia_smi(tmp_path, "sleep 1000 & wait")).gpus == ()
    assert time.monotonic() - began < 5


def test_the_limits_of_a_container_count(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text(f"{512 * 1024**2}\n")
    machine = detect({}, cgroup=tmp_path)
    assert (machine.vcpus, machine.memory_gib) == (0.5, 0.5)


def test_no_limits_is_the_whole_machine(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    limited, free = detect({}, cgroup=tmp_path), detect({}, cgroup=tmp_path / "nothing")
    assert limited == free
    assert free.vcpus >= 1
    assert free.memory_gib > 0
    assert free.gpus == ()


HOST = Machine(vcpus=8, memory_gib=32, gpus=(Gpu(0, "L4", 23), Gpu(1, "L4", 23), Gpu(3, "T4", 15)))


def test_gpus_are_picked_by_name_whatever_the_case() -> None:
    assert HOST.share("a/1", Ask(accelerator=Accelerator("t4", 1)), ()).gpus == {3: 1.0}


def test_part_of_a_gpu_goes_where_a_part_is_taken() -> None:
    half = Ask(accelerator=Accelerator("L4", 0.5))
    first = HOST.share("a/1", half, ())
    second = HOST.share("a/2", half, (first,))
    assert first.gpus == second.gpus == {0: 0.5}
    assert HOST.share("a/3", half, (first, second)).gpus == {1: 0.5}
    assert HOST.share("a/4", Ask(accelerator=Accelerator("L4", 1)), (first,)).gpus == {1: 1.0}


def test_a_refusal_names_who_has_it() -> None:
    held = (Share("chat/1", vcpus=4), Share("chat/2", vcpus=1.5), Share("code/1", memory_gib=8))
    with pytest.raises(CapacityUnavailable) as raised:
        HOST.share("chat/3", Ask(vcpus=4), held)
    assert raised.value.message == "4 vCPUs asked, 2.5 of 8 free: chat/1 has 4, chat/2 has 1.5"


def test_two_launches_of_one_replica_both_count() -> None:
    held = (Share("chat/1", vcpus=4), Share("chat/1", vcpus=4))
    with pytest.raises(CapacityUnavailable):
        HOST.share("chat/2", Ask(vcpus=1), held)


def test_nothing_asked_is_always_granted() -> None:
    assert HOST.share("chat/2", Ask(), (Share("chat/1", vcpus=8, memory_gib=32),)) == Share("chat/2")
