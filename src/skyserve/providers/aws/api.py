"""The way to AWS: whose credentials, through which boto3 clients, one call, and answers and errors as they come.

Knows where AWS's own tools keep credentials, and boto3, an optional extra that is imported only when a call is made. It
must not know machines, nor what an error means to us.
"""

from __future__ import annotations

import asyncio
import configparser
import importlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from skyserve.providers.base import NotConfigured

TITLE = "AWS"


Told = Mapping[str, object]
"""An answer, or a part of one: boto3 does not tell the types."""


class AwsError(Exception):
    """AWS's code (or boto3's name) for what went wrong, and its words."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message.split(" Encoded authorization failure message:")[0]  # pages of it, for nobody here


def rows(told: object, key: str) -> list[Told]:
    """The objects in a list; none where there is no list."""
    found = told.get(key) if isinstance(told, Mapping) else None
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def text(told: object, *path: str) -> str:
    """A text at the end of a path of keys; empty where there is none."""
    found = _at(told, path)
    return found if isinstance(found, str) else ""


def number(told: object, *path: str) -> int:
    """A whole number at the end of a path of keys; 0 where there is none."""
    found = _at(told, path)
    return found if isinstance(found, int) else 0


def _at(told: object, path: tuple[str, ...]) -> object:
    for key in path:
        told = told.get(key) if isinstance(told, Mapping) else None
    return told


@dataclass(frozen=True, slots=True)
class Access:
    """Whose credentials to use: the keys in `env`, or a profile in the two files that the AWS tools share."""

    env: Mapping[str, str] = field(repr=False)
    profile: str | None
    files: Mapping[str, str]


def access(env: Mapping[str, str], home: Path) -> Access:
    """Find credentials without asking any network. Raises NotConfigured."""
    hint, profile = "aws configure", env.get("AWS_PROFILE") or "default"
    usual = {"AWS_SHARED_CREDENTIALS_FILE": ".aws/credentials", "AWS_CONFIG_FILE": ".aws/config"}
    paths = [home / (env.get(key) or path).removeprefix("~/") for key, path in usual.items()]  # absolute ones stay
    files = dict(zip(("credentials_file", "config_file"), map(str, paths), strict=True))
    if env.get("AWS_ACCESS_KEY_ID"):
        if not env.get("AWS_SECRET_ACCESS_KEY"):
            reason = "AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not"
            raise NotConfigured(TITLE, reason, "export AWS_SECRET_ACCESS_KEY=SECRET")
        return Access(env, None, files)
    if any({profile, f"profile {profile}"} & _sections(path, hint) for path in paths):
        return Access(env, profile, files)
    reason = f"no credentials: neither AWS_ACCESS_KEY_ID nor a profile '{profile}' in {paths[0]}"
    raise NotConfigured(TITLE, reason, hint)


def _sections(path: Path, hint: str) -> set[str]:
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        if path.exists():
            parser.read_string(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise NotConfigured(TITLE, f"{path} cannot be read: {error.strerror or error}", hint) from error
    except configparser.Error as error:
        raise NotConfigured(TITLE, f"{path} is not an INI file: {str(error).splitlines()[0]}", hint) from error
    return set(parser.sections())


class _Session(Protocol):
    """The little that is needed of boto3's session."""

    region_name: str | None

    def client(self, service: str, **settings: object) -> object: ...


class Api:
    """boto3, one client per service and region, made when first needed. Every error becomes an AwsError.

    `patience_s` is how long AWS may take to go on with an answer; to connect it has half of that. Nothing is tried
    twice here: the controller does that, and knows better when. What AWS's variables say of proxies and certificates
    boto3 reads by itself.
    """

    _SERVICES: Mapping[str, str] = {"get_parameter": "ssm", "get_caller_identity": "sts"}

    def __init__(self, access: Access, *, patience_s: float = 10.0) -> None:
        self._access = access
        self._patience_s = patience_s
        self._session: _Session | None = None
        self._clients: dict[tuple[str, str | None], object] = {}
        self._making = threading.Lock()  # making clients is not thread-safe, using them is

    async def ask(self, region: str | None, operation: str, **request: object) -> Told:
        """One call. Without a region, the one in the user's settings is asked."""
        return await asyncio.to_thread(self._call, region, operation, request)

    def _call(self, region: str | None, operation: str, request: Mapping[str, object]) -> Told:
        errors, parsers = (importlib.import_module(f"botocore.{name}") for name in ("exceptions", "parsers"))
        try:
            client = self._client(self._SERVICES.get(operation, "ec2"), region)
            answer: Told = getattr(client, operation)(**request)
        except errors.ClientError as error:
            told = error.response.get("Error", {})
            raise AwsError(told.get("Code") or "NoCode", told.get("Message") or str(error)) from error
        except (errors.BotoCoreError, parsers.ResponseParserError) as error:
            raise AwsError(type(error).__name__, str(error).partition("\n")[0]) from error
        return answer

    def _client(self, service: str, region: str | None) -> object:
        env, patience_s = self._access.env, self._patience_s
        with self._making:
            if self._session is None:
                self._session = self._new_session()
            if (service, region) not in self._clients:
                timeouts = {"connect_timeout": patience_s / 2, "read_timeout": patience_s}
                config = importlib.import_module("botocore.config").Config(
                    retries={"total_max_attempts": 1}, **timeouts
                )
                endpoint = env.get(f"AWS_ENDPOINT_URL_{service.upper()}") or env.get("AWS_ENDPOINT_URL")
                if env.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
                    endpoint = None
                place = region or self._session.region_name or "us-east-1"
                client = self._session.client(service, region_name=place, endpoint_url=endpoint, config=config)
                self._clients[service, region] = client
            return self._clients[service, region]

    def _new_session(self) -> _Session:
        access = self._access
        botocore = importlib.import_module("botocore.session").Session(profile=access.profile)
        for setting, path in access.files.items():
            botocore.set_config_variable(setting, path)
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        session: _Session = importlib.import_module("boto3.session").Session(
            **{name.lower(): access.env.get(name) for name in names if access.profile is None},
            region_name=access.env.get("AWS_REGION") or access.env.get("AWS_DEFAULT_REGION"),
            botocore_session=botocore,
        )
        return session
