"""The way to Azure: whose subscription, with which credentials, through which clients, and what refusals mean.

Knows azure-identity and the management SDKs, which are optional extras and imported only when a call is made. It must
not know what machines are made of, nor what runs on them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from subprocess import TimeoutExpired
from typing import TYPE_CHECKING, TypeVar

from skyserve.errors import (
    CapacityUnavailable,
    CredentialsRejected,
    OrderRejected,
    ProviderError,
    ProviderUnavailable,
    QuotaExceeded,
    Throttled,
)
from skyserve.model.offering import Offering
from skyserve.providers.azure import words as words
from skyserve.providers.base import NotConfigured

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from azure.core.exceptions import AzureError, HttpResponseError
    from azure.core.pipeline.policies import SansIOHTTPPolicy
    from azure.core.rest import HttpRequest as Request
    from azure.core.rest import HttpResponse as Response
    from azure.mgmt.compute import ComputeManagementClient
    from azure.mgmt.core import ARMPipelineClient
    from azure.mgmt.network import NetworkManagementClient

    Authentication = SansIOHTTPPolicy[Request, Response]
    _Made = tuple[ComputeManagementClient, NetworkManagementClient, ARMPipelineClient[Request, Response]]

C = TypeVar("C")

TITLE = "Azure"
ENDPOINT = "https://management.azure.com"

_MODULES = ("azure.identity", "azure.mgmt.compute", "azure.mgmt.network")
_SECRET_KEYS = ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET")
_OTHER_MEANS = ("AZURE_FEDERATED_TOKEN_FILE", "AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_TOKEN_CREDENTIALS")
LOGIN_HINT = "az login"
_GROUPS_API = "2021-04-01"
_SUBSCRIPTIONS_API = "2022-12-01"
_CONNECT_S = 5.0
_READ_S = 15.0
_TOKEN_S = 15
_POLL_S = 2  # between two looks at an operation, where Azure does not say
_AGENT = "skyserve"
_THROTTLED_S = 10.0
_LASTING_S = 1800.0

_NO_CAPACITY = frozenset(
    {
        "AllocationFailed",
        "OverconstrainedAllocationRequest",
        "OverconstrainedZonalAllocationRequest",
        "SpotMaxPriceExceeded",
        "SpotPriceGreaterThanProvidedMaxPrice",
        "ZonalAllocationFailed",
    }
)
_NOT_SOLD_HERE = frozenset(
    {
        "AzureSpotFeatureNotEnabledForSubscription",
        "AzureSpotIsNotSupportedForThisVMSize",
        "InvalidAvailabilityZone",
        "LocationNotAvailableForResourceType",
        "LocationNotSupportAvailabilityZones",
        "NotAvailableForSubscription",
        "SkuNotAvailable",
        "VMSizeNotSupported",
    }
)
_QUOTA = frozenset({"PublicIPCountLimitReached", "QuotaExceeded", "ResourceQuotaExceeded", "SubscriptionQuotaReached"})
_WHOLE_REGION = ("LowPriorityCores", "Low Priority", "Spot Cores", "Total Regional", "PublicIP", "Public IP")
_ACCOUNT = frozenset(
    {
        "AuthorizationFailed",
        "ExpiredAuthenticationToken",
        "InvalidAuthenticationToken",
        "InvalidSubscriptionId",
        "LinkedAuthorizationFailed",
        "MissingSubscriptionRegistration",
        "ReadOnlyDisabledSubscription",
        "SubscriptionNotFound",
    }
)
_THROTTLED = frozenset({"OperationNotAllowedDueToThrottling", "SubscriptionRequestsThrottled", "TooManyRequests"})
_LATER = frozenset({"InvalidResourceReference", "RetryableError"})  # called bad requests, and pass by themselves
_WRONG = frozenset(
    {
        "GalleryImageNotFound",
        "ImageNotFound",
        "MarketplacePurchaseEligibilityFailed",
        "PlatformImageNotFound",
        "PropertyChangeNotAllowed",
        "ResourcePurchaseValidationFailed",
        "VMMarketplaceInvalidInput",
    }
)
_LOGIN_AGAIN_HINT = "run `az login` again, or renew the client's secret"
_ROLE_HINT = "give this identity the role in docs/howto/azure.md, and register Microsoft.Compute and Microsoft.Network"


@dataclass(frozen=True, slots=True)
class Account:
    """Who pays, and how we prove that we may. `who` is what people call it, and never a secret.

    `service_principal` is (tenant, client, secret). Without it, a login with `az` is used, or, with `other_means`,
    whatever azure-identity finds by itself.
    """

    subscription: str
    who: str
    service_principal: tuple[str, str, str] | None = field(default=None, repr=False)
    other_means: bool = False


def installed(module: str) -> bool:
    """Whether a module could be imported; it is not run for that, but the packages around it are."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def account(env: Mapping[str, str], home: Path, importable: Callable[[str], bool] = installed) -> Account:
    """The account that the environment or a login with `az` points to, found without a network.

    Raises NotConfigured where the SDK, the credentials or the subscription are missing.
    """
    for module in _MODULES:
        if not importable(module):
            reason = f"its SDK is not installed: there is no Python module {module}"
            raise NotConfigured(TITLE, reason, "pip install 'skyserve[azure]'")
    other_means = any(env.get(key) for key in _OTHER_MEANS)
    given = [key for key in _SECRET_KEYS if env.get(key)]
    missing = [key for key in _SECRET_KEYS if key not in given]
    if given and missing and not other_means:
        raise NotConfigured(TITLE, f"{given[0]} is set, but not {', '.join(missing)}", f"export {' '.join(missing)}")
    named, client = env.get("AZURE_SUBSCRIPTION_ID"), env.get("AZURE_CLIENT_ID")
    subscription, name = (named, named) if named else _default_subscription(env, home)
    principal = None
    if given and not other_means:
        principal = (env["AZURE_TENANT_ID"], env["AZURE_CLIENT_ID"], env["AZURE_CLIENT_SECRET"])
    return Account(subscription, f"client {client}" if client else f"subscription {name}", principal, other_means)


