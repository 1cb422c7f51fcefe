"""Where GCP's credentials and project come from, and how they become access tokens."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.bed.core import CloudCore
from tests.bed.gcp_fake import GcpFake

from skyserve.clock import SystemClock
from skyserve.config import Config
from skyserve.errors import CredentialsRejected, ProviderUnavailable
from skyserve.providers.base import NotConfigured
from skyserve.providers.gcp import GcpCloud, provider
from skyserve.providers.gcp.api import find_account


@pytest.fixture
def fake() -> Iterator[GcpFake]:
    with GcpFake(CloudCore()) as fake:
        yield fake


def service_account(token_uri: str) -> dict[str, str]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return {
        "type": "service_account",
        "project_id": "demo-project",
        "client_email": "robot@demo-project.iam.gserviceaccount.com",
        "private_key": key.private_bytes(*form).decode(),
        "token_uri": token_uri,
    }


def config_with(home: Path, credentials: object, **env: str) -> Config:
    path = home / ".config" / "gcloud" / "application_default_credentials.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(credentials if isinstance(credentials, str) else json.dumps(credentials))
    return Config(home=home / "state", inherited_env={"HOME": str(home), **env})


def test_a_service_account_logs_in_once_and_again_when_it_must(fake: GcpFake, tmp_path: Path) -> None:
    config = config_with(tmp_path, service_account(f"{fake.origin}/token"))
    account = find_account(config)
    assert account.who == "robot@demo-project.iam.gserviceaccount.com"
    assert "token" not in repr(account)
    cloud = GcpCloud(account, "sky-1", SystemClock(), endpoint=fake.url)
    assert asyncio.run(cloud.check()).usable
    assert asyncio.run(cloud.machines()) == []
    assert fake.logins == 1


def test_a_login_that_was_withdrawn(fake: GcpFake, tmp_path: Path) -> None:
    fake.login_works = False
    account = find_account(config_with(tmp_path, service_account(f"{fake.origin}/token")))
    with pytest.raises(CredentialsRejected) as caught:
        account.bearer()
    assert caught.value.hint == "gcloud auth application-default login"


def test_sign_in_does_not_answer(tmp_path: Path) -> None:
    account = find_account(config_with(tmp_path, service_account("http://127.0.0.1:9/token")))
    with pytest.raises(ProviderUnavailable):
        account.bearer()


USER = {"type": "authorized_user", "client_id": "a", "client_secret": "b", "refresh_token": "c"}


def test_a_users_credentials_and_where_the_project_comes_from(tmp_path: Path) -> None:
    account = find_account(config_with(tmp_path, USER | {"quota_project_id": "payer", "account": "me@x.org"}))
    assert (account.project, account.who, account.billed) == ("payer", "me@x.org", "payer")
    account = find_account(config_with(tmp_path, USER, GOOGLE_CLOUD_PROJECT="named"))
    assert (account.project, account.who, account.billed) == ("named", "authorized user", None)
    elsewhere = tmp_path / "key.json"
    elsewhere.write_text(json.dumps(USER | {"quota_project_id": "other"}))
    config = config_with(tmp_path, "{}", GOOGLE_APPLICATION_CREDENTIALS=str(elsewhere))
    assert find_account(config).project == "other"


@pytest.mark.parametrize(
    ("credentials", "reason"),
    [
        (USER, "no project"),
        ("not json", "is not JSON"),
        ({}, "holds no credentials"),
        ({"type": "smoke_signals", "project_id": "p"}, "unknown type: smoke_signals"),
        ({"type": "service_account", "project_id": "p"}, "broken credentials"),
    ],
)
def test_credentials_that_do_not_do(tmp_path: Path, credentials: object, reason: str) -> None:
    with pytest.raises(NotConfigured, match=reason) as caught:
        find_account(config_with(tmp_path, credentials))
    assert caught.value.hint


def test_no_credentials_at_all(tmp_path: Path) -> None:
    with pytest.raises(NotConfigured, match="there is no") as caught:
        find_account(Config(home=tmp_path, inherited_env={"HOME": str(tmp_path)}))
    assert caught.value.hint == "gcloud auth application-default login"


def test_the_factory_makes_a_provider_without_asking_anybody(tmp_path: Path) -> None:
    made = provider(config_with(tmp_path, service_account("http://127.0.0.1:9/token")), SystemClock())
    assert (made.name, made.title) == ("gcp", "GCP")


def test_without_the_sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "google.auth" else known(name))
    with pytest.raises(NotConfigured, match=r"no Python module google\.auth") as caught:
        find_account(config_with(tmp_path, USER, GOOGLE_CLOUD_PROJECT="p"))
    assert "skyserve[gcp]" in caught.value.hint
