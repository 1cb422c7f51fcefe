"""A fake Azure Resource Manager over plain HTTP: groups, networks, firewalls and machines, on a `CloudCore`.

Bodies are checked against the models of Azure's own SDK (`azure_models`). What those cannot say is checked by hand:
what belongs together, what must exist, what must not change. Operations are accepted first and end later, with their
errors inside.

Detail of a fault: `Code: message` puts another code into the answer.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from azure.core.pipeline import PipelineRequest
from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.mgmt.compute import models as compute_models
from azure.mgmt.network import models as network_models
from tests.bed.azure_models import problems
from tests.bed.core import CloudCore, Fault, Machine, OutOfCapacity, OverQuota, WrongState

from skyserve.clock import Clock, SystemClock
from skyserve.config import Config
from skyserve.providers.azure import AzureCloud
from skyserve.providers.azure.api import Account, Clients
from skyserve.providers.identity import installation

SUBSCRIPTION = "0b1f6471-1bf0-4dda-aec3-cb9272f09590"
TOKEN = "a-token-of-the-test-bed"
PAGE = 3
"""Things on one page of a list: few, so that there are several pages."""

_HANG_S = 20.0
_POLL_MS = "20"
_NETWORK_MODELS = {
    "virtualnetworks": network_models.VirtualNetwork,
    "networksecuritygroups": network_models.NetworkSecurityGroup,
}
_BAD_TAG = re.compile(r"[<>%&\\?/]")

Body = dict[str, Any]


class Answer(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})

    @property
    def body(self) -> Body:
        return {"error": {"code": self.code, "message": self.message}}


class Bearer(SansIOHTTPPolicy[Any, Any]):
    """Sends a token without a login, and over plain HTTP."""

    def __init__(self, token: str = TOKEN) -> None:
        self.token = token

    def on_request(self, request: PipelineRequest[Any]) -> None:
        request.http_request.headers["Authorization"] = f"Bearer {self.token}"


def _check_body(model: Any, body: object) -> None:
    for problem in problems(model, body, "body"):
        raise Answer(400, "InvalidRequestContent", f"The request content was invalid: {problem}")


def account() -> Account:
    """The account of the fake."""
    return Account(SUBSCRIPTION, "client test")


def adapter(fake: AzureFake, config: Config, clock: Clock | None = None) -> AzureCloud:
    """The adapter, pointed at the fake."""
    clients = Clients(account(), fake.url, Bearer(fake.token))
    return AzureCloud(account(), installation(config), clock or SystemClock(), clients)


# ---- what there is


@dataclass
class Rented:
    """A machine as Azure keeps it: what was ordered, and the core's machine that it became, if it did."""

    id: str
    body: Body
    machine: Machine | None = None
    failure: tuple[str, str] | None = None

    @property
    def key(self) -> str:
        return self.id.lower()


@dataclass
class Operation:
    """Something accepted. It has ended at `until`, and failed when there is an error then."""

    until: float
    error: Callable[[], tuple[str, str] | None] = field(default=lambda: None)


