"""What each cloud lacks, in the order in which a user would put it right."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from skyserve.clock import VirtualClock
from skyserve.errors import CredentialsRejected
from skyserve.providers import clouds
from skyserve.providers.base import CheckResult
from skyserve.providers.clouds import CloudCheck, Surroundings
from skyserve.providers.fake import FakeProvider


def look(name: str, home: Path, *, sdk: bool = True, providers=None, **env: str) -> CloudCheck:
    around = Surroundings(env, home, lambda module: sdk)
    return asyncio.run(clouds.check(name, providers or {}, around))


def write(home: Path, path: str, content: str | bytes) -> None:
    file = home / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("name", ["aws", "gcp", "azure", "kubernetes"])
def test_the_sdk_comes_first(tmp_path, name):
    found = look(name, tmp_path, sdk=False)
    assert not found.enabled
    assert found.reason.startswith("its SDK is not installed")
    assert found.hint == f"pip install 'skyserve[{name}]'"


@pytest.mark.parametrize("name", ["aws", "gcp", "azure", "kubernetes", "lambda", "runpod", "ssh"])
def test_then_the_credentials(tmp_path, name):
    found = look(name, tmp_path)
    assert not found.enabled
    assert found.hint
    assert not found.adapter
    assert "cannot launch" not in found.reason
    assert found.account == ""


ADC = {"type": "authorized_user", "account": "me@example.com", "quota_project_id": "mine", "refresh_token": "private"}
PROFILE = {"subscriptions": [{"name": "other"}, {"name": "mine", "isDefault": True}]}
KUBECONFIG = "apiVersion: v1\ncurrent-context: 'big'\nusers: [{user: {token: private}}]\n"

FILES = [
    ("aws", ".aws/credentials", "[default]\naws_secret_access_key = private\n", "profile default"),
    ("aws", ".aws/config", "[profile default]\nsso_session = x\n", "profile default"),
    ("gcp", ".config/gcloud/application_default_credentials.json", json.dumps(ADC), "me@example.com [project mine]"),
    ("azure", ".azure/azureProfile.json", b"\xef\xbb\xbf" + json.dumps(PROFILE).encode(), "subscription mine"),
    ("kubernetes", ".kube/config", KUBECONFIG, "context big"),
    ("lambda", ".lambda_cloud/lambda_keys", "api_key = private\n", "the key in {home}/.lambda_cloud/lambda_keys"),
    ("runpod", ".runpod/config.toml", '[default]\napi_key = "private"\n', "the key in {home}/.runpod/config.toml"),
]


@pytest.mark.parametrize(("name", "path", "content", "account"), FILES)
def test_then_that_nothing_could_launch_there(tmp_path, name, path, content, account):
    write(tmp_path, path, content)
    found = look(name, tmp_path)
    assert not found.enabled
    assert "cannot launch" in found.reason
    assert found.account == account.format(home=tmp_path)
    assert "private" not in str(found)


@pytest.mark.parametrize(
    ("name", "env", "account"),
    [
        ("aws", {"AWS_ACCESS_KEY_ID": "AKIA1", "AWS_SECRET_ACCESS_KEY": "private"}, "access key AKIA1"),
        (
            "azure",
            {"AZURE_CLIENT_ID": "id", "AZURE_TENANT_ID": "t", "AZURE_CLIENT_SECRET": "private"},
            "client id",
        ),
        ("lambda", {"LAMBDA_API_KEY": "private"}, "the key in LAMBDA_API_KEY"),
        ("runpod", {"RUNPOD_API_KEY": "private"}, "the key in RUNPOD_API_KEY"),
    ],
)
def test_credentials_of_the_environment(tmp_path, name, env, account):
    found = look(name, tmp_path, **env)
    assert found.reason == clouds.NO_ADAPTER
    assert found.account == account
    assert "private" not in str(found)


def test_files_that_the_environment_names(tmp_path):
    write(tmp_path, "elsewhere.json", json.dumps({"client_email": "robot@example.com", "project_id": "p"}))
    found = look("gcp", tmp_path, GOOGLE_APPLICATION_CREDENTIALS=str(tmp_path / "elsewhere.json"))
    assert found.account == "robot@example.com [project p]"
    write(tmp_path, "aws", "[work]\n")
    found = look("aws", tmp_path, AWS_SHARED_CREDENTIALS_FILE="~/aws", AWS_PROFILE="work")
    assert found.account == "profile work"
    write(tmp_path, "kube", KUBECONFIG)
    assert look("kubernetes", tmp_path, KUBECONFIG=f"/nowhere:{tmp_path}/kube").account == "context big"


@pytest.mark.parametrize(
    ("name", "path", "content", "reason"),
    [
        ("aws", ".aws/credentials", "no section\n", "is not an INI file"),
        ("aws", ".aws/credentials", "[work]\n", "nor a profile 'default'"),
        ("gcp", ".config/gcloud/application_default_credentials.json", "{", "is not JSON"),
        ("gcp", ".config/gcloud/application_default_credentials.json", "[]", "holds no JSON object"),
        ("gcp", ".config/gcloud/application_default_credentials.json", "{}", "holds no credentials"),
        ("azure", ".azure/azureProfile.json", '{"subscriptions": 1}', "names no subscription"),
        ("kubernetes", ".kube/config", 'current-context: ""\n', "has no current context"),
        ("lambda", ".lambda_cloud/lambda_keys", "api_key =\n", "has no line"),
        ("runpod", ".runpod/config.toml", "[", "is not TOML"),
        ("runpod", ".runpod/config.toml", "[default]\n", "has no `api_key`"),
        ("lambda", ".lambda_cloud/lambda_keys/oops", "", "cannot be read: Is a directory"),
    ],
)
def test_files_that_are_no_good(tmp_path, name, path, content, reason):
    write(tmp_path, path, content)
    found = look(name, tmp_path)
    assert reason in found.reason
    assert found.hint


def test_half_of_the_variables(tmp_path):
    assert "AWS_SECRET_ACCESS_KEY is not" in look("aws", tmp_path, AWS_ACCESS_KEY_ID="AKIA1").reason
    found = look("azure", tmp_path, AZURE_CLIENT_ID="id")
    assert found.hint == "export AZURE_TENANT_ID AZURE_CLIENT_SECRET"


class Refusing(FakeProvider):
    """Has an account that the cloud does not accept."""

    async def check(self) -> CheckResult:
        raise CredentialsRejected("the key expired")


def test_a_provider_of_that_name_is_asked_instead(tmp_path):
    clock = VirtualClock()
    providers = {"aws": FakeProvider(clock, name="aws"), "gcp": Refusing(clock, name="gcp")}
    found = look("aws", tmp_path, sdk=False, providers=providers)
    assert (found.enabled, found.adapter, found.title) == (True, True, "AWS")
    found = look("gcp", tmp_path, providers=providers)
    assert (found.enabled, found.reason, found.hint) == (False, "the key expired", "run `sky check` again")


def test_names_and_titles():
    cumulus = FakeProvider(VirtualClock(), name="cumulus")
    names = clouds.names({"local": cumulus, "cumulus": cumulus})
    assert names == (*clouds.CLOUDS, "cumulus")
    assert (clouds.title("gcp"), clouds.title("cumulus")) == ("GCP", "cumulus")


def test_installed_imports_nothing():
    assert clouds.installed("json")
    assert not clouds.installed("no_such_module_here")
    assert not clouds.installed("no_such_package_here.part")
