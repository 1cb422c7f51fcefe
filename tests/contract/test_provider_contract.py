"""The provider contract, on everything that a provider may stand for."""

from __future__ import annotations

import functools

import pytest
from tests.contract.kubernetes_world import kubernetes_world
from tests.contract.near_worlds import fake_world, local_world
from tests.contract.provider_suite import Contract
from tests.contract.ssh_world import ssh_world
from tests.contract.vm_worlds import aws_world, azure_world, gcp_world, lambda_world, runpod_world
from tests.providers import kubernetes_rig


class TestLocal(Contract):
    title = "local"
    world = staticmethod(local_world)


class TestFake(Contract):
    title = "in memory"
    world = staticmethod(fake_world)


class TestInstrumented(Contract):
    title = "instrumented"
    world = staticmethod(functools.partial(fake_world, instrumented=True))


@pytest.mark.bed
class TestGcp(Contract):
    title = "GCP"
    world = staticmethod(gcp_world)


@pytest.mark.bed
class TestAws(Contract):
    title = "AWS"
    world = staticmethod(aws_world)


@pytest.mark.bed
class TestAzure(Contract):
    title = "Azure"
    world = staticmethod(azure_world)


@pytest.mark.bed
class TestLambda(Contract):
    title = "Lambda"
    world = staticmethod(lambda_world)


@pytest.mark.bed
class TestRunPod(Contract):
    title = "RunPod"
    world = staticmethod(runpod_world)


@pytest.mark.bed
class TestSsh(Contract):
    title = "SSH"
    world = staticmethod(ssh_world)


@pytest.mark.skipif(bool(no_cluster := kubernetes_rig.missing()), reason=no_cluster or "")
class TestKubernetes(Contract):
    title = "Kubernetes"
    world = staticmethod(kubernetes_world)
