"""AWS as far as machines go: moto's server with an overlay for what moto lacks, over the bed's `CloudCore`.

moto keeps networks, security groups, tags and images, and speaks the wire formats, which boto3's own models check on
the other side. The core keeps the machines: capacity, quota, states, interruptions, addresses. Before moto answers
anything about instances, its own are made to look like the core's. The overlay adds idempotency by ClientToken, limits
that AWS has and moto has not, SSM's public images, regions that an account has not enabled, and faults in AWS's words.

moto's state belongs to the process: only one of these may run at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from moto.core import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends
from moto.ec2.models.amis import Ami
from moto.ec2.models.instances import Instance, StateReason
from moto.moto_api._internal.models import moto_api_backend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from tests.bed.core import CloudCore, Fault, Machine, OutOfCapacity, OverQuota, Refused, WrongState
from werkzeug.serving import BaseWSGIServer, make_server

from skyserve.clock import Clock
from skyserve.config import Config
from skyserve.providers.aws import AwsCloud
from skyserve.providers.aws.api import Api, access

ACCOUNT = DEFAULT_ACCOUNT_ID
REGIONS = ("us-east-1", "us-west-2", "eu-west-1")
USER_DATA_LIMIT = 16384
HANG_S = 10.0
PUBLIC_IMAGES = ("/aws/service/canonical/ubuntu/", "/aws/service/deeplearning/ami/", "/aws/service/neuron/dlami/")

_OPERATIONS = {
    "RunInstances": "create",
    "DescribeInstances": "list",
    "TerminateInstances": "delete",
    "StopInstances": "stop",
    "StartInstances": "start",
    "GetCallerIdentity": "check",
}
_STATES = {
    "pending": ("pending", 0),
    "running": ("running", 16),
    "stopping": ("stopping", 64),
    "stopped": ("stopped", 80),
    "terminated": ("terminated", 48),
}
_FAULTS = {
    "throttled": (503, "RequestLimitExceeded", "Request limit exceeded."),
    "unavailable": (503, "Unavailable", "The server is overloaded and cannot handle the request."),
    "credentials": (401, "AuthFailure", "AWS was not able to validate the provided access credentials"),
    "capacity": (500, "InsufficientInstanceCapacity", "We currently do not have sufficient capacity here."),
    "quota": (400, "VcpuLimitExceeded", "You have requested more vCPU capacity than your current vCPU limit allows."),
    "rejected": (400, "InvalidParameterValue", "Value is invalid."),
}

Reply = tuple[int, bytes]
StartResponse = Callable[..., Any]


@dataclass(frozen=True)
class Call:
    """One request: where it went, what was asked, and the flat parameters of EC2's query protocol."""

    region: str
    service: str
    action: str
    parameters: Mapping[str, str]

    @property
    def instance_ids(self) -> list[str]:
        """What a request about instances is about."""
        return [value for key, value in self.parameters.items() if re.fullmatch(r"InstanceId\.\d+", key)]


@dataclass
class _Refusal:
    action: str
    status: int
    code: str
    message: str
    times: int


class SizedAmi(Ami):
    """moto's images are all of one size."""

    size_gib = 8

    @property
    def block_device_mappings(self) -> list[dict[str, Any]]:
        [disk] = super().block_device_mappings
        return [{**disk, "Ebs": {**disk["Ebs"], "VolumeSize": self.size_gib}}]


