"""Lambda Cloud's REST API v1 over a `CloudCore`: the calls that launch, list and end instances, SSH keys and firewall
rulesets. Regions are the core's zones. Written from the documented shapes; fields it does not know are refused."""

from __future__ import annotations

import itertools
import re
from fnmatch import fnmatchcase

from tests.bed.core import CloudCore, Machine, OutOfCapacity, OverQuota
from tests.bed.json_server import Call, Hang, JsonServer, Refuse, misfits

from skyserve.clock import Clock, SystemClock
from skyserve.config import Config
from skyserve.providers.lambda_cloud import LambdaCloud
from skyserve.providers.rest import Account

BASE = "/api/v1"

_TAG = {"key": str, "value": str}
_RULE = {"protocol": str, "source_network": str, "description": str, "port_range?": [int]}
_LAUNCH = {
    "region_name": str,
    "instance_type_name": str,
    "ssh_key_names": [str],
    "file_system_names?": [str],
    "hostname?": str,
    "name?": str,
    "image?": {"id?": str, "family?": str},
    "user_data?": str,
    "tags?": [_TAG],
    "firewall_rulesets?": [{"id": str}],
}
_TAG_KEY = re.compile(r"[a-z][a-z0-9:-]{0,54}")

_FAULTS = {
    "unavailable": (500, "global/internal-error", "An internal server error occurred."),
    "credentials": (401, "global/invalid-api-key", "API key was invalid, expired, or deleted."),
    "capacity": (400, "instance-operations/launch/insufficient-capacity", "Not enough capacity to fulfill request."),
    "quota": (400, "global/quota-exceeded", "Quota exceeded."),
    "inactive": (403, "global/account-inactive", "Your account is inactive."),
    "rejected": (400, "global/invalid-parameters", "Invalid request data."),
    "missing": (404, "global/object-does-not-exist", "Specified object does not exist."),
    "in-use": (409, "firewall-rulesets/firewall-ruleset-in-use", "Firewall ruleset is in use by an instance."),
}


def adapter(fake: LambdaFake, config: Config, clock: Clock | None = None) -> LambdaCloud:
    """The adapter, pointed at the fake, as fast as the fake takes launches."""
    account = Account("Lambda", f"{fake.url}{BASE}", fake.key, "the fake's key", "use the fake's key")
    return LambdaCloud(config, clock or SystemClock(), account, launch_every_s=fake.launch_every_s)


