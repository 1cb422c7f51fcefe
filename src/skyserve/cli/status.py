"""`sky serve status`: the two tables, once or again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from skyserve.cli.options import output_option
from skyserve.cli.session import Session, not_found, pass_session
from skyserve.errors import UsageError

if TYPE_CHECKING:
    from skyserve.model.codec import JsonValue
    from skyserve.model.view import ServiceView

_WATCH_S = 2.0


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--verbose", "-v", is_flag=True, help="Show policies and requested resources too.")
@click.option("--endpoint", is_flag=True, help="Print only the endpoint's URL, of exactly one service.")
@click.option("--watch", "-w", is_flag=True, help="Show it again whenever it changes, until Ctrl-C.")
@output_option
@pass_session
def status(session: Session, names: tuple[str, ...], verbose: bool, endpoint: bool, watch: bool) -> None:
    """Show services and their replicas.

    Shows all services, or those with the given names.

    \b
    Examples:
      sky serve status
      sky serve status mixtral --watch
      curl $(sky serve status mixtral --endpoint)/v1/models
    """
    if endpoint:
        _print_endpoint(session, names)
    elif watch:
        _watch(session, names, verbose=verbose)
    elif session.as_json:
        session.screen.json(_document(_chosen(session, names)))
    else:
        for line in _lines(session, _chosen(session, names), verbose=verbose):
            session.screen.data(line)


def _chosen(session: Session, names: Sequence[str]) -> list[ServiceView]:
    views = session.services()
    by_name = {view.name: view for view in views}
    for name in names:
        if name not in by_name:
            raise not_found(name, by_name)
    return [view for view in views if not names or view.name in names]


def _print_endpoint(session: Session, names: Sequence[str]) -> None:
    if len(names) != 1:
        raise UsageError("--endpoint wants exactly one service", hint="sky serve status NAME --endpoint")
    (view,) = _chosen(session, names)
    if session.as_json:
        session.screen.json({"name": view.name, "endpoint": view.endpoint or None})
    else:
        session.screen.data(view.endpoint or "-")


def _document(views: Sequence[ServiceView]) -> JsonValue:
    from skyserve.model.codec import to_json

    return {"services": [to_json(view) for view in views]}


def _lines(session: Session, views: Sequence[ServiceView], *, verbose: bool) -> list[str]:
    from skyserve.cli import tables

    if not views:
        return ["No existing services."]
    headers = tables.SERVICE_HEADERS_VERBOSE if verbose else tables.SERVICE_HEADERS
    services = [tables.service_row(view, verbose=verbose) for view in views]
    replicas = [replica for view in views for replica in view.replicas]
    rows = [tables.replica_row(replica, session.now()) for replica in replicas]
    lines = [*session.screen.table("Services", headers, services), ""]
    if rows:
        expendable = () if verbose else tables.REPLICA_EXPENDABLE
        lines += session.screen.table("Service Replicas", tables.REPLICA_HEADERS, rows, expendable=expendable)
    else:
        lines.append("No existing replicas.")
    troubles = tables.troubles(replicas)
    told = {line.strip() for block in troubles for line in block}
    notes = [f"{view.name}: {remark}" for view in views if (remark := tables.remark(view)) and remark not in told]
    for block in (notes, *(tables.rollout_lines(view) for view in views), *troubles):
        lines += ["", *block] if block else []
    return lines


def _watch(session: Session, names: Sequence[str], *, verbose: bool) -> None:
    if session.as_json:
        _repeat(session, names, lambda views: session.screen.json(_document(views), line=True))
    with session.screen.repainted() as paint:
        _repeat(session, names, lambda views: paint(_lines(session, views, verbose=verbose)))


def _repeat(session: Session, names: Sequence[str], show: Callable[[Sequence[ServiceView]], None]) -> None:
    shown: list[ServiceView] | None = None
    while True:
        views = _chosen(session, names)
        if session.screen.redraws_data or views != shown:
            show(views)
        shown = views
        session.sleep(_WATCH_S)
