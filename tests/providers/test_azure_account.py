"""Whose subscription of Azure, by what is found here, and a login that fails."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from pathlib import Path

import pytest
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError
from azure.identity import CredentialUnavailableError

from skyserve.clock import SystemClock
from skyserve.config import Config
from skyserve.errors import CredentialsRejected, ProviderUnavailable
from skyserve.providers.azure import provider
from skyserve.providers.azure.api import Account, account, meaning
from skyserve.providers.base import NotConfigured

SECRET = {"AZURE_CLIENT_ID": "id", "AZURE_TENANT_ID": "t", "AZURE_CLIENT_SECRET": "private"}
PROFILE = {"subscriptions": [{"name": "other", "id": "1"}, {"name": "mine", "id": "2", "isDefault": True}]}


def profile(home: Path, content: bytes | object = PROFILE) -> None:
    (home / ".azure").mkdir()
    data = content if isinstance(content, bytes) else b"\xef\xbb\xbf" + json.dumps(content).encode()
    (home / ".azure/azureProfile.json").write_bytes(data)


def test_an_account_of_its_own(tmp_path):
    found = account({**SECRET, "AZURE_SUBSCRIPTION_ID": "s"}, tmp_path)
    assert found == Account("s", "client id", ("t", "id", "private"))
    assert "private" not in repr(found)


def test_the_account_that_az_knows(tmp_path):
    profile(tmp_path)
    assert account({}, tmp_path) == Account("2", "subscription mine")
    assert account(SECRET, tmp_path).subscription == "2"
    assert account({"AZURE_SUBSCRIPTION_ID": "3"}, tmp_path) == Account("3", "subscription 3")


def test_an_identity_that_azure_itself_gives(tmp_path):
    env = {"AZURE_CLIENT_ID": "id", "AZURE_TENANT_ID": "t", "AZURE_FEDERATED_TOKEN_FILE": "/f"}
    found = account({**env, "AZURE_SUBSCRIPTION_ID": "s"}, tmp_path)
    assert found == Account("s", "client id", other_means=True)


@pytest.mark.parametrize(
    ("env", "content", "reason", "hint"),
    [
        ({}, None, "there is no", "az login"),
        (SECRET, None, "AZURE_SUBSCRIPTION_ID is not set", "export AZURE_SUBSCRIPTION_ID"),
        ({"AZURE_TOKEN_CREDENTIALS": "prod"}, None, "AZURE_SUBSCRIPTION_ID is not set", "export AZURE_SUBSCRIPTION_ID"),
        ({"AZURE_CLIENT_ID": "id"}, None, "but not AZURE_TENANT_ID", "export AZURE_TENANT_ID AZURE_CLIENT_SECRET"),
        ({}, b"{", "is not JSON", "az login"),
        ({}, {"subscriptions": 1}, "names no subscription", "az login"),
    ],
)
def test_no_account(tmp_path, env, content, reason, hint):
    if content is not None:
        profile(tmp_path, content)
    with pytest.raises(NotConfigured, match=re.escape(reason)) as told:
        account(env, tmp_path)
    assert told.value.title == "Azure"
    assert told.value.hint == hint


def test_no_sdk(tmp_path):
    with pytest.raises(NotConfigured, match=r"azure\.identity") as told:
        account(SECRET, tmp_path, lambda module: False)
    assert told.value.hint == "pip install 'skyserve[azure]'"


def test_the_provider(tmp_path):
    config = Config(home=tmp_path, inherited_env={**SECRET, "AZURE_SUBSCRIPTION_ID": "s", "HOME": str(tmp_path)})
    assert provider(config, SystemClock()).name == "azure"
    with pytest.raises(NotConfigured):
        provider(dataclasses.replace(config, inherited_env={"HOME": str(tmp_path)}), SystemClock())


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (ServiceRequestError("no route"), ProviderUnavailable),
        (subprocess.TimeoutExpired("az", 15), ProviderUnavailable),
        (ValueError("AADSTS7000222"), CredentialsRejected),
    ],
)
def test_a_login_that_is_not_answered_is_not_refused(cause, expected):
    error = ClientAuthenticationError("Authentication failed")
    error.__cause__ = cause
    assert isinstance(meaning(error), expected)


def test_a_login_that_az_does_not_have():
    assert isinstance(meaning(CredentialUnavailableError("Please run 'az login'")), CredentialsRejected)
