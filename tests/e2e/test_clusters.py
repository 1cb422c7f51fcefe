"""One machine to work on, from launch to down: a task's output, more commands, a halt and another start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.bed.hosts import Bed
from tests.e2e.cloud_sky import clouds, providers
from tests.e2e.conftest import Sky, processes_of, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

TASK = """\
resources:
  cpus: 1+
workdir: {workdir}
secrets: {{WORD: }}
setup: echo set up >> setup.txt
run: |
  echo "the note says $(cat note.txt), the secret ${{#WORD}}"
  echo again >> runs.txt
"""
SAID = "the note says hello, the secret 8"
PATIENCE_S = 180.0


def launch(sky: Sky, infra: str) -> Path:
    """A cluster `dev` whose task has run to its end."""
    work = sky.home.parent / "work"
    work.mkdir()
    (work / "note.txt").write_text("hello\n")
    path = sky.home.parent / "task.yaml"
    path.write_text(TASK.format(workdir=work))
    options = ("-c", "dev", "-y", "--infra", infra, "--secret", "WORD=password")
    assert SAID in sky("launch", str(path), *options, timeout=PATIENCE_S).splitlines()
    assert "ended with exit code 0" in sky.err
    return path


def status(sky: Sky) -> str:
    """The word that `sky status` has for the cluster."""
    (row,) = [line for line in sky("status").splitlines() if line.startswith("dev ")]
    return next(word for word in ("UP", "STOPPED", "INIT", row) if word in row.split())


def work_on(sky: Sky) -> None:
    """What one does with a cluster that is up."""
    assert status(sky) == "UP"
    assert sky("exec", "dev", "cat note.txt setup.txt; echo $WORD").splitlines() == ["hello", "set up", "password"]
    assert sky("exec", "dev", "echo out; echo err >&2; exit 3", code=3).splitlines() == ["out", "err"]
    assert SAID in sky("logs", "dev", "--no-follow").splitlines()
    assert "No existing services" in sky("serve", "status")


@pytest.mark.bed
def test_a_cluster_on_a_cloud_can_be_stopped_and_goes_on_where_it_was(bed: Bed, sky: Sky) -> None:
    with clouds(sky, bed, "gcp") as world:
        core = world.cores["gcp"]
        launch(sky, "gcp/us-central1")
        work_on(sky)
        sky("exec", "dev", "echo mine > ~/kept.txt")
        sky("stop", "dev", "-y", timeout=PATIENCE_S)
        assert status(sky) == "STOPPED"
        wait_for(lambda: [machine.state for machine in core.leftovers()] == ["stopped"], seconds=30)
        sky("exec", "dev", "true", code=2)
        assert "sky start dev" in sky.err
        sky("start", "dev", "-y", timeout=PATIENCE_S)
        work_on(sky)
        assert sky("exec", "dev", "cat ~/kept.txt").strip() == "mine"
        wait_for(lambda: sky("exec", "dev", "cat runs.txt").split() == ["again", "again"], why="the task runs again")
        sky("down", "dev", "-y", timeout=PATIENCE_S)
        assert "No existing clusters" in sky("status")
        world.all_gone()


def test_a_cluster_on_this_machine_runs_tasks_and_cannot_be_stopped(sky: Sky) -> None:
    with providers(sky, {"local": {"module": "skyserve.providers.local"}}):
        task = launch(sky, "local")
        work_on(sky)
        again = sky("launch", str(task), "-c", "dev", "-y", "--secret", "WORD=password")
        assert SAID in again.splitlines()
        assert "is there already" in sky.err
        sky("stop", "dev", "-y", code=2)
        assert "this machine stays on" in sky.err
        assert "sky down dev" in sky.err
        assert status(sky) == "UP"
        sky("down", "dev", "-y")
        assert "No existing clusters" in sky("status")
        assert list((sky.home / "local/instances").iterdir()) == []
        wait_for(lambda: not _besides_the_controller(sky), seconds=15, why=str(_besides_the_controller(sky)))


def test_a_task_that_fails_leaves_its_machine_up(sky: Sky) -> None:
    with providers(sky, {"local": {"module": "skyserve.providers.local"}}):
        out = sky("launch", "-c", "dev", "-y", "echo so far; exit 7", code=1, timeout=PATIENCE_S)
        assert "so far" in out.splitlines()
        assert "ended with exit code 7" in sky.err
        assert status(sky) == "UP"
        (cluster,) = json.loads(sky("status", "-o", "json"))["clusters"]
        assert cluster["name"] == "dev"


def _besides_the_controller(sky: Sky) -> list[str]:
    return [line for line in processes_of(sky.home).values() if "controller" not in line]
