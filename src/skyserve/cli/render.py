"""The only place that prints, colours and asks. Knows streams and terminals; knows nothing of services.

Data goes to stdout and everything else to stderr. Off a terminal there is no colour, no redrawing and no question.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from skyserve.errors import Cancelled

if TYPE_CHECKING:
    from rich.live import Live

    from skyserve.model.codec import JsonValue

_BAR_WIDTH = 30
_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def status_style(word: str) -> str | None:
    """The colour of a status word; None for a word that is not a status."""
    if word == "READY":
        return "green"
    if word.startswith("FAILED") or word in ("LOST", "CONTROLLER_FAILED"):
        return "red"
    if word in ("PREEMPTED", "NOT_READY", "DRAINING", "SHUTTING_DOWN", "NO_REPLICA"):
        return "yellow"
    if word in ("PENDING", "PROVISIONING", "STARTING", "REPLICA_INIT", "CONTROLLER_INIT"):
        return "cyan"
    return None


def table_lines(
    headers: Sequence[str], rows: Sequence[Sequence[str]], paint: Callable[[str, str | None], str] | None = None
) -> list[str]:
    """A table without borders: left-aligned columns, two spaces between them, `-` for nothing."""
    cells = [[cell or "-" for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [headers, *cells]) for i in range(len(headers))]

    def line(row: Sequence[str], style_of: Callable[[str], str | None]) -> str:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        padded[-1] = row[-1]
        if paint is not None:
            padded = [paint(text, style_of(cell)) for text, cell in zip(padded, row, strict=True)]
        return "  ".join(padded)

    return [line(headers, lambda _: "bold"), *(line(row, status_style) for row in cells)]


def bar_text(done: float) -> str:
    """A bar for a share between 0 and 1, with the share in words."""
    full = int(min(1.0, max(0.0, done)) * _BAR_WIDTH)
    return f"{'━' * full}{'╌' * (_BAR_WIDTH - full)} {done:4.0%}"


def _without(at: int, row: Sequence[str]) -> Sequence[str]:
    return (*row[:at], *row[at + 1 :])


def _columns(stream: TextIO) -> int | None:
    if not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class ProgressRow:
    """One line of a wait: who (`replica 1`), at which stage, where, and for how many seconds."""

    key: str
    stage: str
    detail: str = ""
    elapsed_s: float | None = None

    def text(self) -> str:
        """The line as it is shown."""
        since = "" if self.elapsed_s is None else f"({self.elapsed_s:.0f}s)"
        return f"{self.key:<12} {self.stage:<14} {self.detail}  {since}".rstrip()


class Progress:
    """What a wait looks like: redrawn in place on a terminal, one line for each change elsewhere."""

    def __init__(self, screen: Screen, live: Live | None) -> None:
        self._screen = screen
        self._live = live
        self._seen: dict[str, str] = {}

    def show(self, rows: Sequence[ProgressRow]) -> None:
        """Show the present state of what is waited for."""
        if self._live is not None:
            self._screen.redraw(self._live, [row.text() for row in rows], [status_style(row.stage) for row in rows])
            return
        for row in rows:
            if self._seen.get(row.key) != row.stage:
                self._screen.say(row.text())
        self._seen = {row.key: row.stage for row in rows}


class Screen:
    """The user's terminal, or the pipe in its place. `environ` is asked for colour preferences only."""

    def __init__(self, stdin: TextIO, stdout: TextIO, stderr: TextIO, environ: Mapping[str, str]) -> None:
        self._stdin = stdin
        self._stdout = stdout
        self._stderr = stderr
        self._environ = environ

    @classmethod
    def standard(cls, environ: Mapping[str, str]) -> Screen:
        """The process's own streams."""
        return cls(sys.stdin, sys.stdout, sys.stderr, environ)

    @property
    def interactive(self) -> bool:
        """Whether there is somebody to ask."""
        return self._stdin.isatty() and self._stderr.isatty()

    @property
    def columns(self) -> int | None:
        """How wide the terminal behind stderr is; None when there is none."""
        return _columns(self._stderr)

    @property
    def redraws_data(self) -> bool:
        """Whether stdout is a terminal on which a table may be drawn over an older one."""
        return self._stdout.isatty() and self._environ.get("TERM") != "dumb"

    def data(self, text: str) -> None:
        """One piece of what was asked for, to stdout."""
        print(text, file=self._stdout, flush=True)

    def json(self, value: JsonValue, *, line: bool = False) -> None:
        """A JSON document to stdout; `line` makes it one line, for streams of documents."""
        import json

        text = json.dumps(value, ensure_ascii=False, indent=None if line else 2)
        print(text, file=self._stdout, flush=True)

    def raw(self, text: str) -> None:
        """Text to stdout exactly as it is, for log streams."""
        self._stdout.write(text)
        self._stdout.flush()

    def table(
        self, heading: str, headers: Sequence[str], rows: Sequence[Sequence[str]], *, expendable: Sequence[str] = ()
    ) -> list[str]:
        """A headed table, coloured as stdout allows, as lines for `data`.

        On a terminal that is too narrow the `expendable` columns go, in their order; the heading says which.
        """
        room, left_out = _columns(self._stdout), 0
        while room and left_out < len(expendable) and max(map(len, table_lines(headers, rows))) > room:
            at = headers.index(expendable[left_out])
            headers, rows = _without(at, headers), [_without(at, row) for row in rows]
            left_out += 1
        title = f"{heading} (narrow terminal, without {', '.join(expendable[:left_out])})" if left_out else heading
        return [self._paint(title, "bold", self._stdout), *table_lines(headers, rows, self._painter(self._stdout))]

    def say(self, text: str = "", style: str | None = None) -> None:
        """Something about what is going on, to stderr."""
        print(self._paint(text, style, self._stderr), file=self._stderr, flush=True)

    def warn(self, text: str) -> None:
        """Something that is probably not as the user thinks."""
        self.say(f"{self._paint('warning:', 'yellow', self._stderr)} {text}")

    def error(self, text: str) -> None:
        """What failed and why."""
        self.say(f"{self._paint('error:', 'red', self._stderr)} {text}")

    def hint(self, text: str) -> None:
        """What to do about it."""
        self.say(f"{self._paint('hint:', 'cyan', self._stderr)} {text}")

    def diff(self, lines: Iterable[str]) -> None:
        """A unified diff, to stderr."""
        styles = {"+": "green", "-": "red", "@": "cyan"}
        for line in lines:
            self.say(line.rstrip("\n"), styles.get(line[:1]))

    def confirm(self, question: str, *, if_no: str) -> None:
        """Ask; return on yes.

        Raises Cancelled, with `if_no` as what that means, when the answer is no or nobody can be asked.
        """
        if not self.interactive:
            hint = "add --yes (-y) to go ahead without asking"
            raise Cancelled(f"cannot ask without a terminal: {question} {if_no}", hint=hint)
        while True:
            print(f"{question} [Y/n]: ", end="", file=self._stderr, flush=True)
            try:
                answer = self._stdin.readline()
            except KeyboardInterrupt:
                self.say(f"\n{if_no}")
                raise
            if not answer:
                self.say()
                raise Cancelled(if_no)
            if answer.strip().lower() in ("", "y", "yes"):
                return
            if answer.strip().lower() in ("n", "no"):
                raise Cancelled(if_no)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Show how a wait goes on, on stderr."""
        if not self._stderr.isatty() or self._environ.get("TERM") == "dumb":
            yield Progress(self, None)
            return
        with self._live(self._stderr) as live:
            yield Progress(self, live)

    @contextmanager
    def bar(self) -> Iterator[Callable[[float, str], None]]:
        """Yield a function that shows on stderr how much is done, 0 to 1, of what: a bar that grows on a terminal, a
        line for each new text elsewhere."""
        if not self._stderr.isatty() or self._environ.get("TERM") == "dumb":
            told = [""]

            def tell(done: float, text: str) -> None:
                if text != told[0]:
                    told[0] = text
                    self.say(text)

            yield tell
            return
        with self._live(self._stderr) as live:
            yield lambda done, text: self.redraw(live, [f"{bar_text(done)} {text}"], [None])

    @contextmanager
    def repainted(self) -> Iterator[Callable[[Sequence[str]], None]]:
        """Yield a function that draws lines of data over those it drew before; off a terminal it appends them."""
        if not self.redraws_data:
            yield lambda lines: self.data("\n".join([*lines, ""]))
            return
        with self._live(self._stdout) as live:
            yield lambda lines: self.redraw(live, lines, [None] * len(lines))

    def redraw(self, live: Live, lines: Sequence[str], styles: Sequence[str | None]) -> None:
        """Replace what a live display shows."""
        from rich.text import Text

        texts = [Text.from_ansi(line, style=style or "") for line, style in zip(lines, styles, strict=True)]
        live.update(Text("\n").join(texts), refresh=True)

    def silence(self) -> None:
        """The reader of stdout went away: write no more, not even at exit."""
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, self._stdout.fileno())
        os.close(devnull)

    def _live(self, stream: TextIO) -> Live:
        from rich.console import Console
        from rich.live import Live

        console = Console(file=stream, no_color=not self._coloured(stream), highlight=False, markup=False)
        return Live(console=console, auto_refresh=False)

    def _painter(self, stream: TextIO) -> Callable[[str, str | None], str]:
        return lambda text, style: self._paint(text, style, stream)

    def _paint(self, text: str, style: str | None, stream: TextIO) -> str:
        if style is None or not self._coloured(stream):
            return text
        return f"\x1b[{_CODES[style]}m{text}\x1b[0m"

    def _coloured(self, stream: TextIO) -> bool:
        if self._environ.get("NO_COLOR"):
            return False
        if self._environ.get("CLICOLOR_FORCE", "0") not in ("", "0"):
            return True
        return stream.isatty() and self._environ.get("TERM") != "dumb"