class AwsFake:
    """An HTTP server on 127.0.0.1 that is one AWS account.

    `regions` are those that the account has enabled; in others AWS calls the credentials wrong. `calls` are all
    requests so far, `page` is how many machines one answer holds. `refuse` makes the next calls of an action fail with
    a code of AWS's.
    """

    def __init__(self, core: CloudCore, regions: Iterable[str] = REGIONS) -> None:
        self.regions = list(regions)
        self.calls: list[Call] = []
        self.core = core
        self.page = 1000
        self._refusals: list[_Refusal] = []
        self._launched: dict[str, tuple[str, bytes]] = {}
        self._groups: dict[str, tuple[str, set[str]]] = {}
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server: BaseWSGIServer | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._environment: str | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def env(self) -> dict[str, str]:
        """What points boto3, and so the adapter, here."""
        return {"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_ENDPOINT_URL": self.url}

    def start(self) -> None:
        """Listen. Loading moto's 1,301 images takes seconds per region, so it gets none."""
        self._environment = os.environ.get("MOTO_EC2_LOAD_DEFAULT_AMIS")
        os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"
        self.renew(self.core)
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=_QuietHandler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Listen no more, and leave nothing behind in moto."""
        self.core.closing.set()
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
        moto_api_backend.reset()
        if self._environment is None:
            os.environ.pop("MOTO_EC2_LOAD_DEFAULT_AMIS", None)
        else:
            os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = self._environment

    def renew(self, core: CloudCore) -> None:
        """Another account, on another core, at the same address."""
        moto_api_backend.reset()
        if core is not self.core:
            self.core.closing.set()
        self.core = core
        core.metadata = self.metadata
        self.regions = list(REGIONS)
        self.calls.clear()
        self.page = 1000
        self._refusals.clear()
        self._launched.clear()
        self._groups.clear()

    def refuse(self, action: str, code: str, message: str = "No.", *, status: int = 400, times: int = 1) -> None:
        """Let the next calls of this action fail."""
        self._refusals.append(_Refusal(action, status, code, message, times))

    def add_image(self, region: str, ami_id: str, gib: int = 8, root: str = "/dev/sda1") -> None:
        """Put an image into a region."""
        backend = ec2_backends[ACCOUNT][region]
        image = SizedAmi(backend, ami_id, name=ami_id, root_device_name=root, region_name=f"{region}a")
        image.size_gib = gib
        backend.amis[ami_id] = image

    def drop_default_subnets(self, region: str, zone: str | None = None) -> None:
        """As in an account whose owner has deleted them."""
        backend = ec2_backends[ACCOUNT][region]
        for at, subnets in list(backend.subnets.items()):
            if zone in (None, at):
                subnets.clear()

    def asked(self, action: str) -> list[Call]:
        """The calls of one action, oldest first."""
        return [call for call in self.calls if call.action == action]

    def group_rules(self, region: str) -> dict[str, set[tuple[int, str]]]:
        """What the security groups that are not AWS's own admit, by name."""
        backend = ec2_backends[ACCOUNT][region]
        groups = [group for of_vpc in backend.groups.values() for group in of_vpc.values() if group.name != "default"]
        return {group.name: _rules(group) for group in groups}

    def instance(self, machine_id: str) -> Instance:
        """moto's record of a machine: its disks, tags and options as they were ordered."""
        return next(one for region in self.regions for one in self._instances(region) if one.id == machine_id)

    def volumes(self, region: str) -> list[Any]:
        """moto's disks."""
        return list(ec2_backends[ACCOUNT][region].volumes.values())

    # ---- the server

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        call = _call(environ, body)
        self.calls.append(call)
        reply = self._overlay(call, environ, body)
        if reply is None:
            return self._moto(dict(environ, **{"wsgi.input": BytesIO(body)}), start_response)
        status, answer = reply
        kind = "application/x-amz-json-1.1" if call.service == "ssm" else "text/xml"
        start_response(f"{status} -", [("Content-Type", kind), ("Content-Length", str(len(answer)))])
        return [answer]

    def _overlay(self, call: Call, environ: dict[str, Any], body: bytes) -> Reply | None:
        """The answer, or None for moto's own."""
        with self._lock:
            for refusal in self._refusals:
                if refusal.action == call.action and refusal.times > 0:
                    refusal.times -= 1
                    return refusal.status, _error(call.service, refusal.code, refusal.message)
        fault = self.core.fault(_OPERATIONS.get(call.action, "other"), self._where(call))
        if fault is not None:
            return self._fail(call, fault)
        if call.region not in self.regions:
            status, code, message = _FAULTS["credentials"]
            return status, _error(call.service, code, message)
        with self._lock:
            if call.service == "ec2":
                self._align(call.region)
            handler = getattr(self, f"_on_{call.action}", None)
            return handler(call, environ, body) if handler else None

    def _fail(self, call: Call, fault: Fault) -> Reply:
        if fault.kind == "hang":
            self.core.closing.wait(HANG_S)
            return 503, b""
        status, code, message = _FAULTS[fault.kind]
        if fault.kind == "credentials" and call.service == "sts":
            code = "InvalidClientTokenId"
        return status, _error(call.service, code, fault.detail or message)

    def _where(self, call: Call) -> str:
        """The zone where that is known, otherwise the region."""
        if call.action == "RunInstances":
            return self._zone(call) or call.region
        machines = self.core.machines
        return next((machines[one].zone for one in call.instance_ids if one in machines), call.region)

    def _zone(self, call: Call) -> str:
        wanted = call.parameters.get("NetworkInterface.1.SubnetId", call.parameters.get("SubnetId", ""))
        for zone, subnets in ec2_backends[ACCOUNT][call.region].subnets.items():
            if wanted in subnets:
                return str(zone)
        return ""

    def _pass_on(self, environ: dict[str, Any], body: bytes) -> Reply:
        """moto's answer, to be looked at before it is sent."""
        told: list[str] = []

        def note(status: str, headers: object, *rest: object) -> None:
            told.append(status)

        answer = b"".join(self._moto(dict(environ, **{"wsgi.input": BytesIO(body)}), note))
        return int(told[0].split()[0]), answer

    # ---- what moto does not do

    def _on_RunInstances(self, call: Call, environ: dict[str, Any], body: bytes) -> Reply:  # noqa: N802
        token = call.parameters.get("ClientToken")
        key, print_of = f"{call.region}:{token}", hashlib.sha256(body).hexdigest()
        if token and key in self._launched:
            known, answer = self._launched[key]
            mismatch = _error("ec2", "IdempotentParameterMismatch", "The token was used with other parameters.")
            return (200, answer) if known == print_of else (400, mismatch)
        problem = self._problem(call)
        if problem is not None:
            return problem
        # moto does not hand the IOPS on to its own disks, and then misses them
        status, answer = self._pass_on(environ, body.replace(b"VolumeType=io2", b"VolumeType=gp3"))
        if status != 200:
            return status, answer
        instance_id = re.search(rb"<instanceId>([^<]+)</instanceId>", answer)[1].decode()  # type: ignore[index]
        instance = next(one for one in self._instances(call.region) if one.id == instance_id)
        groups = {group.id for group in instance.nics[0].group_set}
        self._groups[instance_id] = (call.region, groups)
        try:
            self._rent(call, instance, key if token else None)
        except Refused as refused:
            self._remove(call.region, instance_id)
            return self._refused(refused, spot=instance.lifecycle == "spot")
        self._align(call.region)
        answer = re.sub(rb"<ipAddress>[^<]*</ipAddress>", b"", answer)  # it has none yet
        if token:
            self._launched[key] = (print_of, answer)
        return 200, answer

    def _problem(self, call: Call) -> Reply | None:
        user_data = b64decode(call.parameters.get("UserData", ""))
        if len(user_data) > USER_DATA_LIMIT:
            return 400, _error("ec2", "InvalidParameterValue", "User data is limited to 16384 bytes")
        if len(call.parameters.get("ClientToken", "")) > 64:
            return 400, _error("ec2", "InvalidParameterValue", "The client token is too long")
        if call.parameters.get("ImageId") not in ec2_backends[ACCOUNT][call.region].amis:
            return 400, _error("ec2", "InvalidAMIID.NotFound", "The image id does not exist")
        return None

    def _rent(self, call: Call, instance: Instance, token: str | None) -> None:
        tags = {tag["key"]: tag["value"] for tag in instance.get_tags()}
        self.core.create(
            token=token,
            zone=self._zone(call),
            machine_type=instance.instance_type,
            spot=instance.lifecycle == "spot",
            user_data=b64decode(call.parameters.get("UserData", "")).decode(),
            name=tags.get("Name", ""),
            tags=tags,
            machine_id=instance.id,
        )

    def _refused(self, refused: Refused, *, spot: bool) -> Reply:
        if isinstance(refused, OutOfCapacity):
            return 500, _error("ec2", "InsufficientInstanceCapacity", refused.detail)
        if isinstance(refused, OverQuota):
            return 400, _error("ec2", "MaxSpotInstanceCountExceeded" if spot else "VcpuLimitExceeded", refused.detail)
        return 400, _error("ec2", "IncorrectInstanceState", refused.detail)

    def _on_DescribeInstances(self, call: Call, environ: dict[str, Any], body: bytes) -> Reply | None:  # noqa: N802
        limited = re.sub(rb"MaxResults=\d+", f"MaxResults={self.page}".encode(), body)
        return self._pass_on({**environ, "CONTENT_LENGTH": str(len(limited))}, limited)

    def _on_TerminateInstances(self, call: Call, environ: dict[str, Any], body: bytes) -> Reply | None:  # noqa: N802
        return self._each(call, environ, body, self.core.delete)

    def _on_StopInstances(self, call: Call, environ: dict[str, Any], body: bytes) -> Reply | None:  # noqa: N802
        if any(self.core.machines[one].spot for one in call.instance_ids if one in self.core.machines):
            return 400, _error("ec2", "UnsupportedOperation", "You can't stop a Spot Instance of a one-time request.")
        return self._each(call, environ, body, self.core.stop)

    def _on_StartInstances(self, call: Call, environ: dict[str, Any], body: bytes) -> Reply | None:  # noqa: N802
        return self._each(call, environ, body, self.core.start)

    def _each(self, call: Call, environ: dict[str, Any], body: bytes, change: Callable[[str], None]) -> Reply | None:
        machines = self.core.machines
        for machine_id in call.instance_ids:
            if machine_id not in machines:
                continue
            try:
                change(machine_id)
            except (OutOfCapacity, OverQuota, WrongState) as refused:
                return self._refused(refused, spot=machines[machine_id].spot)
        known = [one.id for one in self._instances(call.region)]
        if any(one not in known for one in call.instance_ids):
            return 400, _error("ec2", "InvalidInstanceID.NotFound", "The instance ID does not exist")
        if call.action == "TerminateInstances":  # moto would drop the network card and the disk at once, and twice
            return 200, _xml("TerminateInstancesResponse", "<instancesSet/>")
        return self._pass_on(environ, body)

    def _on_DeleteSecurityGroup(self, call: Call, environ: dict[str, Any], body: bytes) -> Reply | None:  # noqa: N802
        wanted = call.parameters.get("GroupId", "")
        for machine_id, (_, groups) in self._groups.items():
            machine = self.core.machines.get(machine_id)
            if machine is not None and machine.alive and wanted in groups:
                return 400, _error("ec2", "DependencyViolation", f"resource {wanted} has a dependent object")
        return None

    def _on_DescribeRegions(self, call: Call, environ: dict[str, Any], body: bytes) -> Reply:  # noqa: N802
        items = "".join(
            f"<item><regionName>{name}</regionName><optInStatus>opt-in-not-required</optInStatus></item>"
            for name in self.regions
        )
        return 200, _xml("DescribeRegionsResponse", f"<regionInfo>{items}</regionInfo>")

    def _on_GetParameter(self, call: Call, environ: dict[str, Any], body: bytes) -> Reply:  # noqa: N802
        name = str(json.loads(body)["Name"])
        if not name.startswith(PUBLIC_IMAGES):
            return 400, _error("ssm", "ParameterNotFound", "")
        ami_id = f"ami-{hashlib.sha256(f'{call.region}{name}'.encode()).hexdigest()[:17]}"
        if ami_id not in ec2_backends[ACCOUNT][call.region].amis:
            self.add_image(call.region, ami_id, gib=8 if "canonical" in name else 75)
        value = {"Name": name, "Type": "String", "Value": ami_id, "Version": 1}
        return 200, json.dumps({"Parameter": value}).encode()

    # ---- moto's instances, made to look like the core's machines

    def _instances(self, region: str) -> list[Instance]:
        return list(ec2_backends[ACCOUNT][region].all_instances())

    def _align(self, region: str) -> None:
        machines = self.core.machines
        for instance in self._instances(region):
            machine = machines.get(instance.id)
            if machine is None:
                self._remove(region, instance.id)
                continue
            _dress(instance, machine)
            _, groups = self._groups[instance.id]
            backend = ec2_backends[ACCOUNT][region]
            allowed: set[tuple[int, str]] = set()
            for group_id in groups:
                group = backend.get_security_group_from_id(group_id)
                allowed |= _rules(group) if group is not None else set()
            if machine.alive and machine.allowed != allowed:
                machine.allowed = frozenset(allowed)

    def _remove(self, region: str, instance_id: str) -> None:
        for reservation in ec2_backends[ACCOUNT][region].reservations.values():
            reservation.instances = [one for one in reservation.instances if one.id != instance_id]

    def metadata(self, machine: Machine, method: str, path: str, headers: Mapping[str, str]) -> Reply:
        """169.254.169.254 in AWS's dialect: nothing without a token that was PUT before."""
        sent = {key.lower(): value for key, value in headers.items()}
        token = hashlib.sha256(machine.id.encode()).hexdigest()
        if method == "PUT" and path == "/latest/api/token":
            lives_s = sent.get("x-aws-ec2-metadata-token-ttl-seconds", "")
            return (200, token.encode()) if lives_s.isdigit() and 1 <= int(lives_s) <= 21600 else (400, b"")
        if sent.get("x-aws-ec2-metadata-token") != token:
            return 401, b""
        if path == "/latest/meta-data/instance-id":
            return 200, machine.id.encode()
        if path == "/latest/meta-data/spot/instance-action" and machine.spot and machine.reclaim_at is not None:
            return 200, json.dumps({"action": "terminate", "time": _instant(machine.reclaim_at)}).encode()
        return 404, b""


