"""Kubernetes as a provider: kubeconfig contexts are regions, a replica is a Pod.

Knows how objects of a cluster are made, listed and removed for a replica; what they contain is `kubernetes.manifests`,
what they say `kubernetes.pods`, what nodes can give `kubernetes.nodes`, how servers are found and talked to
`kubernetes.config` and `kubernetes.api`. Must not know what a replica is for.

    kubernetes/contexts/<digest>        the name of a context that may hold objects of ours: only those are listed
    logs/kubernetes/<service>/<pod>     output of pods that were ended
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from skyserve.clock import Clock
from skyserve.config import Config
from skyserve.errors import (
    CapacityUnavailable,
    CredentialsRejected,
    OrderRejected,
    ProviderError,
    ProviderUnavailable,
)
from skyserve.model.evidence import Instance, InstanceState
from skyserve.model.offering import Location
from skyserve.model.resources import ResourceChoice
from skyserve.providers.base import (
    Candidates,
    Capabilities,
    CheckResult,
    Exit,
    Feature,
    LaunchOrder,
    OrderOf,
    Provider,
)
from skyserve.providers.identity import installation
from skyserve.providers.kubernetes import manifests as manifests
from skyserve.providers.kubernetes import nodes as supply
from skyserve.providers.kubernetes import pods as pods
from skyserve.providers.kubernetes.api import AlreadyThere, Api, NotThere, Outdated, follow
from skyserve.providers.kubernetes.config import IN_CLUSTER, TITLE, Contexts
from skyserve.providers.kubernetes.manifests import Archive, Names
from skyserve.providers.kubernetes.objects import Object, at, digest, instant, label_value, listed, strings, text

NODES = "/api/v1/nodes"
_ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_AUTOSCALER_STATUS = "/api/v1/namespaces/kube-system/configmaps/cluster-autoscaler-status"
_SCHEDULER_PATIENCE_S = 3
_CONTEXT_TIMEOUT_S = 12.0
_LOG_PATIENCE_S = 5.0
_ROOM_RETRY_S = 10.0  # other pods of the cluster come and go at any time
_KEPT_LINES, _KEPT_LOGS = 10_000, 50
_WATCH_RETRY_S = 5.0
_FILES_IDLE_S = 3600.0
_CONTENTION_TRIES = 3
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


def provider(config: Config, clock: Clock) -> Provider:
    """The clusters of the kubeconfig; see `registry`. Raises NotConfigured where there are none."""
    return KubernetesProvider(config, clock, Contexts(config))


class KubernetesProvider:
    """Replicas as Pods. `inside` tells whether pods' own addresses can be reached; it is found out unless given."""

    name = supply.CLOUD
    title = TITLE
    capabilities = Capabilities(
        spot=True,
        delivers=frozenset(Feature) - {Feature.IMAGE, Feature.DISK_TIER},
        cannot={
            Feature.IMAGE.value: "pods run container images: write image_id: docker:NAME",
            Feature.DISK_TIER.value: "a pod's disk is that of its node",
            "stop": "a pod cannot be halted and keep its disk",
        },
        poll_interval_s=5.0,
        listing_grace_s=10.0,
    )

    def __init__(self, config: Config, clock: Clock, contexts: Contexts, *, inside: bool | None = None) -> None:
        self._config = config
        self._clock = clock
        self._contexts = contexts
        self._inside = contexts.names == (IN_CLUSTER,) if inside is None else inside
        self._used_dir = config.home / "kubernetes/contexts"
        self._log_dir = config.home / "logs/kubernetes"
        self._changed: Callable[[], None] | None = None
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._ending: set[str] = set()
        self._seen: dict[str, Instance] = {}
        self._noticed_at: dict[str, float] = {}
        self._launches: Counter[str] = Counter()
        self._launching: Counter[str] = Counter()  # by instance id, the calls that are under way

    def listen(self, changed: Callable[[], None], order_of: OrderOf) -> None:
        """Watch the pods and nodes of every context in use from now on."""
        self._changed = changed
        self._watch_all()

    async def check(self) -> CheckResult:
        """Usable when one context answers and lets us make pods."""
        told = await asyncio.gather(*(self._check_context(context) for context in self._contexts.names))
        usable = any(result.usable for result in told)
        first = next((result for result in told if result.usable == usable), None)
        if first is None:
            hint = "name one of `kubectl config get-contexts` in allowed_contexts of ~/.sky/config.yaml"
            return CheckResult(False, "none of the contexts is allowed", hint)
        return CheckResult(usable, "; ".join(result.reason for result in told), "" if usable else first.hint)

    async def offerings(self, want: ResourceChoice) -> Candidates:
        """One offering for each context and alternative that its nodes could satisfy if they were empty."""
        names = self._contexts.names
        answers = await asyncio.gather(*(self._nodes_or_refusal(context) for context in names))
        found = Candidates()
        for alternative in want.alternatives:
            for context, nodes in zip(names, answers, strict=True):
                offer = nodes if isinstance(nodes, str) else supply.offering_of(context, nodes, alternative)
                if isinstance(offer, str):
                    found = replace(found, refusals=(*found.refusals, (f"{TITLE} {context}", offer)))
                else:
                    found = replace(found, offerings=(*found.offerings, offer))
        return Candidates(tuple(dict.fromkeys(found.offerings)), tuple(dict.fromkeys(found.refusals)))

    async def launch(self, order: LaunchOrder) -> Instance:
        """Make the pod and what it needs, and wait a moment for the scheduler's word: it may find no node."""
        context = order.offering.location.region
        archive = await asyncio.to_thread(manifests.pack, order)
        names = Names.of(order, installation(self._config))
        made = f"{context}/{names.pod}"
        self._launches[context] += 1
        self._launching[made] += 1
        try:
            self._mark_used(context)
            async with self._api(context) as api:
                return await self._launch(api, context, order, names, archive)
        finally:
            self._launching[made] -= 1

    async def instances(self) -> Sequence[Instance]:
        """Our pods in all contexts in use; if one of these does not answer, nothing is known."""
        found = await asyncio.gather(*(self._list(context) for context in self._used()))
        listed_now = {one.id: one for part in found for one in part if one.id in self._seen or self._is_accepted(one)}
        for gone in self._seen.keys() - listed_now.keys() - self._ending:
            listed_now[gone] = _taken_away(self._seen[gone])  # it stays listed until its end is ordered
        self._ending &= listed_now.keys()
        self._seen = listed_now
        return tuple(listed_now.values())

    async def terminate(self, instance_id: str) -> None:
        """Keep the end of the pod's output, then delete it with all that is its own."""
        context, _, pod = instance_id.rpartition("/")
        if context not in self._used() or not _SAFE_NAME.fullmatch(pod):
            return
        self._ending.add(instance_id)
        async with self._api(context) as api:
            with contextlib.suppress(ProviderError, TimeoutError):
                await asyncio.wait_for(self._keep_log(api, pod), _LOG_PATIENCE_S)
            await _end_pod(api, pod)
            for kind in ("services", "secrets"):
                await _remove(api, api.path(kind, pod))

    async def stop(self, instance_id: str) -> None:
        """Raises OrderRejected."""
        raise OrderRejected("a pod cannot be halted and keep its disk; it can only be ended")

    async def start(self, instance_id: str) -> None:
        """Raises OrderRejected."""
        raise OrderRejected("a pod cannot be halted, nor started again")

    async def execute(self, instance_id: str, script: str, env: Mapping[str, str]) -> AsyncIterator[bytes | Exit]:
        """Run a script in the container, with the variables of its application."""
        context, _, pod = instance_id.rpartition("/")
        if context not in self._used() or not _SAFE_NAME.fullmatch(pod):
            raise OrderRejected(f"there is no pod {instance_id}")
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items())
        stdin = f"{exports}{script}\0".encode(errors="surrogateescape")
        command = ("bash", "-c", manifests.EXECUTOR)
        async with self._api(context) as api:
            try:
                if not pods.has_begun(seen := await api.get(api.path("pods", pod))) or pods.is_over(seen):
                    raise OrderRejected(f"nothing runs in {instance_id} now")
                async for piece in api.execute(api.path("pods", pod), command, stdin):
                    yield Exit(piece) if isinstance(piece, int) else piece
            except NotThere as error:
                raise OrderRejected(f"there is no pod {instance_id}") from error

    async def logs(self, instance_id: str, *, follow: bool, tail: int | None) -> AsyncIterator[bytes]:
        """The container's output, from the cluster or from what was kept of it."""
        context, _, pod = instance_id.rpartition("/")
        if not _SAFE_NAME.fullmatch(pod):
            return
        if context in self._used():
            async with self._api(context) as api:
                with contextlib.suppress(NotThere):
                    if await self._has_output(api, pod, wait=follow):
                        query = {"follow": "true"} if follow else {}
                        query |= {} if tail is None else {"tailLines": str(tail)}
                        async for data in api.stream(f"{api.path('pods', pod)}/log", **query):
                            yield data
                    return
        for kept in self._log_dir.glob(f"*/{pod}"):
            lines = (await asyncio.to_thread(kept.read_bytes)).splitlines(keepends=True)
            yield b"".join(lines if tail is None else lines[max(0, len(lines) - tail) :])

    async def release(self, service: str) -> None:
        """Remove every object and kept log of a service, and forget contexts that hold nothing of ours any more."""
        for context in self._used():
            ours = self._selector(context, service)
            async with self._api(context) as api:
                for kind in ("pods", "services", "secrets"):
                    for thing in await api.find_metadata(api.path(kind), labelSelector=ours):
                        name = text(thing, "metadata", "name")
                        self._ending.add(pods.instance_id(context, thing))
                        await (_end_pod(api, name) if kind == "pods" else _remove(api, api.path(kind, name)))
                await self._forget_if_empty(api, context)
        await asyncio.to_thread(shutil.rmtree, self._log_dir / label_value(service), ignore_errors=True)

    async def close(self) -> None:
        """Give up the watches; pods go on."""
        watches = list(self._watching.values())
        self._watching.clear()
        self._changed = None
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)

    # -- launch

    async def _launch(
        self, api: Api, context: str, order: LaunchOrder, names: Names, archive: Archive | None
    ) -> Instance:
        nodes = [supply.node_of(node) for node in await api.find(NODES)]
        terms = supply.selector_terms(nodes, order.offering)
        if not terms:
            raise CapacityUnavailable(f"no node of context {context} has what {order.offering.shape} needs any more")
        pod = manifests.pod(order, names, terms, archive)
        secret, service = manifests.order_secret(order, names, archive), manifests.service(order, names)
        if archive:
            await self._deliver_files(api, names, archive)
        helpers: Sequence[tuple[str, Object]] = (("secrets", secret), ("services", service))[: 1 if self._inside else 2]
        for kind, body in helpers:  # before the pod: once that is listed, nobody asks for the launch again
            with contextlib.suppress(AlreadyThere):
                await api.create(api.path(kind), body)
        made = await self._create_or_get(api, pod, names)
        owner = manifests.owned_by(names.pod, text(made, "metadata", "uid"))
        for kind, _ in helpers:
            with contextlib.suppress(NotThere):
                await api.patch(api.path(kind, names.pod), owner)
        self._mark_used(context)
        self._watch_all()
        made = await self._scheduled(api, made)
        if why := pods.why_unschedulable(made):
            await self._expect_a_node(api, context, names, nodes, why)
        return self._judge(context, made, None, {})

    async def _create_or_get(self, api: Api, pod: Object, names: Names) -> Object:
        for _ in range(_CONTENTION_TRIES):
            try:
                return await api.create(api.path("pods"), pod)
            except AlreadyThere:
                with contextlib.suppress(NotThere):
                    return await api.get(api.path("pods", names.pod))
        raise ProviderUnavailable(f"pod {names.pod} comes and goes: somebody else deletes it")

    async def _deliver_files(self, api: Api, names: Names, archive: Archive) -> None:
        """Put a version's files into the cluster, unless another replica has; then sweep away those of old versions."""
        secrets = api.path("secrets")
        ours = self._selector(names.context, names.service)
        found = {
            text(secret, "metadata", "name"): secret
            for secret in await api.find_metadata(secrets, labelSelector=f"{ours},{manifests.LABEL_FILES}")
        }
        lacking = [one for one in manifests.file_secrets(names, archive) if text(one, "metadata", "name") not in found]
        for secret in lacking:
            with contextlib.suppress(AlreadyThere):
                await api.create(secrets, secret)
        if not lacking:
            return
        living = await api.find_metadata(api.path("pods"), labelSelector=ours)
        used = {strings(pod, "metadata", "annotations").get(manifests.LABEL_FILES) for pod in living} | {archive.name}
        for name, old in found.items():
            made_at = instant(text(old, "metadata", "creationTimestamp")) or self._clock.now()
            idle = self._clock.now() - made_at > _FILES_IDLE_S  # a younger one may belong to a pod that comes yet
            if idle and strings(old, "metadata", "labels").get(manifests.LABEL_FILES) not in used:
                await _remove(api, api.path("secrets", name))

    async def _scheduled(self, api: Api, pod: Object) -> Object:
        """The pod as it is once the scheduler has judged it, or as it was if that takes too long."""
        name, since = text(pod, "metadata", "name"), text(pod, "metadata", "resourceVersion")
        if pods.is_scheduled(pod) or pods.why_unschedulable(pod):
            return pod
        only_it = {"fieldSelector": f"metadata.name={name}"}
        patience = _SCHEDULER_PATIENCE_S
        with contextlib.suppress(Outdated):
            async for event in api.watch(api.path("pods"), only_it, since=since, seconds=patience):
                seen = event.get("object")
                if isinstance(seen, Mapping) and (pods.is_scheduled(seen) or pods.why_unschedulable(seen)):
                    return seen
        return pod

    async def _expect_a_node(
        self, api: Api, context: str, names: Names, nodes: Sequence[supply.Node], why: str
    ) -> None:
        """Let the pod wait where an autoscaler may add a node; otherwise take it back and refuse."""
        if any(node.autoscaled for node in nodes):
            return
        with contextlib.suppress(NotThere, CredentialsRejected):
            await api.get(_AUTOSCALER_STATUS)
            return
        for kind in ("pods", "services", "secrets"):
            await _remove(api, api.path(kind, names.pod))
        raise CapacityUnavailable(
            f"context {context} has no node free: {why}",
            hint=f"kubectl --context {context} describe nodes shows who uses them",
            retry_after_s=_ROOM_RETRY_S,
        )

    # -- listing

    def _is_accepted(self, instance: Instance) -> bool:
        """Whether its launch is over: until then it may yet be refused."""
        return not self._launching[instance.id]

    async def _list(self, context: str) -> list[Instance]:
        ours = self._selector(context)
        async with self._api(context) as api:
            made = await api.find(api.path("pods"), labelSelector=ours)
            services: list[Object] = []
            nodes: list[Object] | None = []
            if made:
                services = [] if self._inside else await api.find(api.path("services"), labelSelector=ours)
                nodes = await _nodes_if_allowed(api)
        by_node = None if nodes is None else {text(node, "metadata", "name"): node for node in nodes}
        by_service = {text(service, "metadata", "name"): service for service in services}
        return [self._judge(context, pod, by_node, by_service) for pod in made]

    def _judge(
        self, context: str, pod: Object, nodes: Mapping[str, Object] | None, services: Mapping[str, Object]
    ) -> Instance:
        node = (nodes or {}).get(text(pod, "spec", "nodeName"))
        if pods.is_marked_ended(pod):  # by a controller before this one
            self._ending.add(pods.instance_id(context, pod))
        ending = pods.instance_id(context, pod) in self._ending
        scene = pods.Scene(
            node=node,
            service=services.get(text(pod, "metadata", "name")),
            nodes_known=nodes is not None,
            ending=ending,
            inside=self._inside,
            now=self._clock.now(),
        )
        instance = pods.instance_of(context, pod, scene)
        notice = None if ending else pods.notice_of(pod, node)
        if notice is None:
            return instance
        noticed_at = self._noticed_at.setdefault(notice.key, self._clock.now())
        return replace(instance, reclaim_at=noticed_at + notice.warning_s if notice.at is None else notice.at)

    # -- contexts

    def _selector(self, context: str, service: str | None = None) -> str:
        """What our objects in a context are found by, all or those of one service."""
        only = {} if service is None else {manifests.LABEL_SERVICE: service}
        return manifests.selector(installation(self._config), context, **only)

    @contextlib.asynccontextmanager
    async def _api(self, context: str) -> AsyncIterator[Api]:
        try:
            access = await self._contexts.access(context)
            async with Api(context, access, str(Location(self.name, context))) as api:
                yield api
        except CredentialsRejected:
            self._contexts.forget(context)
            raise
        except ProviderUnavailable as error:
            if (mark := self._mark(context)).exists():
                hint = f"{error.hint}; if that cluster is gone for good: rm {mark}"  # and all of ours with it
                raise ProviderUnavailable(error.message, hint=hint) from error
            raise

    def _mark(self, context: str) -> Path:
        return self._used_dir / digest(context)

    def _mark_used(self, context: str) -> None:
        """Remember, before anything is made there, that this context must be listed."""
        mark = self._mark(context)
        if not mark.exists():
            self._used_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            mark.write_text(context)

    def _used(self) -> list[str]:
        return sorted(mark.read_text() for mark in self._used_dir.glob("*"))

    async def _forget_if_empty(self, api: Api, context: str) -> None:
        before = self._launches[context]
        ours = self._selector(context)
        pods_left = await api.find_metadata(api.path("pods"), labelSelector=ours)
        files_left = await api.find_metadata(api.path("secrets"), labelSelector=ours)
        busy = any(count for made, count in self._launching.items() if made.startswith(f"{context}/"))
        if not pods_left and not files_left and not busy and self._launches[context] == before:
            self._mark(context).unlink(missing_ok=True)

    async def _check_context(self, context: str) -> CheckResult:
        try:
            async with asyncio.timeout(_CONTEXT_TIMEOUT_S), self._api(context) as api:
                answer = await api.create(_ACCESS_REVIEWS, _may_create_pods(api.namespace))
                nodes = await api.find(NODES)
        except ProviderError as error:
            return CheckResult(False, f"{context}: {error.message}", error.hint or "")
        except TimeoutError:
            return CheckResult(False, f"{context} does not answer", f"kubectl --context {context} get nodes")
        if at(answer, "status", "allowed") is not True:
            hint = f"kubectl --context {context} auth can-i create pods"
            return CheckResult(False, f"{context}: you may not create pods in namespace {api.namespace}", hint)
        return CheckResult(True, f"{context} ({len(nodes)} node{'' if len(nodes) == 1 else 's'})")

    async def _nodes_or_refusal(self, context: str) -> list[supply.Node] | str:
        try:
            async with asyncio.timeout(_CONTEXT_TIMEOUT_S), self._api(context) as api:
                return [supply.node_of(node) for node in await api.find(NODES)]
        except ProviderError as error:
            return error.message
        except TimeoutError:
            return f"context {context} does not answer"

    # -- news

    def _watch_all(self) -> None:
        """Watch every context in use that is not watched yet."""
        if self._changed is None:
            return
        for context in self._used():
            task = self._watching.get(context)
            if task is None or task.done():
                self._watching[context] = asyncio.get_running_loop().create_task(self._watch(context, self._changed))

    async def _watch(self, context: str, changed: Callable[[], None]) -> None:
        """Tell of changes for as long as the context is in use; a watch that breaks off is begun anew."""
        ours = self._selector(context)
        while self._mark(context).exists():
            try:
                async with self._api(context) as api, asyncio.TaskGroup() as group:
                    group.create_task(follow(api, api.path("pods"), lambda _: changed(), labelSelector=ours))
                    group.create_task(follow(api, NODES, _NodeNews(changed)))
            except* (ProviderError, NotThere):
                changed()  # whoever asks now learns what is wrong
            await self._clock.sleep(_WATCH_RETRY_S)

    # -- logs

    async def _has_output(self, api: Api, pod: str, *, wait: bool) -> bool:
        """Whether there is output; with `wait`, once there is, or once there never will be. Raises NotThere."""
        while True:
            seen = await api.get(api.path("pods", pod))
            if pods.has_begun(seen):
                return True
            if not wait or pods.is_over(seen):
                return False
            await self._clock.sleep(0.5)

    async def _keep_log(self, api: Api, pod: str) -> None:
        try:
            seen = await api.get(api.path("pods", pod))
            if not pods.has_begun(seen):
                return
            query = {"tailLines": str(_KEPT_LINES)}
            data = b"".join([piece async for piece in api.stream(f"{api.path('pods', pod)}/log", **query)])
        except NotThere:
            return
        service = strings(seen, "metadata", "annotations").get(manifests.LABEL_SERVICE, "")
        await asyncio.to_thread(_write_log, self._log_dir / label_value(service), pod, data)


