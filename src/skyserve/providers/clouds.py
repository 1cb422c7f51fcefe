"""The clouds that are known by name, and whether each can be used from here: SDK, credentials, adapter.

Knows where each cloud's own tools keep their credentials; never shows a secret, imports no SDK and asks no network.
The environment and the user's home directory are handed in. A provider of that name (built in or installed) knows
better than this table and is asked instead.
"""

from __future__ import annotations

import configparser
import importlib.util
import json
import re
import shutil
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from skyserve.errors import ProviderError
from skyserve.providers.base import Provider

NO_ADAPTER = "prices are known, but this version cannot launch machines there yet"
"""Why a cloud whose credentials are in order is disabled all the same."""


@dataclass(frozen=True, slots=True)
class CloudCheck:
    """Whether a cloud can be used here. When not, `reason` says why and `hint` what to do. `account` names who would be
    charged, as far as that is known without asking the cloud; it is never a secret. `adapter` says whether there is
    anything at all that could launch machines there."""

    name: str
    title: str
    enabled: bool
    reason: str = ""
    hint: str = ""
    account: str = ""
    adapter: bool = False


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a check may look at. `importable` says whether a Python module is installed."""

    env: Mapping[str, str]
    home: Path
    importable: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Cloud:
    """One known cloud. `extra` is the optional dependency of this package that brings its SDK, of which `module` is the
    sign; both are None where none is needed. `account` finds the credentials: who they belong to, or `_Missing`."""

    name: str
    title: str
    account: Callable[[Surroundings], str]
    extra: str | None = None
    module: str | None = None


class _Missing(Exception):
    """Credentials that are not there, or cannot be read."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


def title(name: str) -> str:
    """How a cloud spells its own name; an unknown one as it is."""
    known = CLOUDS.get(name)
    return known.title if known else name


def names(providers: Mapping[str, Provider]) -> tuple[str, ...]:
    """Every cloud that can be checked: those known here, then those that only an installed package knows."""
    return (*CLOUDS, *(name for name in providers if name not in CLOUDS))


