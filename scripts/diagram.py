"""Print the life of a replica as a Mermaid state diagram, made from the table that the code obeys.

python scripts/diagram.py              print it
python scripts/diagram.py --write      put it into docs/explanation/replica-life.md
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from skyserve.model.replica import TRANSITIONS, ReplicaStatus

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "replica-life.md"
FENCE = re.compile(r"```mermaid\n.*?```\n", re.DOTALL)


def diagram() -> str:
    """Mermaid source. A row from which only failure is left to come ends when nothing of its instance is left."""
    lines = ["stateDiagram-v2", f"    [*] --> {ReplicaStatus.PENDING.value}"]
    for status in ReplicaStatus:
        followers = [follower.value for follower in ReplicaStatus if follower in TRANSITIONS[status]]
        lines += [f"    {status.value} --> {follower}" for follower in followers]
        if set(followers) <= {ReplicaStatus.FAILED.value}:
            lines.append(f"    {status.value} --> [*]")
    return "\n".join(lines) + "\n"


def fenced() -> str:
    """The diagram as it stands on the page."""
    return f"```mermaid\n{diagram()}```\n"


def main() -> None:
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(FENCE.sub(lambda _: fenced(), PAGE.read_text("utf-8")), "utf-8")
    else:
        print(diagram(), end="")


if __name__ == "__main__":
    main()
