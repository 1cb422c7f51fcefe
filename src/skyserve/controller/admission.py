"""What a spec needs before it becomes a version: that it can work here at all, and a word on what may surprise."""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
from collections.abc import Mapping

from skyserve.config import ENDPOINT_PORTS
from skyserve.controller.offers import Offered
from skyserve.errors import Infeasible, UsageError
from skyserve.model.offering import CapacityType
from skyserve.model.service import Kind, ReplicaTls, ServiceSpec, Tls
from skyserve.providers.base import Provider
from skyserve.spec.fields import SERVICE_NAME, SERVICE_NAME_FORM
from skyserve.spec.listening import PORT_VARIABLE, asks_for_its_port, hard_codes_port
from skyserve.trust import context_for


def refuse_impossible(spec: ServiceSpec) -> None:
    """Raise UsageError for what is understood but cannot be done yet: better now than as a service that fails.

    The name becomes part of paths and tags, so it is looked at again, whoever sent it.
    """
    if not re.fullmatch(SERVICE_NAME, spec.name):
        raise UsageError(f"the service's name must be {SERVICE_NAME_FORM}, not {spec.name!r:.80}")
    if spec.num_nodes > 1:
        raise UsageError(
            f"num_nodes: {spec.num_nodes} asks for replicas of several machines: not supported yet",
            hint="use an instance with more accelerators, or num_nodes: 1",
        )
    strange = [name for name in spec.load_balancer.api_keys if name not in spec.secrets]
    if strange:
        raise UsageError(
            f"service.load_balancer.api_keys: {strange[0]!r:.80} is no secret of this service",
            hint="name it under `secrets:`",
        )
    if spec.tls is not None:
        _refuse_certificate(spec.tls)
    if spec.replica_tls is not None:
        _refuse_authority(spec.replica_tls)


def _refuse_certificate(tls: Tls) -> None:
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(tls.certfile, tls.keyfile, password="")
    except OSError as error:  # ssl.SSLError is one
        raise UsageError(
            f"tls: {tls.keyfile} and {tls.certfile} cannot be used: {error}",
            hint="give a PEM key without a passphrase and the chain of its certificate, on the controller's machine",
        ) from error


def _refuse_authority(tls: ReplicaTls) -> None:
    try:
        context_for(tls)
    except OSError as error:  # ssl.SSLError is one
        raise UsageError(
            f"replica_tls: {tls.ca_file} cannot be used: {error}",
            hint="give certificates in PEM, on the controller's machine",
        ) from error


def refuse_crowding(spec: ServiceSpec, offered: Offered, providers: Mapping[str, Provider]) -> None:
    """Raise UsageError for replicas that would all have to listen on one port of one host: all but one could not."""
    able = [providers[name].capabilities for name in {offering.provider for offering in offered.offerings}]
    if not able or not all(can.one_host and can.shares_host for can in able):
        return
    most = spec.replica_policy.max_replicas
    if most > 1 and hard_codes_port(spec.run, spec.port):
        raise UsageError(
            f"run listens on port {spec.port}, which only one of {most} replicas on this machine can have",
            hint=f"let run listen on {PORT_VARIABLE}, or use one replica",
        )


def warnings(spec: ServiceSpec, offered: Offered, providers: Mapping[str, Provider]) -> tuple[str, ...]:
    """Things that are allowed and may still surprise."""
    return (*_about_ports(spec, offered, providers), *_about_spot(spec, offered))


def about_endpoint(spec: ServiceSpec, host: str) -> tuple[str, ...]:
    """A word on an endpoint at `host` that anybody may use who reaches it, when those are others than its owner."""
    if spec.kind is not Kind.SERVICE or spec.load_balancer.api_keys or _is_loopback(host):
        return ()
    return (
        f"the endpoint listens on {host}, which other machines can reach, and asks nobody for an API key; "
        "to be asked: add a secret, and its name to `service.load_balancer.api_keys`",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _about_ports(spec: ServiceSpec, offered: Offered, providers: Mapping[str, Provider]) -> tuple[str, ...]:
    names = {offering.provider for offering in offered.offerings}
    shared = sorted(providers[name].title for name in names if providers[name].capabilities.shares_host)
    if not shared or spec.replica_policy.max_replicas < 2 or asks_for_its_port(spec.run):
        return ()
    where = ", ".join(shared)
    return (
        f"run does not mention $PORT: where replicas share a host ({where}), only one of them can listen on "
        f"{spec.port}; let it listen on {PORT_VARIABLE}",
    )


def _about_spot(spec: ServiceSpec, offered: Offered) -> tuple[str, ...]:
    stands_in = any(offering.capacity_type is not CapacityType.SPOT for offering in offered.offerings)
    if not spec.on_spot or not offered.offerings or not spec.replica_policy.may_use_on_demand or stands_in:
        return ()
    return ("no on-demand machine satisfies `resources`, so nothing stands in while spot capacity is missing",)


def free_endpoint_port(host: str, taken: frozenset[int]) -> int:
    """The lowest endpoint port that neither a service nor any other program uses. Raises Infeasible when all are."""
    for port in ENDPOINT_PORTS:
        if port not in taken and _bindable(host, port):
            return port
    first, last = ENDPOINT_PORTS[0], ENDPOINT_PORTS[-1]
    raise Infeasible(f"every endpoint port from {first} to {last} is taken", hint="take a service down")


def _bindable(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
