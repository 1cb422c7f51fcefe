"""`sky serve simulate`: what a service would cost and how it would fare, before anything is launched."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, Unpack

import click

from skyserve.cli import wording
from skyserve.cli.options import OverrideFlags, override_options
from skyserve.cli.session import Detached, Session, pass_session
from skyserve.errors import SkyServeError, UsageError

if TYPE_CHECKING:
    from skyserve.cli.market import MarketOf
    from skyserve.model.codec import JsonValue
    from skyserve.model.service import ServiceSpec
    from skyserve.sim.arrivals import Requests
    from skyserve.sim.cloud import Setting
    from skyserve.sim.load import Speed
    from skyserve.sim.market import Market
    from skyserve.sim.result import Run

F = TypeVar("F", bound=Callable[..., object])

_DAY_S = 86400.0
_LEFT_OUT_S = 3600.0
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": _DAY_S}
_FILE = click.Path(exists=True, dir_okay=False)
_POSITIVE = click.FloatRange(min=0, min_open=True)


class SimulateFlags(OverrideFlags):
    """The flags over the YAML, the world that is simulated, and what is made of it."""

    spot_trace: tuple[str, ...]
    capacity_factor: float
    price_scale: float
    requests: str | None
    rate_scale: float
    replica_speed: str | None
    days: float | None
    duration: str | None
    tick: float
    cold_start: float
    notice: float
    seed: int
    repeats: int
    compare: str | None
    picture: str | None


_OPTIONS = (
    click.option(
        "--spot-trace", multiple=True, type=_FILE, metavar="FILE", help="Recorded spot capacity; may be repeated."
    ),
    click.option(
        "--capacity-factor", type=_POSITIVE, default=1.0, metavar="X", help="Spot capacity, times this, rounded down."
    ),
    click.option("--price-scale", type=_POSITIVE, default=1.0, metavar="X", help="Spot prices, times this."),
    click.option("--requests", metavar="FILE|poisson:RATE", help="Request trace, or requests a second."),
    click.option("--rate-scale", type=_POSITIVE, default=1.0, metavar="X", help="Rate of the requests, times this."),
    click.option(
        "--replica-speed", metavar="IN:OUT:N", help="Tokens a second read, written for each of N requests at once."
    ),
    click.option("--days", type=_POSITIVE, metavar="N", help="Days to simulate; without it all of the trace, or 7."),
    click.option("--duration", metavar="TIME", help="As --days, with a unit: `36h`, `90m`, `2d`."),
    click.option(
        "--tick", type=_POSITIVE, default=20.0, show_default=True, metavar="SECONDS", help="Step of simulated time."
    ),
    click.option(
        "--cold-start",
        type=click.FloatRange(min=0),
        default=183.0,
        show_default=True,
        metavar="SECONDS",
        help="From a launch to the first answer.",
    ),
    click.option(
        "--notice",
        type=click.FloatRange(min=0),
        default=0.0,
        show_default=True,
        metavar="SECONDS",
        help="How long before it a preemption is announced.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="What all chance follows from."),
    click.option(
        "--repeats", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Runs, each by chance."
    ),
    click.option("--compare", metavar="NAMES", help="Placement policies, as in `spothedge+1,on-demand,ours`."),
    click.option("--picture", metavar="FILE", help="Draw what happened, as .png, .svg or .html."),
)


def _simulate_options(command: F) -> F:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("service_yaml", type=_FILE)
@_simulate_options
@override_options
@pass_session
def simulate(session: Session, service_yaml: str, **flags: Unpack[SimulateFlags]) -> None:
    """Run the service that SERVICE_YAML describes on a simulated market.

    The decisions are those of the real controller. Nothing is launched and no cloud is asked. Without --spot-trace the
    market is made up from the price lists; without --requests nobody asks for anything, and the number of replicas
    stays at its minimum.

    \b
    Examples:
      sky serve simulate service.yaml
      sky serve simulate service.yaml --spot-trace aws1.json.gz --compare spothedge+1,on-demand,ours
      sky serve simulate service.yaml --requests poisson:5 --days 2 --picture week.html
      sky serve simulate service.yaml --repeats 10 --output json
    """
    plan = _prepare(session, service_yaml, flags)
    for line in plan.lines():
        session.screen.say(line)
    try:
        _run(session, plan)
    except KeyboardInterrupt:
        session.screen.say(f"\nInterrupted: {len(plan.runs)} of {plan.wanted_runs} runs were done.")
        if plan.runs:
            _show(session, plan)
        raise Detached from None
    _show(session, plan)


@dataclass(eq=False)
class _Simulation:
    """What is to be simulated, and what has been."""

    name: str
    contenders: Mapping[str, ServiceSpec]
    market_of: MarketOf
    setting: Setting
    requests: Requests | None
    speed: Speed
    repeats: int
    picture: Path | None
    market: Market
    recorded: bool
    runs: list[Run] = field(default_factory=list)

    @property
    def wanted_runs(self) -> int:
        return len(self.contenders) * self.repeats

    @property
    def title(self) -> str:
        days = self.market.length_s / _DAY_S
        span = wording.count(round(days), "day") if days >= 2 else f"{days * 24:.3g} hours"
        several = self.repeats > 1 and not self.recorded
        return f"{self.name}: {span} on {f'{self.repeats} made-up markets' if several else self.market.name}"

    def lines(self) -> list[str]:
        """What is simulated, in words."""
        from skyserve.sim.load import requests_per_replica

        spot = self.market.spot
        zones = len({one.offering.location for one in spot})
        setting = self.setting
        lines = [
            f"Simulating {self.title}, {wording.count(len(spot), 'spot pool')} in {wording.count(zones, 'location')}",
            f"  a tick is {setting.tick_s:g}s, a cold start {setting.cold_start_s:g}s, "
            f"the first {wording.duration(setting.leave_out_s)} are not counted",
        ]
        if self.requests is not None:
            each = requests_per_replica(self.requests, self.speed)
            lines.append(f"  requests: {self.requests.text}; a replica can do {each:.3g} a second")
        return lines


def _prepare(session: Session, service_yaml: str, flags: SimulateFlags) -> _Simulation:
    """Refuse whatever is wrong before the long part begins."""
    from skyserve.cli import plan
    from skyserve.sim.cloud import Setting
    from skyserve.sim.compare import contenders
    from skyserve.sim.request_files import read_requests

    picture = _picture_path(flags["picture"])
    length_s = _length_s(flags["days"], flags["duration"])
    speed = _speed(flags["replica_speed"])
    loaded = plan.load(session, service_yaml, None, flags, key=plan.NO_KEY)
    specs = contenders(flags["compare"], loaded.spec)
    asked = flags["requests"]
    requests = None if asked is None else read_requests(asked, rate_scale=flags["rate_scale"])
    if flags["repeats"] > 1 and flags["spot_trace"] and requests is None:
        hint = "leave out --spot-trace, or add --requests"
        raise UsageError("there is no chance in a recorded market without requests: all runs would be alike", hint=hint)
    market_of = _market_of(session, next(iter(specs.values())), flags, length_s)
    market = market_of(flags["seed"])
    _warn_of_load(session, loaded.spec, requests, speed)
    if loaded.spec.num_nodes > 1:
        session.screen.warn(f"a replica counts as one machine: multiply costs by {loaded.spec.num_nodes}, its nodes")
    if length_s is not None and market.length_s < length_s:
        session.screen.warn(f"the trace ends after {market.length_s / _DAY_S:.3g} days")
    return _Simulation(
        name=loaded.spec.name,
        contenders=specs,
        market_of=market_of,
        setting=Setting(
            tick_s=flags["tick"],
            cold_start_s=flags["cold_start"],
            notice_s=flags["notice"],
            leave_out_s=min(_LEFT_OUT_S, market.length_s / 10),
            seed=flags["seed"],
        ),
        requests=requests,
        speed=speed,
        repeats=flags["repeats"],
        picture=picture,
        market=market,
        recorded=bool(flags["spot_trace"]),
    )


def _market_of(session: Session, spec: ServiceSpec, flags: SimulateFlags, length_s: float | None) -> MarketOf:
    from skyserve.cli import market

    if flags["spot_trace"]:
        made = market.recorded([Path(path) for path in flags["spot_trace"]], spec, length_s)
    else:
        made = market.made_up(session.config.home, spec, length_s)
    capacity, price = flags["capacity_factor"], flags["price_scale"]
    return lambda seed: made(seed).times(capacity).priced(price)


def _warn_of_load(session: Session, spec: ServiceSpec, requests: Requests | None, speed: Speed) -> None:
    """Say what will keep the number of replicas from following the load."""
    from skyserve.decide.signals import qps_per_replica
    from skyserve.sim.load import requests_per_replica

    policy = spec.replica_policy
    if policy.target_qps_per_replica is None:
        return
    if requests is None:
        count = wording.count(policy.min_replicas, "replica")
        session.screen.warn(f"without --requests the service stays at its minimum of {count}")
        return
    target, most = qps_per_replica(policy), requests_per_replica(requests, speed)
    if target > most:
        text = f"`target_qps_per_replica` is {target:g}, but a replica can do {most:.3g} of these requests a second"
        session.screen.warn(f"{text}: they will wait")


def _run(session: Session, plan: _Simulation) -> None:
    """All runs, the policies of one market after each other, so that what is done can be compared at any time."""
    from dataclasses import replace

    from skyserve.cli.market import for_spec
    from skyserve.sim.load import Traffic
    from skyserve.sim.run import simulate as run_once

    begun_at = session.now()
    with session.screen.bar() as show:
        for repeat in range(plan.repeats):
            setting = replace(plan.setting, seed=plan.setting.seed + repeat)
            market = plan.market_of(setting.seed)
            for name, spec in plan.contenders.items():
                text = f"{name}, run {len(plan.runs) + 1} of {plan.wanted_runs}"

                def told(done: float, text: str = text) -> None:
                    show((len(plan.runs) + done) / plan.wanted_runs, text)

                told(0.0)
                traffic = None
                if plan.requests is not None:
                    traffic = Traffic(plan.requests, speed=plan.speed, door=spec.load_balancer, seed=setting.seed)
                run = run_once(spec, for_spec(market, spec), setting, traffic=traffic, policy=name, progress=told)
                plan.runs.append(run)
        took = wording.duration(session.now() - begun_at)
        show(1.0, f"{wording.count(plan.wanted_runs, 'run')} in {took}")


def _show(session: Session, plan: _Simulation) -> None:
    """Figures to stdout, the picture to its file."""
    from skyserve.sim import report, table

    summaries = report.summarise(plan.runs)
    if session.as_json:
        session.screen.json(_document(plan))
    else:
        title = f"{plan.title}{f', mean of {plan.repeats} runs ±95 %' if plan.repeats > 1 else ''}"
        headings, rows = table.comparison(summaries)
        for line in session.screen.table(title, headings, rows, expendable=_expendable(headings)):
            session.screen.data(line)
        if len(summaries) == 1:
            session.screen.data("")
            for line in session.screen.table("Where the replicas were", *table.places(summaries[0])):
                session.screen.data(line)
    if plan.picture is not None:
        _draw(session, plan, plan.picture)


def _expendable(headings: Sequence[str]) -> list[str]:
    from skyserve.sim import table

    return [heading for heading in table.EXPENDABLE if heading in headings]


def _document(plan: _Simulation) -> JsonValue:
    from skyserve.sim import report

    setting = plan.setting
    return {
        "service": plan.name,
        "market": plan.market.name,
        "days": plan.market.length_s / _DAY_S,
        "spot_pools": len(plan.market.spot),
        "requests": None if plan.requests is None else plan.requests.text,
        "tick_s": setting.tick_s,
        "cold_start_s": setting.cold_start_s,
        "notice_s": setting.notice_s,
        "left_out_s": setting.leave_out_s,
        "seed": setting.seed,
        "runs_done": len(plan.runs),
        "runs_wanted": plan.wanted_runs,
        "policies": report.document(report.summarise(plan.runs)),
    }


def _draw(session: Session, plan: _Simulation, path: Path) -> None:
    from skyserve.sim import picture

    content = picture.draw(plan.runs, plan.title, path.suffix[1:].lower())
    try:
        path.write_bytes(content)
    except OSError as error:
        raise SkyServeError(f"the picture cannot be written to {path}: {error.strerror}") from error
    session.screen.say(f"Picture: {path}")


def _picture_path(asked: str | None) -> Path | None:
    """Where to draw. Raises UsageError for what cannot be drawn, or not there."""
    if asked is None:
        return None
    from skyserve.sim import picture

    path = Path(asked).expanduser()
    if path.suffix[1:].lower() not in picture.KINDS:
        hint = f"let its name end in {', '.join(f'.{kind}' for kind in picture.KINDS)}"
        raise UsageError(f"no picture can be drawn as '{path.name}'", hint=hint)
    if not path.parent.is_dir():
        raise UsageError(f"there is no directory {path.parent} for the picture")
    picture.require()
    return path


def _length_s(days: float | None, duration: str | None) -> float | None:
    if days is not None and duration is not None:
        raise UsageError("--days and --duration say the same thing", hint="give one of them")
    if duration is None:
        return None if days is None else days * _DAY_S
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", duration.strip().lower())
    if matched is None or float(matched[1]) == 0:
        raise UsageError(f"'{duration}' is no duration", hint="write it as in 36h, 90m or 2d")
    return float(matched[1]) * _UNITS[matched[2]]


def _speed(asked: str | None) -> Speed:
    from skyserve.sim.load import Speed

    if asked is None:
        return Speed()
    matched = re.fullmatch(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?):(\d{1,5})", asked.strip())
    numbers = [float(number) for number in matched.groups()] if matched else []
    if not numbers or min(numbers) <= 0:
        hint = "8000:60:8 means: reads 8000 tokens a second, writes 60 a second for each of up to 8 requests"
        raise UsageError(f"'{asked}' is no speed of a replica", hint=hint)
    return Speed(numbers[0], numbers[1], int(numbers[2]))
