"""`sky catalog`: of when the prices in use are and where they come from; newer ones; the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import click

from skyserve.cli import faults
from skyserve.cli.lazy import LazyGroup
from skyserve.cli.options import output_option
from skyserve.cli.render import ProgressRow
from skyserve.cli.session import Detached, Session, pass_session
from skyserve.errors import CatalogError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from skyserve.catalog.refresh.credentials import Credentials
    from skyserve.catalog.refresh.feed import Progress as Step
    from skyserve.catalog.refresh.run import Outcome
    from skyserve.catalog.row import Source
    from skyserve.catalog.snapshot import CloudStatus
    from skyserve.cli.render import Progress
    from skyserve.model.codec import JsonValue

_HEADERS = ("CLOUD", "ORIGIN", "PRICES", "ACCELERATORS", "REGIONS", "OLDEST", "NEWEST")
_BUILT_IN = "builtin"


class _Catalog(LazyGroup):
    commands_at: ClassVar[Mapping[str, str]] = {
        "status": "skyserve.cli.catalog:status",
        "refresh": "skyserve.cli.catalog:refresh",
        "use": "skyserve.cli.catalog:use",
    }


@click.group(cls=_Catalog, invoke_without_command=True)
@click.pass_context
def catalog(ctx: click.Context) -> None:
    """Look after the prices that plans are made with.

    \b
    Examples:
      sky catalog status
      sky catalog refresh
    """
    if ctx.invoked_subcommand is None:
        ctx.ensure_object(Session).screen.data(ctx.get_help())


@click.command()
@output_option
@pass_session
def status(session: Session) -> None:
    """Say which prices are in use: of which clouds, of when, from where.

    \b
    Example:
      sky catalog status
    """
    from skyserve.catalog import snapshot

    _show(session, snapshot.status(session.config.home))


@click.command()
@click.argument("path", metavar="PATH|builtin")
@output_option
@pass_session
def use(session: Session, path: str) -> None:
    """Use your own prices and no others: CSV files, or a directory of them; `builtin` goes back.

    They are copied. `builtin` gives up your own prices, or, when there are none, the refreshed ones.

    \b
    Examples:
      sky catalog use prices.csv
      sky catalog use builtin
    """
    from skyserve.catalog import snapshot

    home = session.config.home
    found = _go_back(home) if path == _BUILT_IN else snapshot.use(Path(path).expanduser(), home)
    _show(session, found)


@click.command()
@click.option("--cloud", "clouds", multiple=True, metavar="CLOUD", help="Only this cloud; may be given several times.")
@click.option(
    "--base-url",
    "base_urls",
    multiple=True,
    metavar="CLOUD=URL",
    help="Ask this address in place of the cloud's own, such as a mirror's.",
)
@output_option
@pass_session
def refresh(session: Session, clouds: tuple[str, ...], base_urls: tuple[str, ...]) -> None:
    """Fetch today's prices from the clouds, and use them.

    AWS and Azure need no key (spot prices of AWS do); GCP, Lambda and RunPod do: GOOGLE_API_KEY, LAMBDA_API_KEY,
    RUNPOD_API_KEY. A cloud that fails keeps its last prices. Interrupted, it goes on where it stopped.

    \b
    Examples:
      sky catalog refresh
      sky catalog refresh --cloud aws --cloud azure
    """
    from skyserve.catalog.refresh import run
    from skyserve.catalog.refresh.credentials import Credentials

    credentials = Credentials.from_environ(session.config.inherited_env)
    wanted = tuple(cloud.lower() for cloud in clouds) or run.askable(credentials)
    if not clouds:
        for cloud in run.CLOUDS:
            if cloud not in wanted:
                session.screen.say(f"{_title(cloud)} is left out: it wants a key; see sky catalog refresh --help")
    outcomes = _fetch(session, wanted, credentials, dict(_pair(text) for text in base_urls))
    _report(session, outcomes)


def _fetch(
    session: Session, clouds: Sequence[str], credentials: Credentials, base_urls: Mapping[str, str]
) -> Mapping[str, Outcome]:
    import asyncio

    from skyserve.catalog.refresh import run
    from skyserve.clock import SystemClock

    with session.screen.progress() as progress:
        work = run.refresh(
            session.config.home,
            clouds,
            credentials=credentials,
            base_urls=base_urls,
            clock=SystemClock(),
            progress=_shown(progress),
        )
        try:
            return asyncio.run(work)
        except KeyboardInterrupt:
            session.screen.say("\nInterrupted. The same command goes on from here; until then, prices are as before.")
            raise Detached from None


def _shown(progress: Progress) -> Callable[[Step], None]:
    """Off a terminal every new stage is a line, so a stage is a tenth of the way."""
    rows: dict[str, ProgressRow] = {}

    def show(step: Step) -> None:
        stage = f"{10 * step.done // step.total * 10}%" if step.total else "asking"
        count = f"{step.done}/{step.total}" if step.total else str(step.done or "")
        rows[step.cloud] = ProgressRow(_title(step.cloud), stage, f"{count} {step.step}".strip())
        progress.show(list(rows.values()))

    return show


def _report(session: Session, outcomes: Mapping[str, Outcome]) -> None:
    for outcome in outcomes.values():
        title = _title(outcome.cloud)
        if outcome.error is not None:
            session.screen.say(f"{title}: not refreshed, the last prices stay in use", "yellow")
            faults.explain(session.screen, outcome.error)
        elif not session.as_json:
            session.screen.data(f"{title}: {outcome.rows} prices")
        for note in outcome.notes:
            session.screen.say(f"{title}: {note}")
    if session.as_json:
        session.screen.json({"clouds": [_outcome_document(outcome) for outcome in outcomes.values()]})
    if any(outcome.error for outcome in outcomes.values()):
        raise click.exceptions.Exit(1)


def _outcome_document(outcome: Outcome) -> JsonValue:
    return {
        "cloud": outcome.cloud,
        "rows": outcome.rows,
        "resumed": outcome.resumed,
        "notes": list(outcome.notes),
        "error": faults.document(outcome.error) if outcome.error else None,
    }


def _go_back(home: Path) -> tuple[CloudStatus, ...]:
    """Give up the user's own prices, else the refreshed ones; and whatever is damaged."""
    from skyserve.catalog import snapshot

    try:
        own = any(one.origin is snapshot.Origin.CHOSEN for one in snapshot.status(home))
    except CatalogError:
        own = True
    snapshot.use_built_in(home)
    if own:
        try:
            return snapshot.status(home)
        except CatalogError:
            pass  # the refreshed ones are damaged
    snapshot.forget_refreshed(home)
    return snapshot.status(home)


