"""The command `sky`: finds the subcommand, and turns every error into words and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage or cancelled, 4 not authorised, 130 interrupted.
Imports no server code: `sky --help` has to be quick.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar

import click

from skyserve import __version__
from skyserve.cli import faults
from skyserve.cli.lazy import LazyGroup
from skyserve.cli.render import Screen
from skyserve.cli.session import Detached, Session
from skyserve.config import Config
from skyserve.errors import SkyServeError, UsageError

_INTERRUPTED = 130
_COMPLETION = "_SKY_COMPLETE"
_HELP_NAMES = {"help_option_names": ["-h", "--help"]}


class _Sky(LazyGroup):
    commands_at: ClassVar[Mapping[str, str]] = {
        "serve": "skyserve.cli.serve:serve",
        "check": "skyserve.cli.check:check",
        "show-gpus": "skyserve.cli.gpus:show_gpus",
        "gpus": "skyserve.cli.gpus:gpus",
        "catalog": "skyserve.cli.catalog:catalog",
        "infra": "skyserve.cli.infra:infra",
        "ssh": "skyserve.cli.ssh:ssh",
        "launch": "skyserve.cli.cluster:launch",
        "exec": "skyserve.cli.cluster:exec_",
        "status": "skyserve.cli.cluster:status",
        "logs": "skyserve.cli.cluster:logs",
        "stop": "skyserve.cli.cluster:stop",
        "start": "skyserve.cli.cluster:start",
        "down": "skyserve.cli.cluster:down",
        "controller": "skyserve.cli.controller:controller",
    }
    sections: ClassVar[Mapping[str, Sequence[str]]] = {
        "Services": ("serve", "controller"),
        "Clusters": ("launch", "exec", "status", "logs", "stop", "start", "down"),
        "Places and prices": ("check", "show-gpus", "gpus", "catalog", "infra", "ssh"),
    }


@click.group(cls=_Sky, invoke_without_command=True, context_settings=_HELP_NAMES)
@click.version_option(__version__, prog_name="sky", message="%(prog)s %(version)s")
@click.pass_context
def sky(ctx: click.Context) -> None:
    """Serve any HTTP application from replicas behind one endpoint.

    \b
    Examples:
      sky serve up service.yaml -n mixtral
      sky serve status
      sky serve down mixtral
    """
    if ctx.invoked_subcommand is None:
        ctx.ensure_object(Session).screen.data(ctx.get_help())


def main(argv: Sequence[str] | None = None, session: Session | None = None) -> int:
    """Run one command line and return its exit code. What is not given is taken from the process."""
    args = list(sys.argv[1:] if argv is None else argv)
    screen = session.screen if session else Screen.standard({})
    debug = False
    try:
        session = session or _session()
        screen, debug = session.screen, session.config.debug
        return _run(args, session)
    except SkyServeError as error:
        return faults.report(screen, error, as_json=_wants_json(args))
    except Detached:
        return _INTERRUPTED
    except KeyboardInterrupt:
        screen.say("Interrupted.")
        return _INTERRUPTED
    except BrokenPipeError:
        screen.silence()
        return 1
    except Exception as error:  # noqa: BLE001 - the last line: whatever it was, the user gets words
        return _unexpected(screen, error, debug=debug, as_json=_wants_json(args))


def _session() -> Session:
    try:
        config = Config.from_environ()
    except ValueError as error:
        raise UsageError(f"a SKYSERVE_ variable of the environment cannot be read: {error}") from error
    return Session(config, Screen.standard(config.inherited_env))


def _run(args: list[str], session: Session) -> int:
    asked = session.config.inherited_env.get(_COMPLETION)
    if asked:  # by the shell, while a command line is being typed
        from click.shell_completion import shell_complete

        return shell_complete(sky, {"obj": session}, "sky", _COMPLETION, asked)
    try:
        with sky.make_context("sky", args, obj=session) as ctx:
            sky.invoke(ctx)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "sky"
        raise UsageError(error.format_message(), hint=f"{path} --help") from error
    except click.ClickException as error:
        raise UsageError(error.format_message()) from error
    return 0


def _wants_json(args: Sequence[str]) -> bool:
    # Read from the raw arguments: the error may be that they cannot be parsed.
    if any(arg in ("-ojson", "--output=json") for arg in args):
        return True
    return any(pair in (("-o", "json"), ("--output", "json")) for pair in pairwise(args))


def _unexpected(screen: Screen, error: Exception, *, debug: bool, as_json: bool) -> int:
    if debug:
        import traceback

        screen.say("".join(traceback.format_exception(error)).rstrip())
    lines = str(error).splitlines()
    what = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    wrapped = SkyServeError(f"unexpected failure: {what}", hint="set SKYSERVE_DEBUG=1 for the traceback")
    return faults.report(screen, wrapped, as_json=as_json)


if __name__ == "__main__":
    sys.exit(main())
