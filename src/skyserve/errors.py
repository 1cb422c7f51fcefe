"""Every error a person or a caller can meet, in one tree.

SkyServeError                     code, message, hint, exit_code
├── UsageError                    the command line asks for something that cannot be             exit 2
├── SpecError                     the Service YAML is wrong: file:line:column, caret, hint       exit 2
├── ServiceExists                 the name is taken                                              exit 1
├── ServiceNotFound               no service of that name                                        exit 1
├── ServiceNotReady               waited for, and it failed or took too long                     exit 1
├── Infeasible                    nothing here can run what was asked                            exit 1
├── CatalogError                  a file of instance prices is damaged or not one                exit 1
├── Cancelled                     the user said no, or there was nobody to ask                   exit 2
├── ControllerUnavailable         the controller cannot be reached or started                    exit 1
├── Unauthorized                  the control API does not know this token                       exit 4
├── StoreError
│   ├── StoreUnavailable          the database cannot be read or written (disk full, locked)     exit 1
│   ├── Conflict                  someone else wrote first: observe again                        exit 1
│   └── LeaseLost                 another controller holds this service                          exit 1
└── ProviderError                 one class per *reaction* of the controller
    ├── PlaceRefused              this place, not now; says how far the refusal reaches
    │   ├── CapacityUnavailable   cool that place, take the next offering
    │   └── QuotaExceeded         skip it until the quota changes, tell the user
    ├── Throttled                 wait retry_after_s
    ├── ProviderUnavailable       silence: change nothing
    ├── CredentialsRejected       drop the provider, point to its credentials
    └── OrderRejected             stop this version: the order itself is wrong

`code` is stable and documented (docs/reference/errors.md); `message` says what failed and why; `hint` says what to do.
"""

from __future__ import annotations

from typing import ClassVar


class SkyServeError(Exception):
    """Root of everything SkyServe raises on purpose."""

    code: ClassVar[str] = "ERROR"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(SkyServeError):
    """The command line asks for something that cannot be."""

    code = "USAGE"
    exit_code = 2


class SpecError(SkyServeError):
    """The Service YAML is wrong; `where` is `file:line:column`, `excerpt` the line with a caret under the culprit."""

    code = "SPEC"
    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None, where: str | None = None, excerpt: str = "") -> None:
        super().__init__(message, hint=hint)
        self.where = where
        self.excerpt = excerpt


class ServiceExists(SkyServeError):
    """A service of that name is already there."""

    code = "SERVICE_EXISTS"


class ServiceNotFound(SkyServeError):
    """No service of that name."""

    code = "SERVICE_NOT_FOUND"


class ServiceNotReady(SkyServeError):
    """A service that was waited for failed, or did not become ready in time."""

    code = "SERVICE_NOT_READY"


class Infeasible(SkyServeError):
    """No enabled infrastructure can ever run what the Service YAML asks for."""

    code = "INFEASIBLE"


class CatalogError(SkyServeError):
    """A file of instance prices is damaged, incomplete, or not such a file; none of it was used."""

    code = "CATALOG"


class Cancelled(SkyServeError):
    """The user said no, or a question could not be asked."""

    code = "CANCELLED"
    exit_code = 2


class ControllerUnavailable(SkyServeError):
    """The controller cannot be reached, or did not start."""

    code = "CONTROLLER_UNAVAILABLE"


class Unauthorized(SkyServeError):
    """The control API does not accept the token that was sent."""

    code = "UNAUTHORIZED"
    exit_code = 4


class StoreError(SkyServeError):
    """Root of what can go wrong with the memory."""

    code = "STORE"


class StoreUnavailable(StoreError):
    """The database cannot be read or written now: disk full, locked, connection lost."""

    code = "STORE_UNAVAILABLE"


class Conflict(StoreError):
    """The state was changed by someone else since it was observed; observe again."""

    code = "CONFLICT"


class LeaseLost(StoreError):
    """Another controller holds the lease of this service."""

    code = "LEASE_LOST"


class ProviderError(SkyServeError):
    """Root of what a provider may answer; subclasses are named after the controller's reaction."""

    code = "PROVIDER"


class PlaceRefused(ProviderError):
    """Root of refusals that hold for a place.

    Without more, the capacity pool that was asked is meant. `location` (`cloud/region` or `cloud/region/zone`) widens
    that, `instance_types` narrows it again: an exact type, or a family as in `p5*`. `retry_after_s` is how soon the
    first retry makes sense, where the provider knows.
    """

    code = "PLACE_REFUSED"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        location: str | None = None,
        instance_types: str | None = None,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message, hint=hint)
        self.location = location
        self.instance_types = instance_types
        self.retry_after_s = retry_after_s


class CapacityUnavailable(PlaceRefused):
    """No capacity there now: cool the place down and take the next offering."""

    code = "CAPACITY_UNAVAILABLE"


class QuotaExceeded(PlaceRefused):
    """A quota forbids it: skip until the quota changes, and tell the user."""

    code = "QUOTA_EXCEEDED"


class Throttled(ProviderError):
    """Too many calls: wait `retry_after_s` seconds."""

    code = "THROTTLED"

    def __init__(self, message: str, *, retry_after_s: float, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class ProviderUnavailable(ProviderError):
    """The provider did not answer; nothing is known, so nothing changes."""

    code = "PROVIDER_UNAVAILABLE"


class CredentialsRejected(ProviderError):
    """The provider does not accept our credentials."""

    code = "CREDENTIALS_REJECTED"


class OrderRejected(ProviderError):
    """The order itself is wrong (ours or the user's doing): the same order will never succeed."""

    code = "ORDER_REJECTED"
