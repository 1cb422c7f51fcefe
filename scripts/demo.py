"""`make demo`: bring the quickstart service up on this machine, ask it something, and take everything down again.

Standard library only. Drives the `sky` command as a user would, with its state in a directory of its own.

    KEEP=1 make demo      leave the service running, and say how to use it and how to take it down
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
SKY = Path(sys.executable).with_name("sky")
SERVICE = "quickstart"
SERVICE_YAML = "examples/quickstart/service.yaml"
MODEL = "smollm2-135m"

UP_TIMEOUT_S = 900  # the model is 93 MB, and some connections are slow
ANSWER_TIMEOUT_S = 120
DOWN_TIMEOUT_S = 180
SETTLE_S = 2  # a command that was cut off may have left a controller that is only just starting
INTERRUPTED = 130
LONGEST_HOME = 70  # characters: sockets below it must stay under the 104 of macOS

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks this machine itself, whatever proxy the environment names."""


class DemoFailed(Exception):
    """A step failed; what the command itself had to say is on the screen already."""


class Demo:
    """One run, with its own state directory."""

    def __init__(self, home: Path) -> None:
        self.env = {**os.environ, "SKYSERVE_HOME": str(home), "SKYSERVE_IDLE_EXIT_S": "60"}
        self.home = home
        self.started_at = time.monotonic()
        self.is_up = False

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Say what is being done, and how long it took."""
        say(f"\n\033[1m==> {title}\033[0m" if sys.stdout.isatty() else f"\n==> {title}")
        begun_at = time.monotonic()
        yield
        say(f"    ({time.monotonic() - begun_at:.1f} s; {time.monotonic() - self.started_at:.1f} s since the start)")

    def sky(self, *args: str, timeout_s: float = 60) -> None:
        """Run one `sky` command on the user's screen."""
        try:
            done = subprocess.run([str(SKY), *args], cwd=ROOT, env=self.env, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise DemoFailed(f"`sky {shown(args)}` took longer than {timeout_s:g} s") from error
        if done.returncode:
            raise DemoFailed(f"`sky {shown(args)}` ended with exit code {done.returncode}")

    def endpoint(self) -> str:
        """The service's URL."""
        command = [str(SKY), "serve", "status", SERVICE, "--endpoint"]
        done = subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise DemoFailed(f"`sky serve status {SERVICE} --endpoint` failed: {done.stderr.strip()}")
        return done.stdout.strip().rstrip("/")

    def explain(self) -> None:
        """Show what helps to understand a failure."""
        for command in (
            ("serve", "status"),
            ("serve", "logs", SERVICE, "--no-follow", "--tail", "20"),
            ("controller", "logs", "--tail", "20"),
        ):
            with suppress(DemoFailed):
                self.sky(*command, timeout_s=30)


def shown(args: tuple[str, ...]) -> str:
    """A command as one would type it."""
    return " ".join(args)


def say(text: str, end: str = "\n") -> None:
    """Print at once: the commands in between write to the same screen."""
    print(text, end=end, flush=True)


def chat(endpoint: str, prompt: str, *, stream: bool) -> Iterator[str]:
    """The model's answer: whole, or piece by piece as it is made."""
    question = {"messages": [{"role": "user", "content": prompt}], "model": MODEL, "temperature": 0, "max_tokens": 96}
    body = json.dumps({**question, "stream": stream}).encode()
    url = f"{endpoint}/v1/chat/completions"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with DIRECT.open(request, timeout=ANSWER_TIMEOUT_S) as answer:
        if not stream:
            yield str(json.load(answer)["choices"][0]["message"]["content"])
            return
        for line in answer:
            event = line.decode().strip().removeprefix("data: ")
            if event and event != "[DONE]":
                yield str(json.loads(event)["choices"][0]["delta"].get("content") or "")


def ask(endpoint: str, prompt: str, *, stream: bool) -> None:
    """Ask, show the answer, and say how quick it was."""
    begun_at, first_at, pieces = time.monotonic(), 0.0, 0
    say(f"    you:   {prompt}\n    model: ", end="")
    try:
        for piece in chat(endpoint, prompt, stream=stream):
            first_at = first_at or time.monotonic()
            pieces += bool(piece)
            say(piece.replace("\n", "\n           "), end="")
    except (OSError, ValueError, LookupError) as error:
        detail = error.read().decode(errors="replace") if isinstance(error, urllib.error.HTTPError) else ""
        raise DemoFailed(f"no answer from {endpoint}: {error} {detail}".rstrip()) from error
    if not pieces:
        raise DemoFailed(f"an empty answer from {endpoint}")
    took_s = time.monotonic() - begun_at
    first = f", the first of {pieces} pieces after {first_at - begun_at:.2f} s" if stream else ""
    say(f"\n    [{took_s:.2f} s{first}]")


def show(demo: Demo) -> str:
    """Everything worth seeing; returns the endpoint."""
    with demo.step(f"sky serve up {SERVICE_YAML} -n {SERVICE} -y"):
        demo.sky("serve", "up", SERVICE_YAML, "-n", SERVICE, "-y", timeout_s=UP_TIMEOUT_S)
    demo.is_up = True
    with demo.step("sky serve status"):
        demo.sky("serve", "status")
    endpoint = demo.endpoint()
    with demo.step(f"POST {endpoint}/v1/chat/completions"):
        ask(endpoint, "Name three colors.", stream=False)
    with demo.step("The same endpoint, streamed"):
        ask(endpoint, "Say hello to the world.", stream=True)
    with demo.step(f"sky serve why {SERVICE} --tail 8"):
        demo.sky("serve", "why", SERVICE, "--tail", "8")
    return endpoint


def say_how_to_go_on(demo: Demo, endpoint: str) -> None:
    """What to type while the service is kept, and to end it."""
    sky = f"SKYSERVE_HOME={demo.home} {SKY}"
    question = {"model": MODEL, "messages": [{"role": "user", "content": "What is 2+2?"}]}
    say(
        f"\nThe service goes on. Ask it:\n"
        f"  curl {endpoint}/v1/chat/completions -H 'Content-Type: application/json' -d '{json.dumps(question)}'\n"
        f"Look at it:\n"
        f"  {sky} serve status\n"
        f"Take it down:\n"
        f"  {sky} serve down {SERVICE} -y && {sky} controller stop && rm -rf {demo.home}"
    )


def private_home() -> Path:
    """A directory for this run's state: in the checkout, or elsewhere when that path is long."""
    inside = ROOT / ".demo"
    if len(str(inside)) <= LONGEST_HOME:
        inside.mkdir(mode=0o700, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=inside))
    return Path(tempfile.mkdtemp(prefix="skyserve-demo-"))


