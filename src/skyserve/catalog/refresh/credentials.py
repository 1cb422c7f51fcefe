"""Keys for the price lists that want one. The caller hands them in; nothing here reads the environment or a
file, and no key shows in a repr."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class AwsAccess:
    """Keys, or the name of a profile in the AWS configuration files. Needed for spot prices only."""

    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    profile: str | None = None


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the user has. None means: not given."""

    aws: AwsAccess | None = None
    gcp_api_key: str | None = field(default=None, repr=False)
    lambda_api_key: str | None = field(default=None, repr=False)
    runpod_api_key: str | None = field(default=None, repr=False)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Credentials:
        """The variables that the clouds' own tools read; empty ones count as not given."""

        def read(name: str) -> str | None:
            return environ.get(name, "").strip() or None

        aws = AwsAccess(
            access_key_id=read("AWS_ACCESS_KEY_ID"),
            secret_access_key=read("AWS_SECRET_ACCESS_KEY"),
            session_token=read("AWS_SESSION_TOKEN"),
            profile=read("AWS_PROFILE"),
        )
        usable = aws.profile or (aws.access_key_id and aws.secret_access_key)
        return cls(
            aws=aws if usable else None,
            gcp_api_key=read("GOOGLE_API_KEY"),
            lambda_api_key=read("LAMBDA_API_KEY"),
            runpod_api_key=read("RUNPOD_API_KEY"),
        )