class LambdaFake(JsonServer):
    """`stock` are the regions by instance type; those without room in the core have no capacity. The API takes a launch
    every `launch_every_s` seconds of the core's clock."""

    def __init__(self, core: CloudCore, *, launch_every_s: float = 0.0) -> None:
        super().__init__(core)
        self.launch_every_s = launch_every_s
        self.stock: dict[str, tuple[str, ...]] = {
            "gpu_1x_a10": ("us-east-1", "us-west-1"),
            "gpu_8x_h100_sxm5": ("us-west-1",),
        }
        self.ssh_keys: dict[str, str] = {}
        self.rulesets: dict[str, dict[str, object]] = {}
        self._numbers = itertools.count(1)
        self._launched_at = float("-inf")

    def unauthorized(self) -> Refuse:
        return _error("credentials")

    def answer(self, call: Call) -> tuple[int, object]:
        resource, _, rest = call.path.removeprefix(f"{BASE}/").partition("/")
        if resource == "instance-operations" and call.method == "POST":
            return 200, {"data": self._launch(call.body) if rest == "launch" else self._terminate(call.body)}
        if resource == "ssh-keys":
            self._fault("check")
            return 200, {"data": self._keys(call)}
        if resource == "firewall-rulesets":
            return 200, {"data": self._rulesets(call, rest)}
        if call.method == "GET" and resource == "instances":
            self._fault("list")
            return 200, {"data": [self._instance(one) for one in self.core.machines.values()]}
        if call.method == "GET" and resource == "instance-types":
            self._fault("stock")
            return 200, {"data": {name: self._type(name, regions) for name, regions in self.stock.items()}}
        raise _error("missing", f"{call} is not known")

    def _fault(self, operation: str, where: str = "") -> None:
        fault = self.core.fault(operation, where)
        if fault is None:
            return
        if fault.kind == "hang":
            raise Hang
        if fault.kind == "throttled":
            raise Refuse(429, None, {"Retry-After": f"{fault.retry_after_s:g}"})
        raise _error(fault.kind, fault.detail)

    def _launch(self, body: object) -> object:
        if errors := misfits(body, _LAUNCH):
            raise _error("rejected", "; ".join(errors))
        assert isinstance(body, dict)
        region, kind = body["region_name"], body["instance_type_name"]
        self._fault("create", region)
        if self.core.now() - self._launched_at < self.launch_every_s:
            raise Refuse(429, None, {"Retry-After": "1"})
        self._launched_at = self.core.now()
        self._check_launch(body)
        rulesets = [ruleset["id"] for ruleset in body.get("firewall_rulesets", [])]
        tags = {tag["key"]: tag["value"] for tag in body.get("tags", [])}
        try:
            machine = self.core.create(
                token=None,
                zone=region,
                machine_type=kind,
                spot=False,
                user_data=body.get("user_data", ""),
                name=body.get("name", ""),
                tags={**tags, "-rulesets": ",".join(rulesets), "-key": body["ssh_key_names"][0]},
            )
        except OutOfCapacity as refused:
            raise _error("capacity", refused.detail) from refused
        except OverQuota as refused:
            raise _error("quota", refused.detail) from refused
        self._enforce()
        return {"instance_ids": [machine.id]}

    def _check_launch(self, body: dict[str, object]) -> None:
        tags, rulesets = body.get("tags", []), body.get("firewall_rulesets", [])
        assert isinstance(tags, list)
        assert isinstance(rulesets, list)
        if body["instance_type_name"] not in self.stock:
            raise _error("missing", "There is no such instance type.")
        if not set(body["ssh_key_names"]) <= set(self.ssh_keys):  # type: ignore[call-overload]
            raise _error("missing", "There is no such SSH key.")
        if len(body["ssh_key_names"]) != 1 or len(str(body.get("name", ""))) > 64:  # type: ignore[arg-type]
            raise _error("rejected", "Exactly one SSH key, and a name of at most 64 characters.")
        if len(str(body.get("user_data", "")).encode()) > 1_000_000:
            raise _error("rejected", "User data is too long.")
        if not all(_TAG_KEY.fullmatch(tag["key"]) and len(tag["value"]) <= 128 for tag in tags):
            raise _error("rejected", "A tag is not well formed.")
        for ruleset in rulesets:
            known = self.rulesets.get(ruleset["id"])
            if known is None or known["region"] != {"name": body["region_name"]}:
                raise _error("missing", "There is no such firewall ruleset in that region.")

    def _terminate(self, body: object) -> object:
        if errors := misfits(body, {"instance_ids": [str]}):
            raise _error("rejected", "; ".join(errors))
        assert isinstance(body, dict)
        ended = []
        for machine_id in body["instance_ids"]:
            machine = self.core.machines.get(machine_id)
            self._fault("delete", machine.zone if machine else "")
            if machine is None or not machine.alive:
                raise _error("missing", "Specified instance does not exist.")
            self.core.delete(machine_id)
            ended.append(self._instance(machine))
        return {"terminated_instances": ended}

    def _keys(self, call: Call) -> object:
        if call.method == "POST":
            if errors := misfits(call.body, {"name": str, "public_key?": str}):
                raise _error("rejected", "; ".join(errors))
            name = call.body["name"]
            if name in self.ssh_keys:
                raise Refuse(400, {"error": {"code": "global/duplicate", "message": "The name is taken."}})
            self.ssh_keys[name] = call.body.get("public_key", "ssh-ed25519 MADE")
            return {**self._key(name), "private_key": "-----BEGIN OPENSSH PRIVATE KEY-----"}
        return [self._key(name) for name in self.ssh_keys]

    def _key(self, name: str) -> object:
        return {"id": f"key-{name}", "name": name, "public_key": self.ssh_keys[name]}

    def _rulesets(self, call: Call, ruleset_id: str) -> object:
        if call.method == "GET":
            return [self._told(ruleset) for ruleset in self.rulesets.values()]
        if call.method == "POST":
            if errors := misfits(call.body, {"name": str, "region": str, "rules": [_RULE]}):
                raise _error("rejected", "; ".join(errors))
            made = {"id": f"fw-{next(self._numbers)}", **call.body, "region": {"name": call.body["region"]}}
            self.rulesets[made["id"]] = made
            return self._told(made)
        if ruleset_id not in self.rulesets:
            raise _error("missing", "Firewall ruleset does not exist.")
        if call.method == "DELETE":
            self._fault("release")
            if any(ruleset_id in one.tags["-rulesets"].split(",") for one in self.core.leftovers()):
                raise _error("in-use")
            del self.rulesets[ruleset_id]
            return {}
        if errors := misfits(call.body, {"name?": str, "rules?": [_RULE]}):
            raise _error("rejected", "; ".join(errors))
        self.rulesets[ruleset_id].update(call.body)
        self._enforce()
        return self._told(self.rulesets[ruleset_id])

    def _told(self, ruleset: dict[str, object]) -> object:
        users = [one.id for one in self.core.leftovers() if str(ruleset["id"]) in one.tags["-rulesets"]]
        return {**ruleset, "created": "2026-01-01T00:00:00Z", "instance_ids": users}

    def _enforce(self) -> None:
        """The rulesets, and the global rule that every account begins with: SSH from anywhere."""
        for machine in self.core.leftovers():
            names = [name for name in machine.tags["-rulesets"].split(",") if name]
            rules = [rule for name in names for rule in self.rulesets[name]["rules"]]  # type: ignore[attr-defined]
            machine.allowed = {(rule["port_range"][0], rule["source_network"]) for rule in rules} | {(22, "0.0.0.0/0")}

    def _type(self, name: str, regions: tuple[str, ...]) -> object:
        open_ = [{"name": one, "description": one} for one in regions if self._has_room(one, name)]
        specs = {"vcpus": 30, "memory_gib": 200, "storage_gib": 1400, "gpus": 1}
        kind = {"name": name, "description": name, "gpu_description": "A10 (24 GB PCIe)", "price_cents_per_hour": 75}
        return {"instance_type": {**kind, "specs": specs}, "regions_with_capacity_available": open_}

    def _has_room(self, region: str, name: str) -> bool:
        pool = f"{region}/{name}/on-demand"
        alive = [one.pool for one in self.core.machines.values() if one.alive]
        return all(
            sum(fnmatchcase(one, pattern) for one in alive) < most
            for pattern, most in self.core.capacity.items()
            if fnmatchcase(pool, pattern)
        )

    def _instance(self, machine: Machine) -> object:
        listed = {
            "id": machine.id,
            "name": machine.name,
            "status": _status(machine),
            "ssh_key_names": [machine.tags["-key"]],
            "file_system_names": [],
            "region": {"name": machine.zone, "description": machine.zone},
            "instance_type": {"name": machine.machine_type},
            "tags": [{"key": key, "value": value} for key, value in machine.tags.items() if key[0] != "-"],
            "actions": {},
        }
        return {**listed, "ip": machine.ip, "private_ip": machine.private_ip} if machine.ip else listed


def _status(machine: Machine) -> str:
    if "-status" in machine.tags:
        return machine.tags["-status"]
    if machine.state == "terminated" and machine.why == "spot":
        return "preempted"
    known = {"pending": "booting", "running": "active", "stopping": "terminating"}
    return known.get(machine.state, "terminated")


def _error(kind: str, detail: str = "") -> Refuse:
    status, code, message = _FAULTS[kind]
    return Refuse(status, {"error": {"code": code, "message": detail or message, "suggestion": "Try something else."}})
