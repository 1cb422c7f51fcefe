"""`service:` to the model. Takes a tree that passed the check; knows how its keys depend on each other."""

from __future__ import annotations

import json
from dataclasses import dataclass

from skyserve.model.service import LoadBalancer, ReadinessProbe, ReplicaPolicy, ReplicaTls, Tls
from skyserve.spec.document import YamlMap, YamlNode, YamlScalar, plain
from skyserve.spec.policy_section import PolicyReader
from skyserve.spec.problems import Problems
from skyserve.spec.substitute import names_in, substitute_json

_PROBE, _POLICY, _DOOR = ReadinessProbe(), ReplicaPolicy(), LoadBalancer()


@dataclass(frozen=True, slots=True)
class ServiceReader:
    """Reads `service:` of one file."""

    section: YamlMap
    problems: Problems

    def readiness_probe(self) -> ReadinessProbe:
        """The probe, from a path or a map."""
        node = self.section.map("readiness_probe")
        if node is None:
            return ReadinessProbe(path=self.section.text("readiness_probe") or _PROBE.path)
        headers = node.map("headers")
        return ReadinessProbe(
            path=node.text("path") or _PROBE.path,
            post_data=self._post_data(node.node("post_data")),
            headers={} if headers is None else {one.key: headers.text(one.key) or "" for one in headers.given()},
            initial_delay_seconds=node.number("initial_delay_seconds", _PROBE.initial_delay_seconds),
            timeout_seconds=node.number("timeout_seconds", _PROBE.timeout_seconds),
            endpoint_probe_interval_seconds=node.number(
                "endpoint_probe_interval_seconds", _PROBE.endpoint_probe_interval_seconds
            ),
            consecutive_failure_threshold_timeout=node.number(
                "consecutive_failure_threshold_timeout", _PROBE.consecutive_failure_threshold_timeout
            ),
        )

    def replica_policy(self) -> ReplicaPolicy:
        """How many replicas, from a fixed number or a policy."""
        node = self.section.map("replica_policy")
        if node is None:
            count = self.section.integer("replicas", _POLICY.min_replicas)
            return ReplicaPolicy(min_replicas=count, max_replicas=count)
        if self.section.node("replicas") is not None:
            message = "`service.replicas` and `service.replica_policy` exclude each other"
            self.problems.add(self.section.place_of("replicas"), message, "keep one; `replicas` is a fixed number")
        return PolicyReader(node, self.problems).policy(self.load_balancing_policy())

    def load_balancing_policy(self) -> str:
        """The name of the policy."""
        return _lower(self.section.text("load_balancing_policy")) or "least_load"

    def load_balancer(self) -> LoadBalancer:
        """How requests are relayed."""
        node = self.section.map("load_balancer")
        if node is None:
            return LoadBalancer()
        return LoadBalancer(
            mode=_lower(node.text("mode")) or _DOOR.mode,
            stream_timeout_seconds=node.number("stream_timeout_seconds", 0) or None,
            queue_size=node.integer("queue_size", _DOOR.queue_size),
            queue_timeout_seconds=node.number("queue_timeout_seconds", _DOOR.queue_timeout_seconds),
            retry=_lower(node.text("retry")) or _DOOR.retry,
            connect_timeout_seconds=node.number("connect_timeout_seconds", _DOOR.connect_timeout_seconds),
            first_byte_timeout_seconds=node.number("first_byte_timeout_seconds", 0) or None,
            request_timeout_seconds=node.number("request_timeout_seconds", 0) or None,
            max_concurrency_per_replica=node.integer("max_concurrency_per_replica", 0) or None,
            max_body_mib=node.number("max_body_mib", 0) or None,
            slow_start_seconds=node.number("slow_start_seconds", _DOOR.slow_start_seconds),
            session_key=node.text("session_key") or _DOOR.session_key,
            workers=node.integer("workers", 0) or None,
        )

    def tls(self) -> Tls | None:
        """Key and certificate."""
        node = self.section.map("tls")
        return None if node is None else Tls(node.text("keyfile") or "", node.text("certfile") or "")

    def replica_tls(self) -> ReplicaTls | None:
        """Whether replicas speak TLS, and what is believed of them."""
        node = self.section.map("replica_tls")
        if node is None:
            return None
        verify = node.flag("verify", True)
        tls = ReplicaTls(verify, node.text("ca_file"), node.text("server_name"))
        if tls.ca_file is not None and not verify:
            message = "`service.replica_tls.ca_file` has no effect with `verify: false`"
            self.problems.add(node.place_of("ca_file"), message, "keep one of them")
        return tls

    def check_spot(self, use_spot: bool) -> None:
        """What is said about spot replicas needs spot replicas."""
        node = self.section.map("replica_policy")
        if node is None or use_spot:
            return
        for key in ("base_ondemand_fallback_replicas", "dynamic_ondemand_fallback", "spot_placer", "availability"):
            value = node.node(key)
            if isinstance(value, YamlScalar) and value.value not in (0, False):
                message = f"`service.replica_policy.{key}` is for services on spot capacity"
                self.problems.add(value.place, message, "add `use_spot: true` under `resources:`")

    def _post_data(self, node: YamlNode | None) -> str | None:
        if node is None:
            return None
        if isinstance(node, YamlScalar):
            if not _is_json(node.text):
                message = "`service.readiness_probe.post_data` is a text that is not JSON"
                self.problems.add(node.place, message, "write a map; it is sent as JSON")
            return node.text
        try:
            return json.dumps(plain(node), ensure_ascii=False, allow_nan=False)
        except ValueError:
            self.problems.add(node.place, "`service.readiness_probe.post_data` holds a number that JSON cannot write")
            return None


def _lower(text: str | None) -> str | None:
    return None if text is None else text.lower()


def _is_json(text: str) -> bool:
    """Whether a text is JSON, or will be when its `$NAME`s are filled in, be it with a number."""
    return _parses(text) or _parses(substitute_json(text, dict.fromkeys(names_in(text), "0")))


def _parses(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
