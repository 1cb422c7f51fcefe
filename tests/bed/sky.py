"""The command `sky` of an installation whose clouds are fakes: `python -m tests.bed.sky FAKES ARGUMENTS...`.

It is the real command; only the controller that it starts is told where the fakes are (see `controller`).
"""

from __future__ import annotations

import sys

from skyserve.cli import daemon
from skyserve.cli.main import main
from skyserve.cli.render import Screen
from skyserve.cli.session import Session
from skyserve.config import Config

_START_DEADLINE_S = 90.0
"""The fakes bring half of their clouds' own tools with them, which takes a while on a busy machine."""

if __name__ == "__main__":
    daemon.START_DEADLINE_S = _START_DEADLINE_S
    config = Config.from_environ()
    start = (sys.executable, "-m", "tests.bed.controller", sys.argv[1])
    sys.exit(main(sys.argv[2:], Session(config, Screen.standard(config.inherited_env), controller_command=start)))
