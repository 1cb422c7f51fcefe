"""RunPod over a `CloudCore`: the REST API v2 for listing, stock and ending, GraphQL for creating pods and for prices.
Data centres are the core's zones, and a machine's user data is the pod's whole command. Written from the documented
shapes; fields it does not know are refused."""

from __future__ import annotations

import json
import re
import shlex
from fnmatch import fnmatchcase

from tests.bed.core import CloudCore, Machine, OutOfCapacity, OverQuota
from tests.bed.json_server import Call, Hang, JsonServer, Refuse, misfits

from skyserve.clock import Clock, SystemClock
from skyserve.config import Config
from skyserve.providers.rest import Account
from skyserve.providers.runpod import RunPodCloud

_ENV = {"key": str, "value": str}
_POD = {
    "name": str,
    "imageName": str,
    "gpuTypeId": str,
    "gpuCount": int,
    "cloudType": str,
    "supportPublicIp?": bool,
    "dataCenterId?": str,
    "countryCode?": str,
    "containerDiskInGb": int,
    "volumeInGb?": int,
    "volumeMountPath?": str,
    "dockerArgs?": str,
    "ports?": str,
    "env?": [_ENV],
    "startSsh?": bool,
    "startJupyter?": bool,
    "minVcpuCount?": int,
    "minMemoryInGb?": int,
    "allowedCudaVersions?": [str],
}
_SPOT_POD = {**_POD, "bidPerGpu": float | int}
_CALLS = {
    "podFindAndDeployOnDemand": ("PodFindAndDeployOnDemandInput", _POD),
    "podRentInterruptable": ("PodRentInterruptableInput", _SPOT_POD),
}
_NO_MACHINE = (
    "There are no longer any instances available with the requested specifications. Please refresh and try again."
)

_FAULTS = {
    "unavailable": (500, "INTERNAL_SERVER_ERROR", "Something went wrong. Please try again later or contact support."),
    "credentials": (401, "UNAUTHENTICATED", "Unauthorized request"),
    "capacity": (400, "", _NO_MACHINE),
    "quota": (400, "", "Your account balance is too low to deploy this pod."),
    "rejected": (422, "BAD_USER_INPUT", "Request validation failed."),
    "missing": (404, "", "resource not found"),
}


def adapter(fake: RunPodFake, config: Config, clock: Clock | None = None) -> RunPodCloud:
    """The adapter, pointed at the fake."""
    account = Account("RunPod", fake.url, fake.key, "the fake's key", "use the fake's key")
    return RunPodCloud(config, clock or SystemClock(), account)