def _default_subscription(env: Mapping[str, str], home: Path) -> tuple[str, str]:
    """Id and name of the subscription that `az` would use."""
    path = home / (env.get("AZURE_CONFIG_DIR") or ".azure").removeprefix("~/") / "azureProfile.json"
    if not path.is_file():
        by_other_means = any(env.get(key) for key in (*_SECRET_KEYS, *_OTHER_MEANS))
        hint = "export AZURE_SUBSCRIPTION_ID" if by_other_means else LOGIN_HINT
        raise NotConfigured(TITLE, f"AZURE_SUBSCRIPTION_ID is not set, and there is no {path}", hint)
    try:
        found: object = json.loads(path.read_text(encoding="utf-8-sig"))  # `az` writes the mark
    except OSError as error:
        raise NotConfigured(TITLE, f"{path} cannot be read: {error.strerror or error}", LOGIN_HINT) from error
    except ValueError as error:
        raise NotConfigured(TITLE, f"{path} is not JSON: {error}", LOGIN_HINT) from error
    known = [one for one in words.items(found, "subscriptions") if words.text(one, "id")]
    if not known:
        raise NotConfigured(TITLE, f"{path} names no subscription", LOGIN_HINT)
    mine = next((one for one in known if words.part(one, "isDefault") is True), known[0])
    return words.text(mine, "id"), words.text(mine, "name") or words.text(mine, "id")


