"""Runs as a picture: who ran where, how many were ready, what it cost. PNG, SVG, or a page that needs nothing else.

Needs matplotlib, which is imported when something is drawn. Must not know files: bytes come out.
"""

from __future__ import annotations

import html
import io
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import TYPE_CHECKING

from skyserve.errors import UsageError
from skyserve.model.offering import CapacityType
from skyserve.sim import report, table
from skyserve.sim.result import Machine, Run

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = ("png", "svg", "html")
_EXTRA = "pip install 'skyserve[sim]'"
_BINS = 480
_HOUR_S = 3600.0
_DAY_S = 86400.0
_HOURS_UNTIL_S = 3 * _DAY_S

# Okabe and Ito's colours, which people with any kind of colour vision tell apart, most contrast first.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#CC79A7", "#F0E442", "#8C6D31")
_OTHER_COLOUR = "#BBBBBB"
_ON_DEMAND_COLOUR = "#4D4D4D"
_SHORT_COLOUR = "#D55E00"
_INK = "#1A1A1A"
_OTHER = "other zones, spot"
_ON_DEMAND = "on demand, any zone"

_PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; }}
svg {{ width: 100%; height: auto; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }}
th, td {{ padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
th {{ font-size: .8rem; }}
</style></head><body>
<h1>{title}</h1>
<div class="wide">{table}</div>
{picture}
</body></html>
"""


def draw(runs: Sequence[Run], title: str, kind: str) -> bytes:
    """A picture of the first run of each policy, as `png`, `svg` or `html`; the page's table is over all runs.

    Raises UsageError when matplotlib is not installed.
    """
    first = {run.policy: run for run in reversed(runs)}
    shown = [first[policy] for policy in dict.fromkeys(run.policy for run in runs)]
    if kind != "html":
        return _image(shown, title, kind)
    drawing = _image(shown, "", "svg").decode()
    text = html.escape(title)
    page = _PAGE.format(title=text, table=_table(runs), picture=drawing[drawing.index("<svg") :])
    return page.encode()


def require() -> None:
    """Raise UsageError when nothing can be drawn here: better before a long simulation than after it."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError("pictures need matplotlib, which is not installed", hint=_EXTRA) from error


def _image(runs: Sequence[Run], title: str, kind: str) -> bytes:
    require()
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A fixed salt and no date: the same runs give the same bytes.
    with mpl.rc_context({"svg.hashsalt": "skyserve", "font.size": 9.5, "axes.titlesize": 10.5, "hatch.linewidth": 0.6}):
        figure = Figure(figsize=(12, 1.5 + 2.35 * len(runs)), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        _fill(figure, runs, title)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _fill(figure: Figure, runs: Sequence[Run], title: str) -> None:
    zones = _zones(runs)
    colours = {**dict(zip(zones, _COLOURS, strict=False)), _OTHER: _OTHER_COLOUR, _ON_DEMAND: _ON_DEMAND_COLOUR}
    grid = figure.subplots(len(runs), 2, sharex=True, sharey="col", squeeze=False, width_ratios=(2.3, 1))
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, ha="left", color=_INK)
    for run, (left, right) in zip(runs, grid, strict=True):
        view = _View(run)
        _draw_replicas(left, view, colours)
        _draw_cost(right, view)
    for axes in grid[-1]:
        # Rows share their scales, so that policies can be compared by eye.
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"{_View(runs[0]).unit} since the beginning")
    handles: dict[str, Artist] = {}
    for axes in (axes for row in grid for axes in row[:1]):
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    columns = len(handles) if len(handles) <= 7 else 5
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns, frameon=False)