def _show(session: Session, found: Sequence[CloudStatus]) -> None:
    if session.as_json:
        session.screen.json({"clouds": [_status_document(one) for one in found]})
        return
    for line in session.screen.table("Prices in use", _HEADERS, [_row(one) for one in found]):
        session.screen.data(line)
    told = [f"  {_title(one.summary.cloud)}: {_source_text(source)}" for one in found for source in one.summary.sources]
    for line in ("", "Sources", *dict.fromkeys(told)):
        session.screen.data(line)


def _source_text(source: Source) -> str:
    return f"{source.title} ({source.note})" if source.note else source.title


def _row(one: CloudStatus) -> tuple[str, ...]:
    summary = one.summary
    counts = (summary.rows, len(summary.accelerators), len(summary.regions))
    dates = (summary.first_date, summary.last_date)
    return (_title(summary.cloud), one.origin.value, *map(str, counts), *dates)


def _status_document(one: CloudStatus) -> JsonValue:
    from skyserve.model.codec import to_json

    return {"origin": one.origin.value, "summary": to_json(one.summary)}


def _pair(text: str) -> tuple[str, str]:
    cloud, found, url = text.partition("=")
    if not (cloud and found and url):
        raise UsageError(f"--base-url {text}: no CLOUD=URL", hint="--base-url aws=http://127.0.0.1:8000")
    return cloud, url


def _title(cloud: str) -> str:
    from skyserve.providers import registry

    return registry.title(cloud)
