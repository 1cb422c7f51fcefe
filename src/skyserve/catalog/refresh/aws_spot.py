"""Spot machines on AWS: how often they are taken back (public), and what they cost now (for accounts only).

Knows the two answers' shapes. boto3 is an optional extra and is loaded only here, when there is access to try it with.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from skyserve.catalog.refresh.answer import Answer, Json
from skyserve.catalog.refresh.credentials import AwsAccess

_HIGHEST_BAND = 4


@dataclass(frozen=True, slots=True)
class Advice:
    """`bands[region][instance type]`: the interruption band of spot machines, as in `Row`."""

    bands: dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True)
class SpotPrice:
    """Dollars an hour now. Zone names are those of the account that asked."""

    instance_type: str
    zone: str
    price_per_hour: float


@dataclass(frozen=True, slots=True)
class SpotRegion:
    """Spot prices of one region."""

    prices: tuple[SpotPrice, ...]


class Ec2Client(Protocol):
    """The one call that is needed of boto3's EC2 client."""

    def describe_spot_price_history(self, **request: object) -> Json:
        """One page; `NextToken` leads to the next."""
        ...


class SpotRefusedError(Exception):
    """AWS does not answer this account there; the text is AWS's error code."""


ClientFactory = Callable[[str], Ec2Client]
"""The client of a region. It, and its call, raise SpotRefusedError and nothing else."""


def read_advice(answer: Answer) -> Advice:
    """The Spot Instance Advisor's data. Raises CatalogError."""
    bands: dict[str, dict[str, int]] = {}
    for region, systems in answer["spot_advisor"].members():
        if "Linux" not in systems:
            continue
        found = bands.setdefault(region, {})
        for instance_type, advice in systems["Linux"].members():
            band = int(advice["r"].number())
            if 0 <= band <= _HIGHEST_BAND:
                found[instance_type] = band
    return Advice(bands)


async def read_spot_prices(client: Ec2Client, now: float) -> SpotRegion:
    """The current price of every instance type in every zone of the client's region. Raises SpotRefusedError."""
    found: dict[tuple[str, str], SpotPrice] = {}
    token = ""
    while True:
        request: dict[str, object] = {
            "ProductDescriptions": ["Linux/UNIX"],
            "StartTime": datetime.fromtimestamp(now, UTC),  # a history that begins now holds the current prices
            "MaxResults": 1000,
        }
        if token:
            request["NextToken"] = token
        told = await asyncio.to_thread(client.describe_spot_price_history, **request)
        page = Answer(told, "DescribeSpotPriceHistory")
        for entry in page["SpotPriceHistory"].elements():
            key = (entry["InstanceType"].text(), entry["AvailabilityZone"].text())
            found.setdefault(key, SpotPrice(*key, entry["SpotPrice"].number()))  # the newest comes first
        token = page["NextToken"].text_or("")
        if not token:
            return SpotRegion(tuple(found[key] for key in sorted(found)))


def boto_clients(access: AwsAccess) -> ClientFactory | None:
    """Clients made by boto3, or None where it is not installed."""
    try:
        boto3 = importlib.import_module("boto3")
        exceptions = importlib.import_module("botocore.exceptions")
    except ImportError:
        return None
    failures: tuple[type[Exception], ...] = (exceptions.BotoCoreError, exceptions.ClientError)

    def make(region: str) -> Ec2Client:
        try:
            session = boto3.session.Session(
                aws_access_key_id=access.access_key_id,
                aws_secret_access_key=access.secret_access_key,
                aws_session_token=access.session_token,
                profile_name=access.profile,
                region_name=region,
            )
            return _Translated(session.client("ec2"), failures)
        except failures as error:
            raise SpotRefusedError(_code(error)) from error

    return make


class _Translated:
    """A boto3 client whose many errors are one."""

    def __init__(self, client: Ec2Client, failures: tuple[type[Exception], ...]) -> None:
        self._client = client
        self._failures = failures

    def describe_spot_price_history(self, **request: object) -> Json:
        try:
            return self._client.describe_spot_price_history(**request)
        except self._failures as error:
            raise SpotRefusedError(_code(error)) from error


def _code(error: Exception) -> str:
    """AWS's code where there is one. The error's own text may hold an access key id."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return Answer(response, "error")["Error"]["Code"].text_or(type(error).__name__)
    return type(error).__name__