@dataclass(frozen=True)
class _View:
    """One run on a grid of equal bins of time."""

    run: Run

    @property
    def unit(self) -> str:
        return "hours" if self.span_s <= _HOURS_UNTIL_S else "days"

    @property
    def span_s(self) -> float:
        return self.run.end_at - self.run.begin_at

    @property
    def edges(self) -> list[float]:
        """The ends of all bins, as instants."""
        return [self.run.begin_at + self.span_s * i / _BINS for i in range(_BINS + 1)]

    def scaled(self, instants: Iterable[float]) -> list[float]:
        """Instants in the unit, since the beginning."""
        unit_s = _HOUR_S if self.unit == "hours" else _DAY_S
        return [(at - self.run.begin_at) / unit_s for at in instants]

    def mean(self, steps: Sequence[tuple[float, int]]) -> list[float]:
        """The mean of a number that changes at instants, in every bin."""
        integral = _integral(steps, self.edges)
        return [(later - earlier) * _BINS / self.span_s for earlier, later in pairwise(integral)]

    def alive(self, machines: Iterable[Machine]) -> list[float]:
        """The mean number of live machines in every bin."""
        return self.mean(_steps((one.launched_at, one.ended_at, 1) for one in machines))

    def short(self) -> list[float]:
        """The share of every bin in which fewer replicas were ready than wanted."""
        changes = sorted({at for at, _ in (*self.run.wanted, *self.run.ready)})
        wanted, ready = _at(self.run.wanted, changes), _at(self.run.ready, changes)
        return self.mean([(at, int(has < wants)) for at, has, wants in zip(changes, ready, wanted, strict=True)])

    def spent(self) -> list[float]:
        """The cost up to every edge; a machine's cost is spread evenly over its life within the run."""
        begin, end, rates = self.run.begin_at, self.run.end_at, list[tuple[float, float]]()
        for one in self.run.machines:
            since, until = max(one.launched_at, begin), min(one.ended_at, end)
            if until > since:
                rates += [(since, one.cost / (until - since)), (until, -one.cost / (until - since))]
        rates.sort()
        levels = list(accumulate(rate for _, rate in rates))
        return _integral([(at, level) for (at, _), level in zip(rates, levels, strict=True)], self.edges)

    def in_proportion(self, cost: float) -> list[float]:
        """A cost up to every edge, spent in proportion to the replicas that were wanted."""
        wanted = _integral(self.run.wanted, self.edges)
        return [cost * amount / wanted[-1] if wanted[-1] else 0.0 for amount in wanted]


def _steps(lives: Iterable[tuple[float, float, int]]) -> list[tuple[float, int]]:
    changes: dict[float, int] = {}
    for since, until, amount in lives:
        changes[since] = changes.get(since, 0) + amount
        changes[until] = changes.get(until, 0) - amount
    ordered = sorted(changes.items())
    return list(zip((at for at, _ in ordered), accumulate(change for _, change in ordered), strict=True))


def _at(steps: Sequence[tuple[float, int]], instants: Sequence[float]) -> list[int]:
    starts = [at for at, _ in steps]
    places = [bisect_right(starts, at) for at in instants]
    return [steps[place - 1][1] if place else 0 for place in places]


def _integral(steps: Sequence[tuple[float, float]], instants: Sequence[float]) -> list[float]:
    """The integral of a step function from the first of these instants to each of them."""
    found, total, level, place, last = [], 0.0, 0.0, 0, instants[0]
    for at in instants:
        while place < len(steps) and steps[place][0] <= at:
            changed_at = max(steps[place][0], instants[0])
            total += level * (changed_at - last)
            level, last, place = steps[place][1], changed_at, place + 1
        total += level * (at - last)
        last = at
        found.append(total)
    return found


def _zone(machine: Machine) -> str:
    place = machine.location
    zone = place.zone or place.region
    return zone if zone.startswith(place.region) else f"{place.region}/{zone}"


def _zones(runs: Sequence[Run]) -> list[str]:
    """The zones that get colours of their own: those in which spot replicas lived longest, by name."""
    lived: dict[str, float] = {}
    for run in runs:
        for one in run.machines:
            if one.capacity_type is CapacityType.SPOT:
                lived[_zone(one)] = lived.get(_zone(one), 0.0) + one.ended_at - one.launched_at
    return sorted(sorted(lived, key=lambda zone: -lived[zone])[: len(_COLOURS)])