class Clients:
    """The SDK's clients of one subscription, made at the first call. Calls block: keep them off the event loop.

    `authentication` replaces the login, for a server of one's own.
    """

    def __init__(
        self, account: Account, endpoint: str = ENDPOINT, authentication: Authentication | None = None
    ) -> None:
        self._account = account
        self._endpoint = endpoint
        self._authentication = authentication
        self._making = threading.Lock()
        self._made: _Made | None = None

    @property
    def compute(self) -> ComputeManagementClient:
        """Machines."""
        return self._all()[0]

    @property
    def network(self) -> NetworkManagementClient:
        """Networks, firewalls, addresses."""
        return self._all()[1]

    def subscription(self) -> object:
        """The subscription's own description."""
        return self._send("GET", f"/subscriptions/{self._account.subscription}", _SUBSCRIPTIONS_API)

    def put_group(self, path: str, body: Mapping[str, object]) -> None:
        """Make a resource group, if it is not there yet."""
        self._send("PUT", path, _GROUPS_API, body)

    def delete_group(self, path: str) -> None:
        """Delete a resource group with all that is in it; returns on acceptance. Fine for one that is gone."""
        from azure.core.exceptions import ResourceNotFoundError

        try:
            self._send("DELETE", path, _GROUPS_API)
        except ResourceNotFoundError:
            return

    def groups(self, tag: str, value: str) -> list[object]:
        """All resource groups with a tag."""
        quoted = value.replace("'", "''")
        path = f"/subscriptions/{self._account.subscription}/resourcegroups"
        answer = self._send("GET", path, _GROUPS_API, filtered=f"tagName eq '{tag}' and tagValue eq '{quoted}'")
        found = [*words.items(answer, "value")]
        while following := words.text(answer, "nextLink"):
            answer = self._send("GET", following)
            found += words.items(answer, "value")
        return found

    def _send(
        self, method: str, path: str, api: str = "", body: Mapping[str, object] | None = None, *, filtered: str = ""
    ) -> object:
        from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
        from azure.core.rest import HttpRequest
        from azure.mgmt.core.exceptions import ARMErrorFormat

        parameters = {"api-version": api} if api else {}
        if filtered:
            parameters["$filter"] = filtered
        url = path if path.startswith("http") else f"{self._endpoint}{path}"
        request = HttpRequest(method, url, params=parameters, json=body)
        with self._all()[2].send_request(request) as answer:
            if answer.status_code >= 400:
                failed = ResourceNotFoundError if answer.status_code == 404 else HttpResponseError
                raise failed(response=answer, error_format=ARMErrorFormat)
            found: object = answer.json() if answer.content else None
        return found

    def _all(self) -> _Made:
        with self._making:
            if self._made is None:
                self._made = self._make()
            return self._made

    def _make(self) -> _Made:
        from azure.core.pipeline.policies import HeadersPolicy, RetryPolicy, UserAgentPolicy
        from azure.mgmt.compute import ComputeManagementClient
        from azure.mgmt.core import ARMPipelineClient
        from azure.mgmt.core.policies import ARMChallengeAuthenticationPolicy
        from azure.mgmt.network import NetworkManagementClient

        credential = _credential(self._account)
        login = self._authentication or ARMChallengeAuthenticationPolicy(credential, f"{ENDPOINT}/.default")
        # A server that says "later" is heard by the caller, who has other places to ask: only connections are retried.
        retry: RetryPolicy[Request, Response]
        retry = RetryPolicy(retry_total=2, retry_connect=2, retry_read=0, retry_status=0)
        patience = {"connection_timeout": _CONNECT_S, "read_timeout": _READ_S}

        def client(kind: Callable[..., C]) -> C:
            return kind(
                credential,
                self._account.subscription,
                self._endpoint,
                authentication_policy=login,
                retry_policy=retry,
                user_agent=_AGENT,
                polling_interval=_POLL_S,
                **patience,
            )

        plain: ARMPipelineClient[Request, Response] = ARMPipelineClient(
            self._endpoint, policies=[HeadersPolicy(), UserAgentPolicy(_AGENT), retry, login], **patience
        )
        return client(ComputeManagementClient), client(NetworkManagementClient), plain


def _credential(account: Account) -> TokenCredential:
    from azure.identity import AzureCliCredential, ClientSecretCredential, DefaultAzureCredential

    if account.service_principal is not None:
        return ClientSecretCredential(*account.service_principal)
    if account.other_means:
        return DefaultAzureCredential()
    return AzureCliCredential(process_timeout=_TOKEN_S)


@contextmanager
def in_our_words(offering: Offering | None = None) -> Iterator[None]:
    """Turns the SDK's errors into those of the contract. `offering` is what was asked for, where something was."""
    from azure.core.exceptions import AzureError

    try:
        yield
    except AzureError as error:
        raise meaning(error, offering) from error