def installed(module: str) -> bool:
    """Whether a module could be imported; a package is not run for that."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


async def check(name: str, providers: Mapping[str, Provider], around: Surroundings) -> CloudCheck:
    """Whether one cloud of `names(providers)` can be used. Never raises for what is missing or broken."""
    if name in providers:
        return await _ask(name, providers[name])
    cloud = CLOUDS[name]
    if cloud.module is not None and not around.importable(cloud.module):
        reason = f"its SDK is not installed: there is no Python module {cloud.module}"
        return CloudCheck(name, cloud.title, False, reason, f"pip install 'skyserve[{cloud.extra}]'")
    try:
        account = cloud.account(around)
    except _Missing as missing:
        return CloudCheck(name, cloud.title, False, missing.reason, missing.hint)
    return CloudCheck(name, cloud.title, False, _NO_ADAPTER.get(name, NO_ADAPTER), _instead(name), account)


def _instead(name: str) -> str:
    if name in _NO_ADAPTER:
        return "an installed package may offer it under the entry point group `skyserve.providers`"
    return f"to look at its prices: sky show-gpus --cloud {name}"


async def _ask(name: str, provider: Provider) -> CloudCheck:
    try:
        result = await provider.check()
    except ProviderError as error:
        return CloudCheck(name, title(name), False, error.message, error.hint or "run `sky check` again", adapter=True)
    return CloudCheck(name, title(name), result.usable, result.reason, result.hint, adapter=True)


def _aws(around: Surroundings) -> str:
    hint = "aws configure"
    if around.env.get("AWS_ACCESS_KEY_ID"):
        if not around.env.get("AWS_SECRET_ACCESS_KEY"):
            raise _Missing("AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not", "export AWS_SECRET_ACCESS_KEY")
        return f"access key {around.env['AWS_ACCESS_KEY_ID']}"
    profile = around.env.get("AWS_PROFILE", "default")
    files = (
        _file(around, "AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"),
        _file(around, "AWS_CONFIG_FILE", ".aws/config"),
    )
    for path in files:
        if path.is_file() and {profile, f"profile {profile}"} & _ini_sections(path, hint):
            return f"profile {profile}"
    raise _Missing(f"no credentials: neither AWS_ACCESS_KEY_ID nor a profile '{profile}' in {files[0]}", hint)


def _gcp(around: Surroundings) -> str:
    hint = "gcloud auth application-default login"
    config = around.env.get("CLOUDSDK_CONFIG") or ".config/gcloud"
    path = _file(around, "GOOGLE_APPLICATION_CREDENTIALS", f"{config}/application_default_credentials.json")
    found = _json(path, hint)
    who = found.get("client_email") or found.get("account") or found.get("type")
    project = around.env.get("GOOGLE_CLOUD_PROJECT") or found.get("project_id") or found.get("quota_project_id")
    if not who:
        raise _Missing(f"{path} holds no credentials", hint)
    return f"{who} [project {project}]" if project else str(who)


def _azure(around: Surroundings) -> str:
    hint = "az login"
    keys = ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET")
    given = [key for key in keys if around.env.get(key)]
    if len(given) == len(keys):
        return f"client {around.env['AZURE_CLIENT_ID']}"
    if given:
        missing = ", ".join(key for key in keys if key not in given)
        raise _Missing(f"{given[0]} is set, but not {missing}", f"export {missing.replace(',', '')}")
    path = _file(around, "", f"{around.env.get('AZURE_CONFIG_DIR') or '.azure'}/azureProfile.json")
    listed = _json(path, hint).get("subscriptions")
    subscriptions = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    if not subscriptions:
        raise _Missing(f"{path} names no subscription", hint)
    mine = next((one for one in subscriptions if one.get("isDefault")), subscriptions[0])
    return f"subscription {mine.get('name') or mine.get('id')}"


def _kubernetes(around: Surroundings) -> str:
    hint = "kubectl config use-context NAME"
    named = around.env.get("KUBECONFIG", "")
    paths = [Path(part) for part in named.split(":") if part] or [around.home / ".kube/config"]
    found = [path for path in paths if path.is_file()]
    if not found:
        raise _Missing(f"there is no {paths[0]}", "export KUBECONFIG=PATH, the file that your cluster's tool wrote")
    for path in found:
        if match := re.search(r"^current-context:[ \t]*[\"']?([^\s\"']+)", _text(path, hint), re.MULTILINE):
            return f"context {match[1]}"
    raise _Missing(f"{found[0]} has no current context", hint)


def _lambda(around: Surroundings) -> str:
    hint = "mkdir -p ~/.lambda_cloud && echo 'api_key = KEY' > ~/.lambda_cloud/lambda_keys"
    if around.env.get("LAMBDA_API_KEY"):
        return "the key in LAMBDA_API_KEY"
    path = around.home / ".lambda_cloud/lambda_keys"
    if not re.search(r"^\s*api_key\s*=\s*\S", _text(path, hint), re.MULTILINE):
        raise _Missing(f"{path} has no line `api_key = KEY`", hint)
    return f"the key in {path}"


def _runpod(around: Surroundings) -> str:
    hint = "export RUNPOD_API_KEY=KEY"
    if around.env.get("RUNPOD_API_KEY"):
        return "the key in RUNPOD_API_KEY"
    path = around.home / ".runpod/config.toml"
    try:
        found = tomllib.loads(_text(path, hint))
    except tomllib.TOMLDecodeError as error:
        raise _Missing(f"{path} is not TOML: {error}", hint) from error
    profiles = [found, *(part for part in found.values() if isinstance(part, dict))]
    if not any(part.get("api_key") or part.get("apikey") for part in profiles):
        raise _Missing(f"{path} has no `api_key`", hint)
    return f"the key in {path}"


def _ssh(around: Surroundings) -> str:
    if shutil.which("ssh", path=around.env.get("PATH", "")) is None:
        raise _Missing("ssh is not on the PATH", "install OpenSSH's client")
    return ""


def _here(around: Surroundings) -> str:
    return ""


def _file(around: Surroundings, variable: str, otherwise: str) -> Path:
    """The file that a variable names, or the usual one below the home directory."""
    named = around.env.get(variable) or otherwise
    return around.home / named.removeprefix("~/")  # an absolute path stays as it is


def _text(path: Path, hint: str) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise _Missing(f"there is no {path}", hint) from error
    except OSError as error:
        raise _Missing(f"{path} cannot be read: {error.strerror or error}", hint) from error


def _json(path: Path, hint: str) -> dict[str, object]:
    try:
        found: object = json.loads(_text(path, hint).removeprefix("\ufeff"))  # `az` writes the mark
    except ValueError as error:
        raise _Missing(f"{path} is not JSON: {error}", hint) from error
    if not isinstance(found, dict):
        raise _Missing(f"{path} holds no JSON object", hint)
    return found


def _ini_sections(path: Path, hint: str) -> set[str]:
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(_text(path, hint))
    except configparser.Error as error:
        raise _Missing(f"{path} is not an INI file: {str(error).splitlines()[0]}", hint) from error
    return set(parser.sections())


CLOUDS: Mapping[str, Cloud] = {
    cloud.name: cloud
    for cloud in (
        Cloud("local", "Local", _here),
        Cloud("ssh", "SSH", _ssh),
        Cloud("kubernetes", "Kubernetes", _kubernetes, "kubernetes", "kubernetes"),
        Cloud("aws", "AWS", _aws, "aws", "boto3"),
        Cloud("gcp", "GCP", _gcp, "gcp", "googleapiclient"),
        Cloud("azure", "Azure", _azure, "azure", "azure.identity"),
        Cloud("lambda", "Lambda", _lambda),
        Cloud("runpod", "RunPod", _runpod),
    )
}
"""Every known cloud by its name, in the order in which they are shown."""

_NO_ADAPTER = dict.fromkeys(("ssh", "kubernetes"), "this version cannot launch replicas there yet")
"""What is said in place of NO_ADAPTER where machines are the user's own, and there are no prices."""