def _taken_away(instance: Instance) -> Instance:
    """A pod that somebody else deleted whole."""
    if instance.state is InstanceState.EXITED:
        return instance
    detail = instance.detail or "the pod is gone, and we did not delete it"
    return replace(instance, state=InstanceState.PREEMPTED, address=None, detail=detail)


class _NodeNews:
    """Calls `changed` when a node comes, goes, or may be about to go; not for its heartbeats."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._known: dict[str, object] = {}

    def __call__(self, event: Object) -> None:
        node = event.get("object")
        name, uid = text(node, "metadata", "name"), text(node, "metadata", "uid")
        conditions = [(text(one, "type"), text(one, "status")) for one in listed(node, "status", "conditions")]
        leaving = text(event, "type") == "DELETED" or text(node, "metadata", "deletionTimestamp")
        facts = (leaving, uid, listed(node, "spec", "taints"), sorted(conditions))
        before = self._known.get(name)
        self._known[name] = facts
        if before != facts:
            self._changed()


def _may_create_pods(namespace: str) -> Object:
    """The question whether we may."""
    attributes = {"verb": "create", "resource": "pods", "namespace": namespace}
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }


async def _nodes_if_allowed(api: Api) -> list[Object] | None:
    try:
        return await api.find(NODES)
    except CredentialsRejected:  # pods of a namespace may be seen by users who may not see the cluster's nodes
        return None


async def _end_pod(api: Api, pod: str) -> None:
    """Delete a pod. On a node that is gone nobody is left to say that it has ended, so it is struck off at once."""
    with contextlib.suppress(NotThere):
        seen = await api.patch(
            api.path("pods", pod), manifests.MARKED_ENDED
        )  # a later controller knows whose wish it was
        node, grace = text(seen, "spec", "nodeName"), {}
        if node:
            try:
                await api.get(f"{NODES}/{node}")
            except NotThere:
                grace = {"gracePeriodSeconds": "0"}
            except CredentialsRejected:  # see `_nodes_if_allowed`
                pass
        await api.delete(api.path("pods", pod), **grace)


async def _remove(api: Api, path: str) -> None:
    with contextlib.suppress(NotThere):
        await api.delete(path)


def _write_log(directory: Path, pod: str, data: bytes) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / pod
    path.touch(mode=0o600)
    path.write_bytes(data)
    kept = sorted(directory.iterdir(), key=lambda log: log.stat().st_mtime)
    _discard(kept[:-_KEPT_LOGS])


def _discard(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