def meaning(error: AzureError, offering: Offering | None = None) -> ProviderError:
    """What an error of the SDK means for us."""
    from azure.core.exceptions import ClientAuthenticationError, HttpResponseError

    said = _said(error)
    if not isinstance(error, HttpResponseError) or _is_silence(error):
        return ProviderUnavailable(f"Azure did not answer: {said}")
    status, code = error.status_code or 0, _code(error)
    if status == 429 or code in _THROTTLED:
        return Throttled(f"Azure asks for fewer calls ({code or status})", retry_after_s=_retry_after_s(error))
    if isinstance(error, ClientAuthenticationError) or status == 401:
        return CredentialsRejected(f"Azure does not accept our credentials: {said}", hint=_LOGIN_AGAIN_HINT)
    refusal = _pool_refusal(code, said) if offering is None else _place_refusal(code, said, offering)
    if refusal is not None:
        return refusal
    if code in _ACCOUNT or status == 403:
        return CredentialsRejected(f"Azure refuses this identity or subscription: {said}", hint=_ROLE_HINT)
    if code in _WRONG or (status == 400 and code not in _LATER):
        return OrderRejected(f"Azure refuses the order ({code or status}): {said}")
    return ProviderUnavailable(f"Azure could not do it now ({code or status}): {said}")


def _is_silence(error: HttpResponseError) -> bool:
    """Whether the login was not refused, but not answered. The SDK makes no difference between the two."""
    from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError, ServiceResponseError

    if not isinstance(error, ClientAuthenticationError):
        return False
    return isinstance(error.__cause__, (ServiceRequestError, ServiceResponseError, TimeoutExpired))


def _place_refusal(code: str, said: str, offering: Offering) -> ProviderError | None:
    """A refusal that holds for a place, or None. Without more it holds for the pool that was asked."""
    region = f"{offering.location.cloud}/{offering.location.region}"
    size = offering.instance_type
    if code in _NO_CAPACITY:
        return CapacityUnavailable(f"Azure has no capacity for {size} in {offering.location}: {code}: {said}")
    if code == "RequestDisallowedByPolicy":
        hint = "a policy of the subscription forbids it: exclude the region with `infra`, or have the policy changed"
        return QuotaExceeded(said, hint=hint, location=region)
    if _is_quota(code, said):
        hint = f"ask for more in the portal: Quotas, Compute, {offering.location.region}"
        widely = any(scope in f"{code} {said}" for scope in _WHOLE_REGION)
        # A quota of a family of sizes has no name that its sizes share: it holds for the size that was asked.
        return QuotaExceeded(said, hint=hint, location=region, instance_types=None if widely else size)
    if code in _NOT_SOLD_HERE or _is_about_the_size(code, said):
        return CapacityUnavailable(
            f"Azure does not give {size} in {offering.location}: {code}: {said}",
            location=str(offering.location),
            instance_types=size,
            retry_after_s=_LASTING_S,
        )
    return None


def _pool_refusal(code: str, said: str) -> ProviderError | None:
    """A refusal to let a machine go on that was there before, or None."""
    if code in _NO_CAPACITY or code == "SkuNotAvailable":
        return CapacityUnavailable(f"Azure has no capacity for the machine now: {said}")
    return QuotaExceeded(said) if _is_quota(code, said) else None


def _is_quota(code: str, said: str) -> bool:
    return code in _QUOTA or (code == "OperationNotAllowed" and "quota" in said.lower())


def _is_about_the_size(code: str, said: str) -> bool:
    """Azure calls a size that a region lacks, or an image that a size cannot boot, a bad request as well."""
    general = ("BadRequest", "InvalidParameter", "OperationNotAllowed")
    return code in general and ("VM size" in said or "Hypervisor Generation" in said)


def _said(error: AzureError) -> str:
    """Azure's own sentence, without what the SDK adds."""
    words = getattr(getattr(error, "error", None), "message", None) or error.message
    return str(words).strip().partition("\n")[0].strip() or type(error).__name__


def _code(error: HttpResponseError) -> str:
    code = getattr(error.error, "code", None)
    return code if isinstance(code, str) else ""


def _retry_after_s(error: HttpResponseError) -> float:
    headers: Mapping[str, str] = getattr(error.response, "headers", {})
    asked = headers.get("Retry-After", "")
    return float(asked) if asked.isdecimal() else _THROTTLED_S
