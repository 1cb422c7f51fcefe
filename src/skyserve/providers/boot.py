"""How a machine becomes ours: the script that it runs at its first boot, and the agent's files that go with it.

Knows what a fresh Debian or Ubuntu looks like, and what `agent` needs; must not know any cloud, nor who runs it.
"""

from __future__ import annotations

import ast
import base64
import bz2
import dataclasses
import functools
import gzip
import hashlib
import io
import json
import tarfile
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from skyserve.errors import OrderRejected
from skyserve.providers import agent
from skyserve.providers.vm_cloud import Notice

AGENT = "agent.py"
FILES = (AGENT, "hosted.py", "bootstrap.py")
"""What stands on a machine, all of it in one directory."""
DIGEST_FILE = "agent.json"
ORDER_FILE, NOTICE_FILE = "order.json", "notice.json"

_SCRIPT = """\
#!/bin/bash
# Unpacks SkyServe's agent and what was ordered, and goes on with on_boot.
export HOME="${HOME:-/root}" DEBIAN_FRONTEND=noninteractive
export PATH="${PATH:-/usr/bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
export root="${SKYSERVE_ROOT:-$HOME/.skyserve}"
install -d -m 700 "$root"
exec >>"$root/boot.log" 2>&1
if ! command -v python3 >/dev/null; then
  apt-get -qq update
  apt-get -qqy -o DPkg::Lock::Timeout=600 install python3
fi
python3 - <<'END'
import base64, bz2, json, os
os.umask(0o077)
for name, text in json.loads(bz2.decompress(base64.b85decode("@PAYLOAD@"))).items():
    with open(os.path.join(os.environ["root"], name), "w") as file:
        file.write(text)
END
exec bash "$root/on_boot"
"""
_ON_BOOT = """\
#!/bin/bash
export HOME="${HOME:-/root}" DEBIAN_FRONTEND=noninteractive
export PATH="${PATH:-/usr/bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
root=$(dirname "$(readlink -f "$0")")
exec >>"$root/boot.log" 2>&1
chmod 700 "$root/on_boot"
if [ -d /var/lib/cloud/scripts/per-boot ]; then ln -sf "$root/on_boot" /var/lib/cloud/scripts/per-boot/skyserve; fi
install -d -m 700 "$HOME/.ssh"
touch "$HOME/.ssh/authorized_keys"
grep -qxFf "$root/client_key.pub" "$HOME/.ssh/authorized_keys" ||
  sed '1s/^/\\n/' "$root/client_key.pub" >>"$HOME/.ssh/authorized_keys"
chmod 600 "$HOME/.ssh/authorized_keys"
agent() { python3 -I "$root/@AGENT@" --root "$root" "$@"; }
if [ -e "$root/@ORDER@" ]; then agent launch <"$root/@ORDER@" && rm -f "$root/@ORDER@"; fi
agent adopt
if ! command -v sshd >/dev/null; then
  apt-get -qq update
  apt-get -qqy -o DPkg::Lock::Timeout=600 install openssh-server
fi
install -d -m 755 /run/sshd /etc/ssh
if [ -e "$root/host_key" ]; then
  install -m 600 "$root/host_key" /etc/ssh/ssh_host_ed25519_key
  install -m 644 "$root/host_key.pub" /etc/ssh/ssh_host_ed25519_key.pub
  rm -f "$root/host_key" "$root/host_key.pub"
fi
sshd=$(command -v sshd)
if "$sshd" -T 2>/dev/null | grep -qix 'permitrootlogin no'; then
  sed -i '1i PermitRootLogin prohibit-password' /etc/ssh/sshd_config
fi
pid_file=$("$sshd" -T 2>/dev/null | sed -n 's/^pidfile //p')
if [ -d /run/systemd/system ]; then
  systemctl restart ssh || systemctl restart sshd
elif ! { [ -s "$pid_file" ] && kill -HUP "$(cat "$pid_file")"; }; then
  "$sshd"
fi
"""
_STAY = "exec sleep infinity\n"


@dataclass(frozen=True, slots=True)
class Boot:
    """What a machine is made with. `public_key` is ours, the other two are the key by which we will know the machine.

    `container`: the script is the container's own command, and has to stay. It may be run again at each start.
    """

    public_key: str
    host_key: str
    host_public_key: str
    notice: Notice | None = None
    container: bool = False


def script(boot: Boot, order: agent.Order | None, limit: int) -> tuple[str, bool]:
    """The script, of at most `limit` bytes, and whether the order is in it; otherwise the machine waits for it.

    An order with secrets or files never is. Raises OrderRejected when not even the rest fits.
    """
    if order is not None and not order["secrets"] and not order["files"]:
        text = _script(boot, order)
        if len(text.encode()) <= limit:
            return text, True
    text = _script(boot, None)
    if len(text.encode()) > limit:
        raise OrderRejected(f"user data of {len(text.encode())} bytes is too long: at most {limit} are allowed")
    return text, False


def bundle() -> bytes:
    """The agent's files as a tar archive (gzip), to be unpacked on a machine."""
    return _tar(_agent_files())


@functools.cache
def digest() -> str:
    """What an agent of this version calls itself."""
    return hashlib.sha256("".join(_stripped(name) for name in FILES).encode()).hexdigest()[:16]


def _script(boot: Boot, order: agent.Order | None) -> str:
    on_boot = _ON_BOOT.replace("@ORDER@", ORDER_FILE).replace("@AGENT@", AGENT)
    files = {
        **_agent_files(),
        "on_boot": f"{on_boot}{_STAY if boot.container else ''}",
        "client_key.pub": f"{boot.public_key}\n",
        "host_key": boot.host_key,
        "host_key.pub": f"{boot.host_public_key}\n",
    }
    if boot.notice is not None:
        files[NOTICE_FILE] = json.dumps(dataclasses.asdict(boot.notice))
    if order is not None:
        files[ORDER_FILE] = json.dumps(order)
    payload = base64.b85encode(bz2.compress(json.dumps(files, ensure_ascii=False).encode("utf-8", "surrogateescape")))
    return _SCRIPT.replace("@PAYLOAD@", payload.decode())


def _agent_files() -> dict[str, str]:
    return {**{name: _stripped(name) for name in FILES}, DIGEST_FILE: json.dumps({"digest": digest()})}


def _tar(files: Mapping[str, str]) -> bytes:
    """The same files give the same bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, text in files.items():
            facts, content = tarfile.TarInfo(name), text.encode()
            facts.size, facts.mode = len(content), 0o600
            tar.addfile(facts, io.BytesIO(content))
    return gzip.compress(out.getvalue(), mtime=0)


@functools.cache
def _stripped(name: str) -> str:
    """A file of the agent without what only people and type checkers read: user data is short of room."""
    source = (Path(__file__).parent / name).read_text()
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for statement in body:
            if _only_read(statement):
                first, last = statement.lineno - 1, statement.end_lineno or statement.lineno
                rest = "pass" if len(body) == 1 else ""
                lines[first:last] = [f"{' ' * statement.col_offset}{rest}", *[""] * (last - first - 1)]
    return "".join(f"{line.rstrip()}\n" for line in lines if line.strip())


def _only_read(statement: ast.stmt) -> bool:
    """Whether a statement does nothing when it is run: a text of its own, or what is there for types."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return isinstance(statement.value.value, str)
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"
