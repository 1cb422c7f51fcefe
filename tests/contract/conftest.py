"""Plays the provider contract's cases, and prints what came of them: a table of cases by providers.

With `--contract-table PATH` the table is written to that file too (give `tests/contract` on the command line then).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.contract.provider_cases", "tests.contract.world")

from tests.contract.playing import CASES, Case, Outcome, play  # noqa: E402 - rewritten from here on

CANNOT = "cannot: "
_MARK = "provider contract"

Table = dict[str, dict[str, str]]
"""What came of a case, by case and provider."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where to write the table."""
    parser.addoption("--contract-table", type=Path, help="write the provider contract's table to this file")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let each report say which case of which provider it is about."""
    for item in items:
        case = _case_of(item)
        if case is not None:
            item.user_properties.append((_MARK, (item.cls.title, case.name)))  # type: ignore[attr-defined]


@pytest.fixture(scope="class")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Outcome]:
    """How the cases of a class ended, those that were selected: they are played at once, in one world."""
    cases = [_case_of(item) for item in request.session.items if getattr(item, "cls", None) is request.cls]
    with request.cls.world(tmp_path_factory.mktemp("world")) as world:
        return asyncio.run(play(world, [case for case in cases if case is not None]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    """Print the table, and write it."""
    del exitstatus
    table = _table(terminalreporter)
    if not table:
        return
    text = _markdown(table)
    terminalreporter.section("provider contract")
    terminalreporter.write_line(text)
    path = config.getoption("--contract-table", default=None)
    if path is not None:
        path.write_text(f"{text}\n", encoding="utf-8")


def _case_of(item: pytest.Item) -> Case | None:
    found = getattr(getattr(item, "callspec", None), "params", {}).get("case")
    return found if isinstance(found, Case) else None


def _table(reporter: pytest.TerminalReporter) -> Table:
    table: Table = {case.name: {} for case in CASES}
    for outcome, report in _reports(reporter):
        for name, value in report.user_properties:
            if name == _MARK:
                provider, case = value
                table[case][provider] = outcome
    return {case: row for case, row in table.items() if row}


def _reports(reporter: pytest.TerminalReporter) -> Iterator[tuple[str, pytest.TestReport]]:
    for word, outcome in (("passed", "ok"), ("skipped", ""), ("failed", "FAILED"), ("error", "FAILED")):
        for report in reporter.stats.get(word, []):
            if isinstance(report, pytest.TestReport):
                yield outcome or _why(report), report


def _why(report: pytest.TestReport) -> str:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
    reason = reason.removeprefix("Skipped: ")
    return reason if reason.startswith(CANNOT) else f"not run: {reason}"


def _markdown(table: Table) -> str:
    """The table, with the reasons for what is missing below it, each once."""
    providers = list(dict.fromkeys(provider for row in table.values() for provider in row))
    notes: dict[str, int] = {}
    lines = [["case", *providers], ["---"] * (len(providers) + 1)]
    for case, row in table.items():
        lines.append([case, *(_cell(row.get(provider, ""), notes) for provider in providers)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    drawn = [f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines]
    return "\n".join([*drawn, "", *(f"{number}. {note}" for note, number in notes.items())])


def _cell(outcome: str, notes: dict[str, int]) -> str:
    word, colon, _ = outcome.partition(": ")
    return f"{word} ({notes.setdefault(outcome, len(notes) + 1)})" if colon else outcome
