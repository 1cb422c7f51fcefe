"""A fake Compute Engine: routes and schemas are Google's own (`gcp_discovery`), machines come from `CloudCore`.

Every request and every answer is checked against the schemas: unknown paths, parameters and fields, wrong types and
missing fields are refused as the real API refuses them. What the schemas cannot say (GPUs do not migrate, spot machines
do not restart) is checked by hand. Failures to find capacity come inside the operation, `operation_s` after it was
accepted.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.bed.core import CloudCore, Fault, Machine, OutOfCapacity, OverQuota, Refused
from tests.bed.gcp_discovery import Body, Route, fields_tree, masked, routes, validator

from skyserve.clock import SystemClock
from skyserve.config import Config
from skyserve.providers.gcp import GcpCloud
from skyserve.providers.gcp.api import Account
from skyserve.providers.identity import installation

PROJECT = "demo-project"
ZONES = ("us-central1-a", "us-central1-b", "us-central1-c", "europe-west4-a", "europe-west4-b")
GPU_SERIES = ("a2", "a3", "a4", "g2", "g4")
HYPERDISK_ONLY = ("c4", "c4a", "c4d", "n4", "a4", "g4", "h4d", "m4", "x4")
_HANG_S = 20.0
_WAIT_S = 5.0

Query = Mapping[str, str]


class Answer(Exception):
    """An answer that is an error. `reason` is the code of the first of its errors."""

    def __init__(self, status: int, reason: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.headers = status, reason, message, dict(headers or {})

    @property
    def body(self) -> Body:
        errors = [{"message": self.message, "domain": "global", "reason": self.reason}]
        return {"error": {"code": self.status, "message": self.message, "errors": errors}}


# ---- the service


@dataclass
class Operation:
    """Something that was accepted. Its error, if any, shows when it is done."""

    name: str
    scope: str
    kind: str
    target: str
    began_at: float
    done_at: float
    error: tuple[str, str, int] | None = None


@dataclass
class Record:
    """What the API keeps of an instance beside the machine itself."""

    body: Body
    labels: dict[str, str]
    started_at: float
    number: int
    revision: int = 1


@dataclass
class GcpFake:
    """Compute Engine on 127.0.0.1, for one project. `url` is what the API's endpoint is set to.

    `operation_s` is how long operations take. `unsold` are patterns of zone/type that are not sold. `page_size` is the
    most instances on a page. `scores` is the obtainability of zone/type; without any, the account gets no advice.
    `flaws` are complaints about the fake's own answers: tests want it empty.
    """

    core: CloudCore
    operation_s: float = 0.0
    page_size: int = 500
    project: str = PROJECT
    zones: tuple[str, ...] = ZONES
    unsold: list[str] = field(default_factory=list)
    networks: set[str] = field(default_factory=lambda: {"default"})
    firewalls: dict[str, Body] = field(default_factory=dict)
    operations: dict[str, Operation] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    calls: list[tuple[str, Body]] = field(default_factory=list)
    flaws: list[str] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    anonymous: bool = False
    login_works: bool = True
    logins: int = 0

    def __post_init__(self) -> None:
        self.core.metadata = self.metadata
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._by_request: dict[tuple[str, str], str] = {}
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> GcpFake:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen on a free port."""
        fake = self

        class Handler(_Handler):
            service = fake

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Stop listening, and let go of requests that hang."""
        self.core.closing.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    @property
    def url(self) -> str:
        """The endpoint, with the API's version."""
        return f"{self.origin}/compute/v1"

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        if self._server is None:
            raise RuntimeError("the fake is not started")
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def asked(self, method: str) -> list[Body]:
        """The bodies of all calls of one method so far, such as `instances.insert`."""
        return [body for name, body in self.calls if name == method]

    def answer(self, verb: str, path: str, query: Query, body: Body) -> Body:
        """What the API says. Raises `Answer` where that is an error."""
        route, found = self._route(verb, path)
        for name in query:
            if name not in route.parameters:
                raise Answer(400, "invalidParameter", f'Invalid JSON payload received. Unknown name "{name}"')
        self._check(route, body)
        self.calls.append((route.id, body))
        if found.get("project") != self.project:
            raise Answer(404, "notFound", f"The resource 'projects/{found.get('project')}' was not found")
        handler = _HANDLERS.get(route.id)
        if handler is None:
            raise Answer(501, "notImplemented", f"the fake does not know {route.id}")
        answer = handler(self, found, query, body)
        for complaint in validator(route.response or "", "").iter_errors(answer):
            self.flaws.append(f"{route.id}: {complaint.json_path}: {complaint.message}")
        return masked(answer, fields_tree(re.findall(r"[^,/()]+|[,/()]", query.get("fields", ""))))

    def _route(self, verb: str, path: str) -> tuple[Route, dict[str, str]]:
        for route in routes():
            match = route.path.fullmatch(path) if route.verb == verb else None
            if match:
                return route, {key: unquote(value) for key, value in match.groupdict().items()}
        raise Answer(404, "notFound", f"no method {verb} {path}")

    def _check(self, route: Route, body: Body) -> None:
        if route.request is None:
            if body:
                raise Answer(400, "badRequest", f"{route.id} takes no body")
            return
        for complaint in validator(route.request, f"compute.{route.id}").iter_errors(body):
            raise Answer(
                400, "invalid", f"Invalid value for field 'resource{complaint.json_path[1:]}': {complaint.message}"
            )

    def trouble(self, operation: str, where: str) -> Fault | None:
        """The next fault that strikes this request, if it strikes inside the operation; others are raised."""
        fault = self.core.fault(operation, where)
        if fault is None or fault.kind in ("capacity", "quota"):
            return fault
        if fault.kind == "hang":
            self.core.closing.wait(_HANG_S)
        raise _said(fault)

    def begin(self, kind: str, scope: str, target: str, error: tuple[str, str, int] | None = None) -> Operation:
        """A new operation, which has the outcome that it will have, and shows it later."""
        with self._lock:
            number = next(self._numbers)
            now = self.core.now()
            name = f"operation-{number}"
            self.operations[name] = Operation(name, scope, kind, target, now, now + self.operation_s, error)
            return self.operations[name]

    def once(self, method: str, query: Query, act: Callable[[], Operation]) -> Body:
        """The operation that `act` begins; the same one again for the same `requestId`."""
        with self._lock:
            key = (method, query.get("requestId", ""))
            if not key[1] or key not in self._by_request:
                self._by_request[key] = act().name
            return self.show(self.operations[self._by_request[key]])

    def show(self, operation: Operation) -> Body:
        """An operation as the API shows it."""
        now = self.core.now()
        half = (operation.began_at + operation.done_at) / 2
        status = "DONE" if now >= operation.done_at else "RUNNING" if now >= half else "PENDING"
        link = f"https://www.googleapis.com/compute/v1/projects/{self.project}/{operation.scope}"
        shown: Body = {
            "kind": "compute#operation",
            "id": operation.name.removeprefix("operation-"),
            "name": operation.name,
            "operationType": operation.kind,
            "status": status,
            "progress": 100 if status == "DONE" else 0,
            "targetLink": f"{link}/{operation.target}",
            "selfLink": f"{link}/operations/{operation.name}",
            "insertTime": stamp(operation.began_at),
        }
        if operation.scope.startswith("zones/"):
            shown["zone"] = link
        if status == "DONE" and operation.error is not None:
            code, message, http = operation.error
            shown |= {"httpErrorStatusCode": http, "httpErrorMessage": "FAILED"}
            shown["error"] = {"errors": [{"code": code, "message": message}]}
        return shown

    def machine(self, zone: str, name: str) -> tuple[Machine, Record]:
        """An instance that exists, which one that was taken back still does."""
        machine = self.core.machines.get(f"{zone}/{name}")
        record = self.records.get(f"{zone}/{name}")
        if machine is None or record is None or self.status(machine, record) is None:
            message = f"The resource 'projects/{self.project}/zones/{zone}/instances/{name}' was not found"
            raise Answer(404, "notFound", message)
        return machine, record

    def status(self, machine: Machine, record: Record) -> str | None:
        """The API's word for where a machine stands; None when it is no more."""
        if machine.state == "terminated":
            stays = machine.why == "spot" and record.body["scheduling"].get("instanceTerminationAction") == "STOP"
            return "TERMINATED" if stays else None
        if machine.state == "running" and machine.reclaim_at is not None:
            return "STOPPING"
        known = {"pending": "STAGING", "running": "RUNNING", "stopping": "STOPPING", "stopped": "TERMINATED"}
        return known[machine.state]

    def metadata(self, machine: Machine, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """The metadata server of one machine."""
        if {key.lower(): value for key, value in headers.items()}.get("metadata-flavor") != "Google":
            return 403, b"Missing Metadata-Flavor:Google header.\n"
        record = self.records[machine.id]
        attributes = {one["key"]: one["value"] for one in record.body.get("metadata", {}).get("items", [])}
        known = {
            "preempted": "TRUE" if machine.reclaim_at is not None else "FALSE",
            "name": record.body["name"],
            "zone": f"projects/1/zones/{machine.zone}",
            **{f"attributes/{key}": value for key, value in attributes.items()},
        }
        value = known.get(urlsplit(path).path.removeprefix("/computeMetadata/v1/instance/"))
        return (404, b"") if value is None else (200, value.encode())

    def enforce(self) -> None:
        """Give every machine the firewall that its network tags bring."""
        for machine in self.core.machines.values():
            if machine.alive and machine.id in self.records:
                tags = set(self.records[machine.id].body.get("tags", {}).get("items", []))
                machine.allowed = frozenset(
                    (int(port), source)
                    for rule in self.firewalls.values()
                    if tags & set(rule.get("targetTags", []))
                    for allowed in rule["allowed"]
                    for port in allowed["ports"]
                    for source in rule.get("sourceRanges") or ["0.0.0.0/0"]
                )


def stamp(at: float) -> str:
    """An instant as the API writes it."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def _said(fault: Fault) -> Answer:
    after = {"Retry-After": f"{fault.retry_after_s:g}"}
    return {
        "throttled": Answer(429, "rateLimitExceeded", fault.detail or "Rate Limit Exceeded", after),
        "credentials": Answer(401, "authError", fault.detail or "Invalid Credentials"),
        "rejected": Answer(400, "invalid", fault.detail or "Invalid value for field 'resource.disks[0]'"),
    }.get(fault.kind, Answer(503, "backendError", fault.detail or "Backend Error"))


# ---- its methods


def _get_project(fake: GcpFake, at: Query, query: Query, body: Body) -> Body:
    fault = fake.trouble("check", "")
    if fault is not None:
        raise Answer(403, "forbidden", fault.detail)
    return {"kind": "compute#project", "name": fake.project, "id": "1"}


def _get_network(fake: GcpFake, at: Query, query: Query, body: Body) -> Body:
    if at["network"] not in fake.networks:
        raise Answer(404, "notFound", f"The resource 'global/networks/{at['network']}' was not found")
    return {"kind": "compute#network", "name": at["network"], "autoCreateSubnetworks": True}


def _get_region(fake: GcpFake, at: Query, query: Query, body: Body) -> Body:
    base = f"https://www.googleapis.com/compute/v1/projects/{fake.project}"
    zones = [f"{base}/zones/{zone}" for zone in fake.zones if zone.rpartition("-")[0] == at["region"]]
    if not zones:
        raise Answer(404, "notFound", f"The resource 'regions/{at['region']}' was not found")
    return {"kind": "compute#region", "name": at["region"], "zones": zones}


def _insert(fake: GcpFake, at: Query, query: Query, body: Body) -> Body:
    zone, name = at["zone"], body["name"]
    if zone not in fake.zones:
        raise Answer(400, "invalid", f"Invalid value for field 'zone': '{zone}'. Unknown zone.")
    fault = fake.trouble("create", zone)
    for complaint in _complaints(body, zone):
        raise Answer(400, "invalid", f"Invalid value for field {complaint}")
    kind = body["machineType"].rpartition("/")[2]
    if any(re.fullmatch(pattern, f"{zone}/{kind}") for pattern in fake.unsold):
        where = f"projects/{fake.project}/zones/{zone}/machineTypes/{kind}"
        raise Answer(404, "notFound", f"The resource '{where}' was not found")

    def act() -> Operation:
        machine_id, target = f"{zone}/{name}", f"instances/{name}"
        known = fake.core.machines.get(machine_id)
        if known is not None and machine_id in fake.records and fake.status(known, fake.records[machine_id]):
            raise Answer(409, "alreadyExists", f"The resource '{target}' already exists")
        try:
            if fault is not None:
                raise (OutOfCapacity if fault.kind == "capacity" else OverQuota)(fault.detail)
            _boot(fake, zone, kind, body)
        except OutOfCapacity as refused:
            said = f"The zone '{zone}' does not have enough resources available to fulfill the request. {refused}"
            return fake.begin(
                "insert", f"zones/{zone}", target, ("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", said, 503)
            )
        except OverQuota as refused:
            region = zone.rpartition("-")[0]
            said = (
                refused.detail
                if "Quota '" in refused.detail
                else f"Quota 'CPUS' exceeded.  Limit: 8.0 in region {region}."
            )
            return fake.begin("insert", f"zones/{zone}", target, ("QUOTA_EXCEEDED", said, 403))
        return fake.begin("insert", f"zones/{zone}", target)

    return fake.once("insert", query, act)


def _boot(fake: GcpFake, zone: str, kind: str, body: Body) -> None:
    metadata = {one["key"]: one["value"] for one in body.get("metadata", {}).get("items", [])}
    machine_id = f"{zone}/{body['name']}"
    fake.records[machine_id] = Record(body, dict(body.get("labels", {})), fake.core.now(), next(fake._numbers))
    try:
        fake.core.create(
            token=None,
            zone=zone,
            machine_type=kind,
            spot=body.get("scheduling", {}).get("provisioningModel") == "SPOT",
            user_data=metadata.get("startup-script", ""),
            name=body["name"],
            machine_id=machine_id,
        )
    except Refused:
        del fake.records[machine_id]
        raise
    fake.enforce()


def _complaints(body: Body, zone: str) -> Iterator[str]:
    """What the schema cannot say."""
    yield from _impossible(body, zone)
    for key, value in body.get("labels", {}).items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", key) or not re.fullmatch(r"[a-z0-9_-]{0,63}", value):
            yield f"'resource.labels': {key}={value}"
    for tag in body.get("tags", {}).get("items", []):
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", tag):
            yield f"'resource.tags.items': {tag}"
    if any(len(one["value"].encode()) > 256 * 1024 for one in body.get("metadata", {}).get("items", [])):
        yield "'resource.metadata': too large"
    if len(body.get("description", "")) > 2048:
        yield "'resource.description': too long"


def _impossible(body: Body, zone: str) -> Iterator[str]:
    """What no machine of this type can be."""
    series = body["machineType"].rpartition("/")[2].partition("-")[0]
    scheduling = body.get("scheduling", {})
    gpus = bool(body.get("guestAccelerators")) or series in GPU_SERIES
    if not body["machineType"].startswith(f"zones/{zone}/machineTypes/"):
        yield "'resource.machineType': another zone"
    if body.get("guestAccelerators") and series != "n1":
        yield "'resource.guestAccelerators': not for this machine type"
    if gpus and scheduling.get("onHostMaintenance") != "TERMINATE":
        yield "'resource.scheduling': Instances with guest accelerators do not support live migration."
    if scheduling.get("provisioningModel") == "SPOT" and scheduling.get("automaticRestart", True):
        yield "'resource.scheduling': spot instances cannot be restarted automatically"
    for disk in body["disks"]:
        hyper = "/hyperdisk-" in disk["initializeParams"]["diskType"]
        if hyper != (series in HYPERDISK_ONLY):
            yield "'resource.disks[0].initializeParams.diskType': not compatible with the machine type"


def _show(fake: GcpFake, machine: Machine, record: Record) -> Body:
    zone = f"https://www.googleapis.com/compute/v1/projects/{fake.project}/zones/{machine.zone}"
    access: Body = {"kind": "compute#accessConfig", "type": "ONE_TO_ONE_NAT", "name": "External NAT"}
    if machine.ip is not None:
        access["natIP"] = machine.ip
    network: Body = {"name": "nic0", "networkIP": machine.private_ip, "accessConfigs": [access]}
    shown = {
        **record.body,
        "kind": "compute#instance",
        "id": str(record.number),
        "zone": zone,
        "status": fake.status(machine, record),
        "creationTimestamp": stamp(machine.created_at),
        "lastStartTimestamp": stamp(record.started_at),
        "labels": record.labels,
        "labelFingerprint": _fingerprint(record),
        "networkInterfaces": [network],
        "disks": [{"boot": True, "autoDelete": True, "source": f"{zone}/disks/{record.body['name']}"}],
    }
    if machine.why == "spot":
        shown["statusMessage"] = "Instance was preempted."
    return shown


def _fingerprint(record: Record) -> str:
    return f"f{record.revision:07d}"


def _get(fake: GcpFake, at: Query, query: Query, body: Body) -> Body:
    return _show(fake, *fake.machine(at["zone"], at["instance"]))


def _list(fake: GcpFake, at: Query, query: Query, body: Body) -> Body:
    silent = []
    for zone in fake.zones:
        fault = fake.core.fault("list", zone)
        if fault is not None and fault.kind == "unavailable" and fault.where != "*":
            silent.append(zone)
        elif fault is not None:
            if fault.kind == "hang":
                fake.core.closing.wait(_HANG_S)
            raise _said(fault)
    shown = [
        _show(fake, machine, fake.records[machine.id])
        for machine in fake.core.machines.values()
        if machine.id in fake.records and fake.status(machine, fake.records[machine.id])
    ]
    matching = sorted((one for one in shown if _passes(one, query.get("filter", ""))), key=lambda one: one["name"])
    last, size = query.get("pageToken", ""), min(fake.page_size, int(query.get("maxResults", "500")))
    rest = [one for one in matching if one["name"] > last]  # so that what goes meanwhile shifts nothing
    page: Body = {"kind": "compute#instanceAggregatedList", "id": "1", "items": {}}
    for zone in fake.zones:
        here = [one for one in rest[:size] if one["zone"].endswith(f"/{zone}")]
        nothing = {"code": "NO_RESULTS_ON_PAGE", "message": f"There are no results for scope 'zones/{zone}'."}
        page["items"][f"zones/{zone}"] = {"instances": here} if here else {"warning": nothing}
        if zone in silent:
            page["items"][f"zones/{zone}"] = {"warning": {"code": "UNREACHABLE", "message": f"{zone} is not reachable"}}
    if len(rest) > size:
        page["nextPageToken"] = rest[size - 1]["name"]
    return page


def _passes(shown: Body, text: str) -> bool:
    if not text:
        return True
    match = re.fullmatch(r"(labels\.)?([\w-]+)\s*=\s*\"?([^\"]*)\"?", text)
    if match is None:
        raise Answer(400, "invalid", f"Invalid value for field 'filter': '{text}'. Invalid list filter expression.")
    found = shown["labels"].get(match[2]) if match[1] else shown.get(match[2])
    return bool(found == match[3])


def _delete(fake: GcpFake, at: Query, query: Query, body: Body) -> Body:
    fake.trouble("delete", at["zone"])
    machine, _ = fake.machine(at["zone"], at["instance"])
    fake.core.delete(machine.id)
    if machine.state == "terminated":  # taken back before, and only now deleted
        del fake.records[machine.id]
    return fake.show(fake.begin("delete", f"zones/{at['zone']}", f"instances/{at['instance']}"))


def _stop(fake: GcpFake, at: Query, query: Query, body: Body) -> Body:
    fake.trouble("stop", at["zone"])
    machine, _ = fake.machine(at["zone"], at["instance"])
    fake.core.stop(machine.id)
    return fake.show(fake.begin("stop", f"zones/{at['zone']}", f"instances/{at['instance']}"))


def _start(fake: GcpFake, at: Query, query: Query, body: Body) -> Body:
    fault = fake.trouble("start", at["zone"])
    machine, record = fake.machine(at["zone"], at["instance"])
    error = None
    try:
        if fault is not None:
            raise OutOfCapacity(fault.detail)
        fake.core.start(machine.id)
        record.started_at = fake.core.now() + 0.001 * next(fake._numbers)  # never the instant of an earlier start
    except OutOfCapacity as refused:
        error = ("ZONE_RESOURCE_POOL_EXHAUSTED", f"no resources: {refused}", 503)
    return fake.show(fake.begin("start", f"zones/{at['zone']}", f"instances/{at['instance']}", error))


def _set_labels(fake: GcpFake, at: Query, query: Query, body: Body) -> Body:
    _, record = fake.machine(at["zone"], at["instance"])
    if body["labelFingerprint"] != _fingerprint(record):
        raise Answer(412, "conditionNotMet", "Labels fingerprint either invalid or resource labels have changed")
    record.labels = dict(body["labels"])
    record.revision += 1
    return fake.show(fake.begin("setLabels", f"zones/{at['zone']}", f"instances/{at['instance']}"))


def _operation(fake: GcpFake, at: Query) -> Operation:
    scope = f"zones/{at['zone']}" if "zone" in at else "global"
    found = fake.operations.get(at["operation"])
    if found is None or found.scope != scope:
        raise Answer(404, "notFound", f"The resource '{scope}/operations/{at['operation']}' was not found")
    return found


def _get_operation(fake: GcpFake, at: Query, query: Query, body: Body) -> Body:
    return fake.show(_operation(fake, at))


def _wait(fake: GcpFake, at: Query, query: Query, body: Body) -> Body:
    operation, until = _operation(fake, at), time.monotonic() + _WAIT_S
    while fake.show(operation)["status"] != "DONE" and time.monotonic() < until:
        if fake.core.closing.wait(0.01):
            break
    return fake.show(operation)


def _list_operations(fake: GcpFake, at: Query, query: Query, body: Body) -> Body:
    """Those that were asked for, and one for each machine that was taken back."""
    scope = f"zones/{at['zone']}"
    found = [fake.show(operation) for operation in fake.operations.values() if operation.scope == scope]
    for machine in fake.core.machines.values():
        if machine.why == "spot" and machine.zone == at["zone"] and machine.ended_at is not None:
            ended = machine.ended_at
            taken = Operation(f"systemevent-{machine.name}", scope, "compute.instances.preempted", "", ended, ended)
            found.append(fake.show(taken) | {"id": "1", "targetLink": f"{scope}/instances/{machine.name}"})
    found = [one for one in found if query.get("filter", "") in ("", f"operationType={one['operationType']}")]
    return {"kind": "compute#operationList", "id": "1", "items": found}


def _rule(fake: GcpFake, name: str) -> Body:
    if name not in fake.firewalls:
        raise Answer(404, "notFound", f"The resource 'global/firewalls/{name}' was not found")
    return fake.firewalls[name]


def _get_rule(fake: GcpFake, at: Query, query: Query, body: Body) -> Body:
    return _rule(fake, at["firewall"])


def _insert_rule(fake: GcpFake, at: Query, query: Query, body: Body) -> Body:
    if body["name"] in fake.firewalls:
        raise Answer(409, "alreadyExists", f"The resource 'global/firewalls/{body['name']}' already exists")
    return _put_rule(fake, body["name"], body, "insert")


def _patch_rule(fake: GcpFake, at: Query, query: Query, body: Body) -> Body:
    return _put_rule(fake, at["firewall"], _rule(fake, at["firewall"]) | body, "patch")


def _put_rule(fake: GcpFake, name: str, rule: Body, kind: str) -> Body:
    versions = {":" in source for source in rule.get("sourceRanges", [])}
    if len(versions) > 1:
        raise Answer(400, "invalid", "Invalid value for field 'resource.sourceRanges': IPv4 and IPv6 mixed")
    fake.firewalls[name] = rule
    fake.enforce()
    return fake.show(fake.begin(kind, "global", f"firewalls/{name}"))


def _delete_rule(fake: GcpFake, at: Query, query: Query, body: Body) -> Body:
    _rule(fake, at["firewall"])
    del fake.firewalls[at["firewall"]]
    fake.enforce()
    return fake.show(fake.begin("delete", "global", f"firewalls/{at['firewall']}"))


def _advice(fake: GcpFake, at: Query, query: Query, body: Body) -> Body:
    if not fake.scores:
        raise Answer(403, "forbidden", "Required 'compute.advice.capacity' permission")
    (selection,) = body["instanceFlexibilityPolicy"]["instanceSelections"].values()
    kind = selection["machineTypes"][0]
    zone = body["distributionPolicy"].get("zones", [{"zone": "zones/anywhere"}])[0]["zone"].rpartition("/")[2]
    shard = {"instanceCount": body["size"], "machineType": kind, "provisioningModel": "SPOT", "zone": zone}
    scores = {"obtainability": fake.scores.get(f"{zone}/{kind}", 0.9), "estimatedUptime": "3600s"}
    return {"recommendations": [{"scores": scores, "shards": [shard]}]}


_HANDLERS: Mapping[str, Callable[[GcpFake, Query, Query, Body], Body]] = {
    "advice.capacity": _advice,
    "projects.get": _get_project,
    "networks.get": _get_network,
    "regions.get": _get_region,
    "instances.insert": _insert,
    "instances.get": _get,
    "instances.aggregatedList": _list,
    "instances.delete": _delete,
    "instances.stop": _stop,
    "instances.start": _start,
    "instances.setLabels": _set_labels,
    "zoneOperations.get": _get_operation,
    "zoneOperations.wait": _wait,
    "zoneOperations.list": _list_operations,
    "globalOperations.get": _get_operation,
    "globalOperations.wait": _wait,
    "firewalls.get": _get_rule,
    "firewalls.insert": _insert_rule,
    "firewalls.patch": _patch_rule,
    "firewalls.delete": _delete_rule,
}


class _Handler(BaseHTTPRequestHandler):
    """HTTP around the service."""

    service: GcpFake
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if parts.path == "/token":
                self._reply(*self._login())
                return
            if not self.service.anonymous and not re.fullmatch(r"Bearer \S+", self.headers.get("Authorization", "")):
                raise Answer(401, "required", "Login Required.")
            path = parts.path.removeprefix("/compute/v1").lstrip("/")
            self._reply(
                200, self.service.answer(self.command, path, dict(parse_qsl(parts.query)), json.loads(data or b"{}"))
            )
        except Answer as answer:
            self._reply(answer.status, answer.body, answer.headers)
        except BrokenPipeError:
            self.close_connection = True

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _serve  # noqa: N815 - http.server's names

    def _login(self) -> tuple[int, Body]:
        if not self.service.login_works:
            return 400, {"error": "invalid_grant", "error_description": "Token has been revoked."}
        self.service.logins += 1
        return 200, {"access_token": f"token-{self.service.logins}", "expires_in": 3600, "token_type": "Bearer"}

    def _reply(self, status: int, body: Body, headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


def adapter(fake: GcpFake, config: Config) -> GcpCloud:
    """The adapter, pointed at the fake."""
    account = Account(fake.project, "tester@example.com", lambda: "a-token")
    return GcpCloud(account, installation(config), SystemClock(), endpoint=fake.url)
