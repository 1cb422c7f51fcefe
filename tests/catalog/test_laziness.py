"""Who does not ask for prices does not pay for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.catalog.pricing import accelerated, choice

from skyserve.catalog import query, snapshot

SPY = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from skyserve.cli.main import main
sys.argv = ["sky", *sys.argv[1:]]
try:
    main()
except SystemExit:
    pass
data = [path for path in opened if path.endswith((".catalog", "manifest.json"))]
modules = [name for name in sys.modules if name.startswith("skyserve.catalog")]
print("READ", data, modules)
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["serve", "--help"], ["serve", "status"], ["serve", "validate", "YAML"]]
)
def test_commands_that_need_no_prices_read_none(tmp_path: Path, arguments: list[str]) -> None:
    service = tmp_path / "service.yaml"
    service.write_text("service:\n  readiness_probe: /\nresources:\n  ports: 8080\n  accelerators: L4:1\nrun: serve\n")
    command = [sys.executable, "-c", SPY, *(str(service) if one == "YAML" else one for one in arguments)]
    done = subprocess.run(
        command,
        env={"SKYSERVE_HOME": str(tmp_path / "home"), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "READ [] []" in done.stdout, done.stderr


def test_a_question_unpacks_only_what_it_is_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[str | None] = []
    table = snapshot.current(tmp_path)
    ask = table.shelf

    def shelf(cloud: str, accelerator: str | None) -> object:
        unpacked.append(accelerator)
        return ask(cloud, accelerator)

    monkeypatch.setattr(table, "shelf", shelf)
    query.feasible(table, choice(accelerated("L4:8")))
    assert set(unpacked) == {"L4"}
