"""The versions of a service: what became of each, what it changed, and which one to go back to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from skyserve.errors import UsageError
from skyserve.model.codec import to_json
from skyserve.model.service import ServiceSpec
from skyserve.model.view import HistoryView, VersionView
from skyserve.store.base import ServiceState, StoredVersion

_ASIDE = frozenset({"name", "source", "kind"})


def history_view(state: ServiceState, stored: Sequence[StoredVersion]) -> HistoryView:
    """All versions that are kept, oldest first."""
    rows = [_version_view(state, one, stored[:place]) for place, one in enumerate(stored)]
    return HistoryView(tuple(rows), current=_carrier(state), back_to=_earlier(state, stored))


def target(state: ServiceState, stored: Sequence[StoredVersion], to: int | None) -> StoredVersion:
    """The version to go back to: the one asked for, or the one that served before. Raises UsageError."""
    known = {one.version: one for one in stored}
    look = f"`sky serve history {state.name}` lists the versions"
    if to is None:
        rejected = state.memory.rollout.rejection(state.latest_version)
        if rejected is not None:
            again = _carrier(state)
            what = f"version {rejected.version} was rolled back already: {state.name!r} has version {again} again"
            raise UsageError(what, hint=f"`--to N` names another version; {look}")
        to = _earlier(state, stored)
    if to is None:
        raise UsageError(f"no version of {state.name!r} served before version {state.latest_version}", hint=look)
    if to not in known:
        raise UsageError(f"version {to} of {state.name!r} is not kept", hint=look)
    if to == state.latest_version or (to == _carrier(state) and state.memory.rollout.rejection(state.latest_version)):
        raise UsageError(f"{state.name!r} aims for version {to} already", hint=look)
    return known[to]


def _carrier(state: ServiceState) -> int:
    """The version that carries the service now."""
    good = state.memory.rollout.good
    return state.latest_version if good is None else good


def _earlier(state: ServiceState, stored: Sequence[StoredVersion]) -> int | None:
    """The version that an update under way replaces, or that served before the present one."""
    memory = state.memory.rollout
    if memory.good is not None and memory.good != state.latest_version and not memory.rejection(state.latest_version):
        return memory.good
    kept = {one.version for one in stored} - {_carrier(state)}
    return next((version for version in reversed(memory.served) if version in kept), None)


def _version_view(state: ServiceState, one: StoredVersion, before: Sequence[StoredVersion]) -> VersionView:
    status, why = _status(state, one.version)
    return VersionView(
        version=one.version,
        created_at=one.created_at,
        mode=one.mode.value,
        status=status,
        why=why,
        changes=tuple(_changes(one.spec, before)),
        source=one.spec.source,
    )


def _status(state: ServiceState, version: int) -> tuple[str, str]:
    memory = state.memory.rollout
    rejected = memory.rejection(version)
    if rejected is not None:
        return "rolled back", rejected.why
    if version == _carrier(state):
        return "current", ""
    if version == state.latest_version:
        stopped = memory.stopped if memory.version == version else ""
        return ("stopped", stopped) if stopped else ("rolling out", "")
    return ("replaced", "") if version in memory.served else ("superseded", "")


def _changes(spec: ServiceSpec, before: Sequence[StoredVersion]) -> Iterator[str]:
    """The keys in which a version differs from the one before it, or which earlier one it is over again."""
    if not before:
        return
    same = [one.version for one in before[:-1] if _flat(one.spec) == _flat(spec)]
    if same:
        yield f"as version {same[-1]}"
        return
    old, new = _flat(before[-1].spec), _flat(spec)
    yield from sorted(key for key in {*old, *new} if old.get(key) != new.get(key))


def _flat(spec: ServiceSpec) -> Mapping[str, object]:
    """Each leaf of a spec by its path."""
    found: dict[str, object] = {}

    def visit(path: str, value: object) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                if path or key not in _ASIDE:
                    visit(f"{path}.{key}" if path else key, item)
        else:
            found[path] = value

    visit("", to_json(spec))
    return found