class AzureFake:
    """One subscription. `operation_s` is how long a machine's making takes until Azure says whether it succeeded, and
    `network_s` the same for networks and firewalls. `at_once` lets it refuse for want of capacity in its first answer.
    """

    def __init__(self, core: CloudCore) -> None:
        self.core = core
        self.token = TOKEN
        self.state = "Enabled"
        self.operation_s = 0.0
        self.network_s = 0.0
        self.at_once = False
        self.requests: list[str] = []
        self.groups: dict[str, Body] = {}
        self.things: dict[str, Body] = {}
        self.rented: dict[str, Rented] = {}
        self._operations: dict[str, Operation] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()
        self._server: _Server | None = None
        core.metadata = self._metadata

    def start(self) -> None:
        """Begin to answer."""
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="azure-fake", daemon=True).start()

    def stop(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def __enter__(self) -> AzureFake:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where it answers."""
        if self._server is None:
            raise RuntimeError("not started")
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def machines(self) -> list[Machine]:
        """The core's machines of those that Azure still lists, in the order of their making."""
        with self._lock:
            self._forget_deleted()
            return [one.machine for one in self.rented.values() if one.machine is not None]

    # ---- routes

    def answer(self, verb: str, target: str, headers: Mapping[str, str], body: Body | None) -> tuple[int, Body, Body]:
        """Status, body and headers for one request. Raises Answer."""
        url = urlsplit(target)
        query = dict(parse_qsl(url.query))
        path = unquote(url.path)
        if headers.get("authorization") != f"Bearer {self.token}":
            raise Answer(401, "InvalidAuthenticationToken", "The access token is invalid.")
        if not query.get("api-version"):
            raise Answer(400, "MissingApiVersionParameter", "The api-version query parameter is required.")
        with self._lock:
            self.requests.append(f"{verb} {path}")
            self._forget_deleted()
            for pattern, verbs in _ROUTES:
                match = re.fullmatch(pattern, path, re.IGNORECASE)
                if match and verb in verbs:
                    handle: Callable[..., tuple[int, Body, Body]] = getattr(self, verbs[verb])
                    return handle(match.groupdict(), {**query, **_conditions(headers)}, body or {})
        raise Answer(404, "InvalidResourceType", f"No such thing: {verb} {path}")

    def _subscription(self, at: Body, query: Body, body: Body) -> tuple[int, Body, Body]:
        self._fail("check", "")
        return 200, {"subscriptionId": SUBSCRIPTION, "displayName": "Test bed", "state": self.state}, {}

    def _operation(self, at: Body, query: Body, body: Body) -> tuple[int, Body, Body]:
        self._fail("operation", "")
        operation = self._operations[at["name"]]
        if self.core.now() < operation.until:
            return 200, {"status": "InProgress"}, {"x-ms-retry-after-ms": _POLL_MS}
        error = operation.error()
        if error is None:
            return 200, {"status": "Succeeded"}, {}
        return 200, {"status": "Failed", "error": {"code": error[0], "message": error[1]}}, {}

    def _put_group(self, at: Body, query: Body, body: Body) -> tuple[int, Body, Body]:
        self._fail("group", body["location"])
        _check_tags(body)
        known = self.groups.get(at["group"].lower())
        if known and known["location"] != body["location"]:
            raise Answer(409, "InvalidResourceGroupLocation", "The resource group already exists elsewhere.")
        path = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{at['group']}"
        group = {"id": path, "name": at["group"], "properties": {"provisioningState": "Succeeded"}, **body}
        self.groups[at["group"].lower()] = group
        return (200 if known else 201), group, {}

    def _delete_group(self, at: Body, query: Body, body: Body) -> tuple[int, Body, Body]:
        group = self._group(at)
        self._fail("release", group["location"])
        inside = f"{group['id']}/".lower()
        for one in [one for one in self.rented.values() if one.key.startswith(inside)]:
            self._end(one)
        self.things = {key: thing for key, thing in self.things.items() if not key.startswith(inside)}
        del self.groups[at["group"].lower()]
        return 202, {}, {}

    def _list_groups(self, at: Body, query: Body, body: Body) -> tuple[int, Body, Body]:
        self._fail("list", "")
        wanted = re.fullmatch(r"tagName eq '([^']+)' and tagValue eq '([^']+)'", query["$filter"])
        if wanted is None:
            raise Answer(400, "InvalidFilterInQueryString", "Invalid $filter.")
        return self._page([one for one in self.groups.values() if one["tags"].get(wanted[1]) == wanted[2]], at, query)

    def _put_thing(self, at: Body, query: Body, body: Body) -> tuple[int, Body, Body]:
        _check_body(_NETWORK_MODELS[at["kind"].lower()], body)
        _check_tags(body)
        _check_rules(body)
        region = self._group(at)["location"]
        self._fail("network", region)
        path = self._path(at, "Microsoft.Network", at["kind"])
        thing = json.loads(json.dumps(body)) | {"id": path, "name": at["name"]}
        thing["properties"]["provisioningState"] = "Updating" if self.network_s else "Succeeded"
        self.things[path.lower()] = thing

        def finished() -> None:
            thing["properties"]["provisioningState"] = "Succeeded"

        self._admit_everywhere()
        return (201, thing, self._accept(self.network_s, finished)) if self.network_s else (200, thing, {})

    def _get_thing(self, at: Body, query: Body, body: Body) -> tuple[int, Body, Body]:
        found = self.things.get(self._path(at, "Microsoft.Network", at["kind"]).lower())
        if found is None:
            raise Answer(404, "ResourceNotFound", f"The Resource '{at['name']}' was not found.")
        return 200, found, {}

    def _put_machine(self, at: Body, query: Body, body: Body) -> tuple[int, Body, Body]:
        _check_body(compute_models.VirtualMachine, body)
        _check_tags(body)
        group = self._group(at)
        path = self._path(at, "Microsoft.Compute", "virtualMachines")
        if path.lower() in self.rented:
            if query.get("if-none-match") == "*":
                raise Answer(412, "PreconditionFailed", "The resource exists.")
            raise Answer(409, "PropertyChangeNotAllowed", "Changing property 'osProfile.customData' is not allowed.")
        self._check_order(at, body)
        fault = self._fail("create", group["location"], but=("capacity",))
        one = Rented(path, json.loads(json.dumps(body)))
        zones = body.get("zones")
        place = f"{body['location']}-{zones[0]}" if zones else body["location"]
        try:
            if fault is not None:
                raise OutOfCapacity(fault.detail or "There is no capacity.")
            one.machine = self._rent(one, place)
        except OverQuota as refused:
            message = f"Operation results in exceeding approved Total Regional Cores quota. {refused.detail}"
            raise Answer(409, "OperationNotAllowed", message) from refused
        except OutOfCapacity as refused:
            code, message = _coded(refused.detail, "ZonalAllocationFailed" if zones else "AllocationFailed")
            if self.at_once:
                code, message = _coded(refused.detail, "SkuNotAvailable")
                raise Answer(409, code, message) from refused
            one.failure = (code, message)
        self.rented[one.key] = one
        return 201, self._shown(one), self._accept(self.operation_s, error=lambda: one.failure)

    def _get_machine(self, at: Body, query: Body, body: Body) -> tuple[int, Body, Body]:
        one = self._one(at)
        shown = self._shown(one)
        if query.get("$expand") == "instanceView":
            shown["properties"]["instanceView"] = {"statuses": self._statuses(one)}
        return 200, shown, {}

    def _patch_machine(self, at: Body, query: Body, body: Body) -> tuple[int, Body, Body]:
        _check_body(compute_models.VirtualMachineUpdate, body)
        _check_tags(body)
        one = self._one(at)
        one.body["tags"] = body["tags"]
        return 200, self._shown(one), {}

    def _delete_machine(self, at: Body, query: Body, body: Body) -> tuple[int, Body, Body]:
        group = self._group(at)
        self._fail("delete", group["location"])
        path = self._path(at, "Microsoft.Compute", "virtualMachines").lower()
        if path not in self.rented:
            return 204, {}, {}
        self._end(self.rented[path])
        return 202, {}, self._accept(0.0)

    def _deallocate(self, at: Body, query: Body, body: Body) -> tuple[int, Body, Body]:
        return self._switch(at, "stop", self.core.stop)

    def _start(self, at: Body, query: Body, body: Body) -> tuple[int, Body, Body]:
        return self._switch(at, "start", self.core.start)

    def _switch(self, at: Body, operation: str, switch: Callable[[str], None]) -> tuple[int, Body, Body]:
        one = self._one(at)
        self._fail(operation, self._group(at)["location"])
        if one.machine is None:
            raise Answer(409, "OperationNotAllowed", "The machine was never made.")
        try:
            switch(one.machine.id)
        except OutOfCapacity as refused:
            raise Answer(409, "AllocationFailed", refused.detail) from refused
        except WrongState as refused:
            raise Answer(409, "Conflict", refused.detail) from refused
        return 202, {}, self._accept(0.0)

    def _list_machines(self, at: Body, query: Body, body: Body) -> tuple[int, Body, Body]:
        self._fail("list", "")
        shown = []
        for one in self.rented.values():
            machine = self._shown(one)
            machine["id"] = re.sub(r"(?<=resourceGroups/)[^/]+", lambda group: group[0].upper(), machine["id"])
            if query.get("statusOnly") == "true":
                view = {"instanceView": {"statuses": self._statuses(one)}}
                machine = {"id": machine["id"], "name": machine["name"], "properties": view}
            shown.append(machine)
        return self._page(shown, at, query)

    def _list_interfaces(self, at: Body, query: Body, body: Body) -> tuple[int, Body, Body]:
        self._fail("list", "")
        return self._page([_interface(one) for one in self.rented.values()], at, query)

    def _list_addresses(self, at: Body, query: Body, body: Body) -> tuple[int, Body, Body]:
        self._fail("list", "")
        return self._page([_address(one) for one in self.rented.values()], at, query)

    # ---- parts

    def _fail(self, operation: str, where: str, but: tuple[str, ...] = ()) -> Fault | None:
        """Raise what the next fault wants; those of a kind in `but` are given back."""
        fault = self.core.fault(operation, where)
        if fault is None or fault.kind in but:
            return fault
        if fault.kind == "hang":
            self.core.closing.wait(_HANG_S)
        status, otherwise, message = _FAULTS[fault.kind]
        code, message = _coded(fault.detail or message, otherwise)
        headers = {"Retry-After": str(max(1, round(fault.retry_after_s)))} if status in (429, 503) else {}
        raise Answer(status, code, message, headers)

    def _group(self, at: Body) -> Body:
        group = self.groups.get(at["group"].lower())
        if group is None:
            raise Answer(404, "ResourceGroupNotFound", f"Resource group '{at['group']}' could not be found.")
        return group

    def _one(self, at: Body) -> Rented:
        self._group(at)
        found = self.rented.get(self._path(at, "Microsoft.Compute", "virtualMachines").lower())
        if found is None:
            raise Answer(404, "ResourceNotFound", f"The Resource '{at['name']}' was not found.")
        return found

    def _path(self, at: Body, namespace: str, kind: str) -> str:
        return f"{self._group(at)['id']}/providers/{namespace}/{kind}/{at['name']}"

    def _check_order(self, at: Body, body: Body) -> None:
        """What a model cannot say about a machine."""
        properties = body["properties"]
        spot = properties.get("priority") == "Spot"
        if not spot and ("evictionPolicy" in properties or "billingProfile" in properties):
            raise Answer(400, "InvalidParameter", "evictionPolicy and billingProfile need the priority Spot.")
        system = properties["osProfile"]
        if len(base64.b64decode(system.get("customData", ""), validate=True)) > 65535:
            raise Answer(400, "InvalidParameter", "Custom data is too long.")
        linux = system["linuxConfiguration"]
        if "adminPassword" in system or not linux["disablePasswordAuthentication"]:
            raise Answer(400, "InvalidParameter", "This subscription allows no passwords.")
        if not all(key["keyData"].startswith(("ssh-ed25519 ", "ssh-rsa ")) for key in linux["ssh"]["publicKeys"]):
            raise Answer(
                400, "InvalidParameter", "The value of parameter linuxConfiguration.ssh.publicKeys is invalid."
            )
        if len(at["name"]) > 64 or len(system["computerName"]) > 64:
            raise Answer(400, "InvalidParameter", "The name is too long.")
        interface = _ordered_interface(body)
        needed = [interface["networkSecurityGroup"]["id"]]
        needed += [
            one["properties"]["subnet"]["id"].rpartition("/subnets/")[0] for one in interface["ipConfigurations"]
        ]
        for path in needed:
            if self.things.get(path.lower(), {}).get("location") != body["location"]:
                raise Answer(400, "InvalidResourceReference", f"Resource {path} referenced was not found.")
            if self.things[path.lower()]["properties"]["provisioningState"] != "Succeeded":
                raise Answer(429, "ReferencedResourceNotProvisioned", f"{path} is not in Succeeded state.")

    def _rent(self, one: Rented, place: str) -> Machine:
        properties = one.body["properties"]
        machine = self.core.create(
            token=None,
            zone=place,
            machine_type=properties["hardwareProfile"]["vmSize"],
            spot=properties.get("priority") == "Spot",
            user_data=base64.b64decode(properties["osProfile"].get("customData", "")).decode(),
            name=properties["osProfile"]["computerName"],
            tags=one.body.get("tags"),
        )
        machine.allowed = self._admitted(one)
        return machine

    def _admitted(self, one: Rented) -> set[tuple[int, str]]:
        firewall = self.things.get(_ordered_interface(one.body)["networkSecurityGroup"]["id"].lower())
        rules = firewall["properties"].get("securityRules", []) if firewall else []
        return {
            (int(port), source)
            for rule in (rule["properties"] for rule in rules)
            for port in rule["destinationPortRanges"]
            for source in rule["sourceAddressPrefixes"]
        }

    def _admit_everywhere(self) -> None:
        for one in self.rented.values():
            if one.machine is not None and one.machine.allowed != (allowed := self._admitted(one)):
                one.machine.allowed = allowed

    def _end(self, one: Rented) -> None:
        if one.machine is None or not one.machine.alive or one.machine.id not in self.core.machines:
            del self.rented[one.key]
        else:
            self.core.delete(one.machine.id)
            self._forget_deleted()

    def _forget_deleted(self) -> None:
        """Machines that the user deleted are gone at once; evicted ones stay until then."""
        known = self.core.machines
        for one in list(self.rented.values()):
            if one.machine is not None and (one.machine.id not in known or one.machine.why == "user"):
                del self.rented[one.key]

    def _shown(self, one: Rented) -> Body:
        properties = {key: value for key, value in one.body["properties"].items() if key != "osProfile"}
        properties["networkProfile"] = {"networkInterfaces": [{"id": _interface(one)["id"]}]}
        properties["provisioningState"] = self._provisioning(one)
        return {**one.body, "id": one.id, "name": one.id.rpartition("/")[2], "properties": properties}

    def _provisioning(self, one: Rented) -> str:
        if one.machine is None:
            return "Failed"
        if one.machine.deleting:
            return "Deleting"
        return "Creating" if one.machine.state == "pending" else "Succeeded"

    def _statuses(self, one: Rented) -> list[Body]:
        if one.failure is not None:
            code, message = one.failure
            return [{"code": f"ProvisioningState/failed/{code}", "level": "Error", "message": message}]
        provisioning = {"code": f"ProvisioningState/{self._provisioning(one).lower()}", "level": "Info"}
        state = one.machine.state if one.machine else "terminated"
        return [provisioning, {"code": f"PowerState/{_POWER[state]}", "level": "Info"}]

    def _accept(
        self,
        takes_s: float,
        finished: Callable[[], None] = lambda: None,
        error: Callable[[], tuple[str, str] | None] = lambda: None,
    ) -> Body:
        """The headers that say where to ask for the operation's end."""
        name = f"operation-{next(self._numbers)}"

        def end() -> tuple[str, str] | None:
            finished()
            return error()

        self._operations[name] = Operation(self.core.now() + takes_s, end)
        path = f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Compute/locations/here/operations/{name}"
        return {"Azure-AsyncOperation": f"{self.url}{path}?api-version=2024-07-01", "x-ms-retry-after-ms": _POLL_MS}

    def _page(self, found: list[Body], at: Body, query: Body) -> tuple[int, Body, Body]:
        """One page. The next one begins behind the last id of this one: what comes or goes meanwhile shifts nothing."""
        last = query.get("$skiptoken", "")
        rest = sorted((one for one in found if one["id"].lower() > last), key=lambda one: str(one["id"].lower()))
        page: Body = {"value": rest[:PAGE]}
        if len(rest) > PAGE:
            asked = {key: value for key, value in query.items() if key != "if-none-match"}
            asked["$skiptoken"] = rest[PAGE - 1]["id"].lower()
            words = "&".join(f"{key}={quote(value, safe='')}" for key, value in asked.items())
            page["nextLink"] = f"{self.url}{at['self']}?{words}"
        return 200, page, {}

    def _metadata(self, machine: Machine, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        url = urlsplit(path)
        if url.path != "/metadata/scheduledevents":
            return 404, b"{}"
        if headers.get("metadata", "").lower() != "true" or not dict(parse_qsl(url.query)).get("api-version"):
            return 400, b'{"error": "Bad request. Required metadata header not specified"}'
        events = []
        if machine.reclaim_at is not None and machine.alive:
            event = {
                "EventId": "C7061BAC-AFDC-4513-B24B-AA5F13A16123",
                "EventStatus": "Scheduled",
                "EventType": "Preempt",
                "ResourceType": "VirtualMachine",
                "Resources": [machine.name],
                "NotBefore": format_datetime(datetime.fromtimestamp(machine.reclaim_at, UTC), usegmt=True),
                "Description": "",
                "EventSource": "Platform",
                "DurationInSeconds": -1,
            }
            events.append(event)
        return 200, json.dumps({"DocumentIncarnation": len(events), "Events": events}).encode()


_ANY = r"(?P<self>/subscriptions/" + re.escape(SUBSCRIPTION)
_IN_GROUP = _ANY + r"/resourceGroups/(?P<group>[-\w._()]{1,90})"
_MACHINE = _IN_GROUP + r"/providers/Microsoft\.Compute/virtualMachines/(?P<name>[^/]+)"
_THING = _IN_GROUP + r"/providers/Microsoft\.Network/(?P<kind>virtualNetworks|networkSecurityGroups)/(?P<name>[^/]+)"
_ROUTES: list[tuple[str, dict[str, str]]] = [
    (_ANY + ")", {"GET": "_subscription"}),
    (_ANY + r"/resourcegroups)", {"GET": "_list_groups"}),
    (_ANY + r"/providers/Microsoft\.Compute/locations/[^/]+/operations/(?P<name>[^/]+))", {"GET": "_operation"}),
    (_ANY + r"/providers/Microsoft\.Compute/virtualMachines)", {"GET": "_list_machines"}),
    (_ANY + r"/providers/Microsoft\.Network/networkInterfaces)", {"GET": "_list_interfaces"}),
    (_ANY + r"/providers/Microsoft\.Network/publicIPAddresses)", {"GET": "_list_addresses"}),
    (_IN_GROUP + ")", {"PUT": "_put_group", "DELETE": "_delete_group"}),
    (_THING + ")", {"PUT": "_put_thing", "GET": "_get_thing"}),
    (
        _MACHINE + ")",
        {"PUT": "_put_machine", "GET": "_get_machine", "PATCH": "_patch_machine", "DELETE": "_delete_machine"},
    ),
    (_MACHINE + r"/deallocate)", {"POST": "_deallocate"}),
    (_MACHINE + r"/start)", {"POST": "_start"}),
]
_POWER = {
    "pending": "starting",
    "running": "running",
    "stopping": "deallocating",
    "stopped": "deallocated",
    "terminated": "deallocated",
}
_FAULTS = {
    "throttled": (429, "TooManyRequests", "The request is being throttled."),
    "unavailable": (503, "ServerTimeout", "The request timed out."),
    "credentials": (403, "AuthorizationFailed", "The client does not have authorization to perform the action."),
    "hang": (504, "GatewayTimeout", "The gateway did not receive a response."),
    "capacity": (409, "SkuNotAvailable", "The requested VM size is currently not available."),
    "quota": (
        409,
        "OperationNotAllowed",
        "Operation could not be completed as it results in exceeding approved standardNCADSA100v4Family Cores quota.",
    ),
    "rejected": (400, "InvalidParameter", "The value of a parameter is invalid."),
}


def _coded(detail: str, otherwise: str) -> tuple[str, str]:
    """Code and message of a detail `Code: message`; of another one the code is `otherwise`."""
    match = re.fullmatch(r"([A-Z][A-Za-z]+): (.+)", detail)
    return (match[1], match[2]) if match else (otherwise, detail)


def _conditions(headers: Mapping[str, str]) -> Body:
    return {key: value for key, value in headers.items() if key == "if-none-match"}


def _check_tags(body: Body) -> None:
    tags = body.get("tags") or {}
    if len(tags) > 50 or any(_BAD_TAG.search(name) or len(value) > 256 for name, value in tags.items()):
        raise Answer(400, "InvalidTagNameCharacters", f"Tags are not valid: {tags}")


def _check_rules(body: Body) -> None:
    for rule in body["properties"].get("securityRules", []):
        sources = rule["properties"]["sourceAddressPrefixes"]
        if any(":" in source for source in sources) and not all(":" in source for source in sources):
            raise Answer(400, "SecurityRuleAddressPrefixesFromMultipleIPVersions", "A rule must not mix IP versions.")


def _ordered_interface(body: Body) -> Body:
    found: Body = body["properties"]["networkProfile"]["networkInterfaceConfigurations"][0]["properties"]
    return found


def _inside(one: Rented, kind: str) -> str:
    """The id of what was made along with a machine: Azure adds letters of its own to the name."""
    group, _, name = one.id.partition("/providers/Microsoft.Compute/virtualMachines/")
    return f"{group}/providers/Microsoft.Network/{kind}/{name}-5a8b"


def _interface(one: Rented) -> Body:
    configuration = {"name": "main", "properties": {"publicIPAddress": {"id": _inside(one, "publicIPAddresses")}}}
    properties = {"virtualMachine": {"id": one.id}, "ipConfigurations": [configuration]}
    return {"id": _inside(one, "networkInterfaces"), "location": one.body["location"], "properties": properties}


def _address(one: Rented) -> Body:
    properties = {"ipAddress": one.machine.ip} if one.machine is not None and one.machine.ip else {}
    return {"id": _inside(one, "publicIPAddresses"), "location": one.body["location"], "properties": properties}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, fake: AzureFake) -> None:
        self.fake = fake
        super().__init__(("127.0.0.1", 0), _Request)

    def server_bind(self) -> None:
        """Without the look-up of its own name that HTTPServer does."""
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()


class _Request(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 30.0
    wbufsize = -1  # an answer in two parts waits for the client's acknowledgement of the first
    disable_nagle_algorithm = True

    def _answer(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        more: Mapping[str, str]
        try:
            status, body, more = self.server.fake.answer(
                self.command, self.path, headers, json.loads(data) if data else None
            )
        except Answer as error:
            status, body, more = error.status, error.body, error.headers
        encoded = b"" if status in (202, 204) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**more, "Content-Type": "application/json", "Content-Length": str(len(encoded))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(encoded)

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""
