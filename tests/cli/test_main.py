"""What holds for every command: streams, exit codes, JSON errors, help, quick start, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import click
import pytest

from skyserve import __version__
from skyserve.cli.main import sky as root


def _leaves(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        return [(path, command)]
    context = click.Context(command)
    names = command.list_commands(context)
    return [leaf for name in names for leaf in _leaves(command.get_command(context, name), (*path, name))]


LEAVES = _leaves(root)
IDS = [" ".join(path) for path, _ in LEAVES]


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=IDS)
def test_help_has_an_example_and_every_option_a_text(path, command, sky, capsys):
    assert sky(*path, "--help").code == 0
    text = capsys.readouterr().out
    assert "Example" in text
    assert f"sky {' '.join(path)}" in text
    options = [option for option in command.params if isinstance(option, click.Option)]
    assert [option.name for option in options if not option.help] == []


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=IDS)
def test_every_command_speaks_json_about_its_errors(path, command, sky):
    result = sky(*path, "--no-such-option", "-o", "json")
    assert result.code == 2
    assert result.json["error"]["code"] == "USAGE"
    assert result.json["error"]["hint"] == f"sky {' '.join(path)} --help"
    assert result.err.startswith("error: ")


def test_version_and_bare_groups(sky, capsys):
    assert sky("--version").code == 0
    assert capsys.readouterr().out == f"sky {__version__}\n"
    assert "Services:" in sky().out
    assert "Commands:" in sky("serve").out
    assert "Commands:" in sky("controller").out


def test_the_list_of_commands_is_complete(sky):
    listed = [line.split()[0] for line in sky().out.partition("Services:")[2].splitlines() if line.startswith("  ")]
    assert sorted(listed) == sorted(root.list_commands(click.Context(root)))


def test_unknown_command_gets_the_nearest(sky):
    result = sky("serve", "stats")
    assert result.code == 2
    assert result.err == "error: no such command 'stats'; did you mean 'status'?\nhint: sky serve --help\n"


def test_an_unexpected_error_is_one_line(sky, fake, home):
    class Broken(type(sky)):
        """Fails in a way that nobody thought of."""

        def _sleep(self, seconds):
            raise ZeroDivisionError("a defect\nwith details")

    result = Broken(home)("serve", "status", "--watch", "-o", "json")
    assert result.code == 1
    assert result.json_lines[-1]["error"] == {
        "code": "ERROR",
        "message": "unexpected failure: ZeroDivisionError: a defect",
        "hint": "set SKYSERVE_DEBUG=1 for the traceback",
        "where": None,
    }
    assert result.err == (
        "error: unexpected failure: ZeroDivisionError: a defect\nhint: set SKYSERVE_DEBUG=1 for the traceback\n"
    )
    assert "Traceback" in Broken(home, {"SKYSERVE_DEBUG": "1"})("serve", "status", "--watch").err


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("sky serve sta", "status"), ("sky serve up --gp", "--gpus"), ("sky show", "show-gpus")],
)
def test_completion_answers_the_shell(typed, offered, home):
    asked = {"_SKY_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    result = _run(environ=_environ(home, **asked))
    assert (result.returncode, result.stdout, result.stderr) == (0, f"plain,{offered}\n", "")
    assert not home.exists()


def _environ(home, **more):
    return {**os.environ, "SKYSERVE_HOME": str(home), **more}


def _run(*args, environ=None):
    command = [sys.executable, "-m", "skyserve.cli.main", *args]
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60)


def test_a_setting_that_cannot_be_read(home):
    result = _run("serve", "status", environ=_environ(home, SKYSERVE_IDLE_EXIT_S="soon"))
    assert result.returncode == 2
    assert result.stderr.startswith("error: a SKYSERVE_ variable of the environment cannot be read: ")


def test_a_reader_that_went_away(home):
    command = [sys.executable, "-m", "skyserve.cli.main", "serve", "schema"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environ(home))
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


def test_sigint_detaches(fake, home, make_service, make_replica):
    fake.services = {"web": make_service("web", "READY", make_replica(1))}
    fake.logs = {("replica", 1): [b"hello\n"]}
    command = [sys.executable, "-m", "skyserve.cli.main", "serve", "logs", "web", "--follow"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=_environ(home), text=True) as process:
        assert process.stdout.readline() == "hello\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (out, err) == ("", "\nNo longer following; service 'web' goes on.\n")


HEAVY = ("rich", "pydantic", "ruamel", "sqlalchemy", "fastapi", "aiohttp", "uvicorn", "asyncio", "http.client")


@pytest.mark.parametrize("args", [("--help",), ("serve", "--help"), ("serve", "up", "--help")])
def test_help_imports_little(args):
    code = (
        "import sys; from skyserve.cli.main import main; main(sys.argv[1:]); "
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60)
    modules = set(result.stderr.split())
    assert result.stdout.startswith("Usage: ")
    assert [name for name in HEAVY if name in modules] == []
    ours = {name for name in modules if name.partition(".")[0] == "skyserve"}
    assert len(ours) < (20 if args == ("--help",) else 30), sorted(ours)
    assert not any(name.startswith(("skyserve.catalog", "skyserve.providers", "skyserve.spec")) for name in ours)


def test_help_is_quick():
    """Against a bare interpreter on the same machine, because machines differ: click alone costs a few of them."""

    def cpu_s(*args: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, *args], capture_output=True, timeout=60, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    ours = min(cpu_s("-m", "skyserve.cli.main", "--help") for _ in range(3))
    click_alone = min(cpu_s("-c", "import click") for _ in range(3))
    assert ours < 2 * click_alone + 0.05