def run(demo: Demo) -> int:
    """The whole demonstration; returns the exit code."""
    try:
        endpoint = show(demo)
    except DemoFailed as error:
        say(f"\nThe demo failed: {error}")
        demo.explain()
        return max(1, end(demo, keep_state=True))
    except KeyboardInterrupt:
        say("\nInterrupted.")
        return max(INTERRUPTED, end(demo))
    if os.environ.get("KEEP", "") not in ("", "0"):
        say_how_to_go_on(demo, endpoint)
        return 0
    exit_code = end(demo)
    if exit_code == 0:
        say("\nEverything is down again. To keep the service and play with it: KEEP=1 make demo")
    return exit_code


def end(demo: Demo, *, keep_state: bool = False) -> int:
    """Take everything of this run's home down; returns the exit code of that."""
    failures: list[str] = []
    if not demo.is_up:
        time.sleep(SETTLE_S)
    with demo.step("sky serve down --all -y; sky controller stop"):
        for command in (("serve", "down", "--all", "-y"), ("controller", "stop")):
            try:
                demo.sky(*command, timeout_s=DOWN_TIMEOUT_S)
            except (DemoFailed, KeyboardInterrupt) as error:
                failures.append(str(error) or f"`sky {shown(command)}` was interrupted")
    if failures:
        say(f"\nTaking it down failed: {'; '.join(failures)}")
    if failures or keep_state:
        say(f"State and logs of this run: {demo.home}")
        return int(bool(failures))
    shutil.rmtree(demo.home, ignore_errors=True)
    with suppress(OSError):  # of no use when empty; another run may be using it
        (ROOT / ".demo").rmdir()
    return 0


def interrupt(signum: int, frame: FrameType | None) -> None:
    """End as with Ctrl-C, so that everything is taken down."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)
    sys.exit(run(Demo(private_home())))