class RunPodFake(JsonServer):
    """`stock` are the data centres by GPU id, `lowest_bid` is what a GPU on the spot market costs in all of them (None:
    there is none). A pod's TCP port is reached `renumbered` above its own number."""

    def __init__(self, core: CloudCore, *, renumbered: int = 0) -> None:
        super().__init__(core)
        self.renumbered = renumbered
        self.stock: dict[str, tuple[str, ...]] = {
            "NVIDIA L4": ("EU-RO-1", "US-TX-3"),
            "NVIDIA H100 80GB HBM3": ("US-TX-3",),
        }
        self.lowest_bid: float | None = 0.21
        self.orders: dict[str, dict[str, object]] = {}
        self._terminated: set[str] = set()

    def unauthorized(self) -> Refuse:
        return _problem("credentials")

    def answer(self, call: Call) -> tuple[int, object]:
        if str(call) == "POST /graphql":
            return 200, self._graphql(call.body)
        if str(call) == "GET /v2/pods":
            self._fault("list")
            return 200, {"pods": [self._pod(machine) for machine in self._listed()]}
        if str(call) == "GET /v2/catalog/gpus":
            self._fault("stock")
            return 200, {"gpus": self._gpus(call)}
        if call.method == "DELETE" and call.path.startswith("/v2/pods/"):
            self._delete(call.path.rpartition("/")[2])
            return 204, None
        raise _problem("missing", f"{call} is not known")

    def _fault(self, operation: str, where: str = "") -> None:
        fault = self.core.fault(operation, where)
        if fault is None:
            return
        if fault.kind == "hang":
            raise Hang
        if fault.kind == "throttled":
            problem = {"title": "Too Many Requests", "status": 429, "detail": "rate limit exceeded"}
            raise Refuse(429, problem, {"Retry-After": f"{fault.retry_after_s:g}"})
        if operation == "create" and fault.kind not in ("unavailable", "credentials"):
            raise _Graph(fault.kind, fault.detail)
        raise _problem(fault.kind, fault.detail)

    # -- GraphQL

    def _graphql(self, body: object) -> object:
        if errors := misfits(body, {"query": str, "variables?": dict}):
            raise Refuse(400, {"errors": [{"message": "; ".join(errors)}]})
        assert isinstance(body, dict)
        try:
            return {"data": self._execute(body["query"], body.get("variables", {}))}
        except _Graph as error:
            return {"data": None, "errors": [error.told]}

    def _execute(self, query: str, variables: dict[str, object]) -> object:
        if re.fullmatch(r"query \{ myself \{ id email \} \}", query):
            self._fault("check")
            return {"myself": {"id": "user-1", "email": "me@example.com"}}
        if query.startswith("query { gpuTypes("):
            return {"gpuTypes": self._prices(query)}
        made = re.fullmatch(r"mutation \w+\(\$input: (\w+)!\) \{ (\w+)\(input: \$input\) \{ id \} \}", query)
        if made is None or _CALLS.get(made[2], ("", {}))[0] != made[1]:
            raise _Graph("rejected", f"Cannot query: {query}")
        return {made[2]: {"id": self._create(made[2], variables.get("input"))}}

    def _prices(self, query: str) -> object:
        asked = re.search(
            r'gpuTypes\(input: \{id: "([^"]+)"\}\) \{ lowestPrice\(input: \{gpuCount: (\d), secureCloud: true, '
            r'(dataCenterId|countryCode): "([^"]+)"\}\) \{ minimumBidPrice \} \}',
            query,
        )
        if asked is None:
            raise _Graph("rejected", f"Cannot query: {query}")
        here = [one for one in self.stock.get(asked[1], ()) if asked[4] in one]
        return [{"lowestPrice": {"minimumBidPrice": self.lowest_bid if here else None}}]

    def _create(self, call: str, order: object) -> str:
        if errors := misfits(order, _CALLS[call][1]):
            raise _Graph("rejected", "; ".join(errors))
        assert isinstance(order, dict)
        spot = "bidPerGpu" in order
        place = order.get("dataCenterId") or order.get("countryCode", "")
        centers = [one for one in self.stock.get(order["gpuTypeId"], ()) if place in one]
        self._fault("create", centers[0] if centers else place)
        if not centers or order["cloudType"] != "SECURE":
            raise _Graph("capacity")
        if spot and (self.lowest_bid is None or order["bidPerGpu"] < self.lowest_bid):
            raise _Graph("capacity", "Your bid is too low.")
        command = json.loads(order["dockerArgs"])
        if misfits(command, {"entrypoint": [str], "cmd": [str]}) or not command["entrypoint"]:
            raise _Graph("rejected", "The command is not understood.")
        try:
            machine = self.core.create(
                token=None,
                zone=centers[0],
                machine_type=f"{order['gpuCount']}x {order['gpuTypeId']}",
                spot=spot,
                user_data=f"#!/bin/bash\nexec {shlex.join([*command['entrypoint'], *command['cmd']])}\n",
                name=order["name"],
            )
        except OutOfCapacity as refused:
            raise _Graph("capacity") from refused
        except OverQuota as refused:
            raise _Graph("quota") from refused
        self.orders[machine.id] = order
        machine.allowed = {(port, "0.0.0.0/0") for port in _tcp_ports(order)}
        return machine.id

    # -- REST

    def _listed(self) -> list[Machine]:
        """What was terminated is gone; a spot pod that was taken back stays as EXITED."""
        alive = [one for one in self.core.machines.values() if one.id not in self._terminated and one.id in self.orders]
        return [one for one in alive if one.why != "user"]

    def _pod(self, machine: Machine) -> object:
        order = self.orders[machine.id]
        running = machine.state == "running"
        ports = [
            {"private": port, "public": port + self.renumbered, "type": "tcp", "ip": machine.ip}
            for port in _tcp_ports(order)
        ]
        internal = {"private": 19123, "public": 60123, "type": "http", "ip": "100.65.0.1"}
        return {
            "id": machine.id,
            "name": machine.name,
            "status": machine.tags.get("status") or _status(machine),
            "actions": [],
            "image": order["imageName"],
            "args": order.get("dockerArgs", ""),
            "disk": order["containerDiskInGb"],
            "mounts": {},
            "ports": str(order.get("ports", "")).split(","),
            "env": {},
            "registry": None,
            "gpu": {"id": order["gpuTypeId"], "count": order["gpuCount"], "vcpuCount": 8, "memory": 60},
            "cloud": "SECURE",
            "dataCenterId": machine.zone,
            "cost": 0.44,
            "runtime": {"uptime": 10, "ports": [internal, *ports]} if running else None,
        }

    def _delete(self, pod_id: str) -> None:
        machine = self.core.machines.get(pod_id)
        self._fault("delete", machine.zone if machine else "")
        if machine is None or machine not in self._listed():
            raise _problem("missing")
        self._terminated.add(pod_id)
        self.core.delete(pod_id)

    def _gpus(self, call: Call) -> object:
        if call.params.get("include") != "AVAILABILITY" or call.params.get("product") != "POD":
            raise _problem("rejected", "product is required with include=AVAILABILITY")
        count = int(call.params.get("count", "1"))
        return [self._gpu(gpu, count, centers) for gpu, centers in self.stock.items()]

    def _gpu(self, gpu: str, count: int, centers: tuple[str, ...]) -> object:
        levels = [(one, "LOW" if self._has_room(one, f"{count}x {gpu}") else "NONE") for one in centers]
        told = {"id": gpu, "name": gpu.removeprefix("NVIDIA "), "memory": 24, "secure": True, "community": False}
        if all(level == "NONE" for _, level in levels):
            return {**told, "availability": "NONE"}
        return {
            **told,
            "availability": "LOW",
            "dataCenters": [{"id": one, "name": one, "availability": level} for one, level in levels],
        }

    def _has_room(self, center: str, kind: str) -> bool:
        pool = f"{center}/{kind}/on-demand"
        alive = [one.pool for one in self.core.machines.values() if one.alive]
        return all(
            sum(fnmatchcase(one, pattern) for one in alive) < most
            for pattern, most in self.core.capacity.items()
            if fnmatchcase(pool, pattern)
        )


class _Graph(Exception):
    """What GraphQL refuses, with status 200."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind)
        _, code, message = _FAULTS[kind]
        self.told = {"message": detail or message, **({"extensions": {"code": code}} if code else {})}


def _tcp_ports(order: dict[str, object]) -> list[int]:
    listed = [port.split("/") for port in str(order.get("ports", "")).split(",") if port]
    return [int(number) for number, protocol in listed if protocol == "tcp"]


def _status(machine: Machine) -> str:
    known = {"pending": "PROVISIONING", "running": "RUNNING"}
    return known.get(machine.state, "EXITED")


def _problem(kind: str, detail: str = "") -> Refuse:
    status, _, message = _FAULTS[kind]
    return Refuse(status, {"title": kind.title(), "status": status, "detail": detail or message})
