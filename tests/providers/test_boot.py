"""What a machine runs at its first boot. That it works is shown on real machines, in test_vm."""

from __future__ import annotations

import base64
import bz2
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.providers.test_environment import ORDER, SITE

from skyserve.errors import OrderRejected
from skyserve.providers import boot
from skyserve.providers.remote_agent import order_for
from skyserve.providers.vm_cloud import Notice

if TYPE_CHECKING:
    from skyserve.providers.agent import Order

LIMIT = 16384
BOOT = boot.Boot("ssh-ed25519 OURS", "-----BEGIN KEY-----\nTHEIRS\n-----END KEY-----\n", "ssh-ed25519 THEIRS")
NOTICE = Notice("http://127.0.0.1/notice", "TRUE", {"Flavor": "x"}, warning_s=25)


def order(**rest: object) -> Order:
    return order_for(replace(ORDER, **rest), SITE, {}, own_machine=True)  # type: ignore[arg-type]


def unpacked(script: str) -> dict[str, str]:
    """The files that a script writes."""
    match = re.search(r'b85decode\("([^"]+)"\)', script)
    assert match
    files: dict[str, str] = json.loads(bz2.decompress(base64.b85decode(match[1])))
    return files


def test_an_order_goes_with_the_machine() -> None:
    script, complete = boot.script(replace(BOOT, notice=NOTICE), order(), LIMIT)
    assert complete
    assert script.startswith("#!/bin/bash\n")
    files = unpacked(script)
    assert json.loads(files[boot.ORDER_FILE]) == order()
    assert json.loads(files[boot.NOTICE_FILE])["warning_s"] == 25
    assert files["client_key.pub"] == "ssh-ed25519 OURS\n"
    assert files["host_key"] == BOOT.host_key
    assert json.loads(files[boot.DIGEST_FILE]) == {"digest": boot.digest()}
    assert {*boot.FILES, "on_boot"} <= files.keys()


@pytest.mark.parametrize("rest", [{"secrets": {"KEY": "hush"}}, {"workdir": "/w"}, {"file_mounts": {"a": "/b"}}])
def test_secrets_and_files_never_do(rest: dict[str, object]) -> None:
    script, complete = boot.script(BOOT, order(**rest), LIMIT)
    assert not complete
    assert boot.ORDER_FILE not in unpacked(script)
    assert "hush" not in str(unpacked(script))


def test_what_does_not_fit_is_left_out_or_refused() -> None:
    big = order(run=os.urandom(LIMIT).hex())
    script, complete = boot.script(BOOT, big, LIMIT)
    assert not complete
    assert len(script.encode()) <= LIMIT
    with pytest.raises(OrderRejected, match="too long: at most 999 are allowed"):
        boot.script(BOOT, None, 999)


def test_there_is_room_for_a_usual_order() -> None:
    run = "vllm serve $MODEL --host 0.0.0.0 --port $PORT --tensor-parallel-size $SKYPILOT_NUM_GPUS_PER_NODE --max 8192"
    host_key = base64.b64encode(os.urandom(300)).decode()  # which cannot be packed any tighter
    usual = order(run=f"source ~/venv/bin/activate\n{run}\n", setup="uv venv ~/venv\nuv pip install vllm==0.11.0\n")
    _, complete = boot.script(replace(BOOT, notice=NOTICE, host_key=host_key), usual, LIMIT)
    assert complete


def test_the_same_order_makes_the_same_script() -> None:
    assert boot.script(BOOT, order(), LIMIT) == boot.script(BOOT, order(), LIMIT)
    assert boot.bundle() == boot.bundle()


def test_a_containers_command_stays() -> None:
    assert "exec sleep infinity" not in unpacked(boot.script(BOOT, None, LIMIT)[0])["on_boot"]
    staying = unpacked(boot.script(replace(BOOT, container=True), None, LIMIT)[0])["on_boot"]
    assert staying.endswith("exec sleep infinity\n")


@pytest.mark.parametrize("name", ["script", "on_boot"])
def test_bash_understands_it(name: str) -> None:
    script, _ = boot.script(BOOT, order(), LIMIT)
    text = script if name == "script" else unpacked(script)["on_boot"]
    subprocess.run(["bash", "-n"], input=text.encode(), check=True, timeout=10)


def test_what_is_sent_has_no_comments_and_still_works(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(boot.bundle())) as tar:
        for member in tar.getmembers():
            content = tar.extractfile(member)
            assert content is not None
            (tmp_path / member.name).write_bytes(content.read())
    for name in boot.FILES:
        text = (tmp_path / name).read_text()
        assert '"""' not in text
        assert " # " not in text
        assert "class Order" not in text
    command = [sys.executable, "-I", str(tmp_path / boot.AGENT), "--root", str(tmp_path / "root"), "inventory"]
    told = subprocess.run(command, check=True, capture_output=True, timeout=30).stdout
    assert json.loads(told)["cpus"] >= 1