def way(fake: AwsFake, *, patience_s: float = 10.0) -> Api:
    """boto3, pointed to this account. To make its clients takes a second, so tests may share it."""
    return Api(access(fake.env, Path("/nonexistent")), patience_s=patience_s)


def adapter(fake: AwsFake, config: Config, clock: Clock, *, api: Api | None = None) -> AwsCloud:
    """The adapter, with this account's credentials and address."""
    return AwsCloud(pointed(fake, config), clock, api=api)


def pointed(fake: AwsFake, config: Config) -> Config:
    """The settings, so that the adapter's factory comes here."""
    return replace(config, inherited_env={**config.inherited_env, **fake.env})


class _QuietHandler(MotoRequestHandler):
    def log(self, type: str, message: str, *args: object) -> None:
        """Say nothing."""


def _call(environ: Mapping[str, Any], body: bytes) -> Call:
    scope = re.search(r"Credential=[^/]+/\d+/([^/]+)/([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
    region, service = scope.groups() if scope else ("", "")
    target = environ.get("HTTP_X_AMZ_TARGET", "")
    if target:
        return Call(region, service, target.rpartition(".")[2], {})
    parameters = dict(parse_qsl(body.decode(), keep_blank_values=True))
    return Call(region, service, parameters.get("Action", ""), parameters)


def _error(service: str, code: str, message: str) -> bytes:
    if service == "ssm":
        return json.dumps({"__type": code, "message": message}).encode()
    inner = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    if service == "sts":
        return f"<ErrorResponse>{inner}<RequestId>r-1</RequestId></ErrorResponse>".encode()
    return f"<Response><Errors>{inner}</Errors><RequestID>r-1</RequestID></Response>".encode()


def _xml(name: str, inner: str) -> bytes:
    space = "http://ec2.amazonaws.com/doc/2016-11-15/"
    return f'<{name} xmlns="{space}"><requestId>r-1</requestId>{inner}</{name}>'.encode()


def _rules(group: Any) -> set[tuple[int, str]]:
    sources = [(rule.from_port, rule.ip_range) for rule in group.ingress_rules]
    return {(int(port), str(source.get("CidrIp") or source.get("CidrIpv6"))) for port, source in sources}


def _dress(instance: Instance, machine: Machine) -> None:
    """Give moto's instance the core's state, addresses and reasons."""
    name, code = _STATES[machine.state]
    if machine.state == "stopping" and machine.deleting:
        name, code = "shutting-down", 32
    instance._state.name, instance._state.code = name, code
    card = instance.nics[0]
    card.public_ip_auto_assign = False
    card.public_ip = machine.ip
    card.private_ip_address = machine.private_ip
    if machine.state == "terminated" and machine.why == "spot":
        text = "Server.SpotInstanceTermination: Spot instance termination"
        instance._reason, instance.state_reason = text, StateReason(text, "Server.SpotInstanceTermination")
    elif name in ("terminated", "shutting-down", "stopped", "stopping"):
        text = "Client.UserInitiatedShutdown: User initiated shutdown"
        instance._reason, instance.state_reason = "User initiated", StateReason(text, "Client.UserInitiatedShutdown")
    else:
        instance._reason, instance.state_reason = "", StateReason()


def _instant(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