def _draw_replicas(axes: Axes, view: _View, colours: dict[str, str]) -> None:
    from matplotlib import patheffects
    from matplotlib.ticker import MaxNLocator

    groups: dict[str, list[Machine]] = {name: [] for name in colours}
    for one in view.run.machines:
        spot = one.capacity_type is CapacityType.SPOT
        zone = _zone(one)
        groups[(zone if zone in colours else _OTHER) if spot else _ON_DEMAND].append(one)
    used = {name: view.alive(machines) for name, machines in groups.items() if machines}
    edges = view.scaled(view.edges)
    bottom = [0.0] * _BINS
    for name, amounts in used.items():
        top = [below + amount for below, amount in zip(bottom, amounts, strict=True)]
        label = name if name in (_ON_DEMAND, _OTHER) else f"{name}, spot"
        area = axes.stairs(top, edges, baseline=bottom, fill=True, lw=0, alpha=0.9, label=label)
        area.set(facecolor=colours[name], edgecolor="none")
        if name == _ON_DEMAND:  # told from spot by more than its colour
            area.set(edgecolor="#A0A0A0", hatch="////")
        bottom = top
    for steps, label, dashes in ((view.run.ready, "ready", "-"), (view.run.wanted, "wanted", (0, (4, 2)))):
        line = axes.stairs(view.mean(steps), edges, baseline=None, color=_INK, lw=1.3, ls=dashes, label=label)
        line.set_path_effects([patheffects.withStroke(linewidth=3.2, foreground="white")])
    _draw_shortage(axes, view, edges)
    axes.set(xlim=(edges[0], edges[-1]), ylabel="replicas")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(view.run.policy, loc="left", fontweight="bold", color=_INK)
    axes.set_title(_headline(view.run), loc="right", color=_INK)
    _tidy(axes)


def _draw_shortage(axes: Axes, view: _View, edges: Sequence[float]) -> None:
    """A strip under the replicas: dark where fewer were ready than wanted."""
    strip = axes.inset_axes((0, -0.075, 1, 0.045), sharex=axes)
    strip.set(ylim=(0, 1), yticks=[], facecolor="#EEEEEE")
    strip.tick_params(bottom=False, labelbottom=False)
    for side in strip.spines.values():
        side.set_visible(False)
    for share, bins in groupby(range(_BINS), key=view.short().__getitem__):
        of_it = list(bins)
        if share > 0:
            ends = edges[of_it[0]], edges[of_it[-1] + 1]
            strip.axvspan(*ends, color=_SHORT_COLOUR, alpha=0.3 + 0.7 * min(1.0, share), lw=0)
    axes.tick_params(axis="x", pad=9)
    axes.fill_between([], [], [], color=_SHORT_COLOUR, label="fewer ready than wanted")


def _draw_cost(axes: Axes, view: _View) -> None:
    from matplotlib.ticker import StrMethodFormatter

    run, edges = view.run, view.scaled(view.edges)
    spent, dear = view.spent(), view.in_proportion(run.on_demand_cost)
    saves = [mine < theirs for mine, theirs in zip(spent, dear, strict=True)]
    axes.fill_between(edges, spent, dear, where=saves, color="#0072B2", alpha=0.12, lw=0)
    axes.plot(
        edges, dear, color=_ON_DEMAND_COLOUR, lw=1.3, ls=(0, (4, 2)), label=f"on demand ${run.on_demand_cost:,.0f}"
    )
    axes.plot(edges, spent, color="#0072B2", lw=2, label=f"this policy ${run.cost:,.0f}")
    if run.bound_cost is not None:
        bound = view.in_proportion(run.bound_cost)
        axes.plot(edges, bound, color="#009E73", lw=1.3, ls=":", label=f"bound ${run.bound_cost:,.0f}")
    axes.set_ylabel("cost so far (US$)")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.legend(loc="upper left", frameon=False, fontsize=8.5)
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelbottom=True)


def _headline(run: Run) -> str:
    figures = report.figures(run)
    ratio = "" if figures.cost_ratio is None else f"{figures.cost_ratio:.1%} of the on-demand cost · "
    tail = "" if figures.latency_p99_s is None else f" · P99 {figures.latency_p99_s:.3g} s"
    return f"{ratio}available {figures.availability:.2%} · {figures.preemptions:g} preemptions{tail}"


def _table(runs: Sequence[Run]) -> str:
    headings, rows = table.comparison(report.summarise(runs))
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
