"""What this machine has, and how it is shared out: CPUs, memory, GPUs. Knows the hardware; knows nothing of processes,
instances' files or orders."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from skyserve.errors import CapacityUnavailable
from skyserve.model import accelerators
from skyserve.model.resources import Accelerator

_GIB = 1024**3
_NVIDIA_SMI_TIMEOUT_S = 5.0
_NOISE = re.compile(r"\b(NVIDIA|Tesla|Quadro|GeForce|Generation|Laptop GPU|Blackwell.*)", re.IGNORECASE)
_DATA_CENTER_MODEL = re.compile(r"\b(GH200|[ABHV]\d{2,3}G?|GB\d{3}|L40S?|L4|T4G?|P4|P40|P100|K80|M60)\b")
_BIG_MEMORY_GIB = {"A100": 80, "V100": 32}
"""Models that exist with less memory too: the bigger one carries its size in its name."""
_RETRY_AFTER_S = 2.0  # other replicas of this machine come and go at any time
_EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: its number on this machine, its canonical name, its memory."""

    index: int
    name: str
    memory_gib: float


@dataclass(frozen=True, slots=True)
class Ask:
    """What one replica wants set apart for it; None means nothing. What is `only` asked for is a limit too."""

    vcpus: float | None = None
    memory_gib: float | None = None
    accelerator: Accelerator | None = None
    only_vcpus: bool = False
    only_memory: bool = False


@dataclass(frozen=True, slots=True)
class Share:
    """What is set apart for one replica, `holder`: `gpus` maps a GPU's index to the part of it (1 is all of it)."""

    holder: str
    vcpus: float = 0.0
    memory_gib: float = 0.0
    gpus: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware that may be shared out among replicas."""

    vcpus: float
    memory_gib: float
    gpus: tuple[Gpu, ...] = ()

    def __str__(self) -> str:
        return f"{self.vcpus:g} vCPUs, {self.memory_gib:g} GiB of memory, {self.gpu_summary}"

    @property
    def gpu_summary(self) -> str:
        """The GPUs in a few words: `L4:2`, or `no GPU`."""
        names = [gpu.name for gpu in self.gpus]
        return ", ".join(f"{name}:{names.count(name)}" for name in dict.fromkeys(names)) or "no GPU"

    def why_never(self, ask: Ask) -> str | None:
        """Why even the empty machine cannot satisfy `ask`; None when it can."""
        if ask.vcpus is not None and ask.vcpus > self.vcpus:
            return f"asks for {ask.vcpus:g} vCPUs, and this machine has {self.vcpus:g}"
        if ask.memory_gib is not None and ask.memory_gib > self.memory_gib:
            return f"asks for {ask.memory_gib:g} GiB of memory, and this machine has {self.memory_gib:g}"
        if ask.accelerator is not None and self._pick_gpus(ask.accelerator, ()) is None:
            return f"asks for {ask.accelerator}, and this machine has {self.gpu_summary}"
        return None

    def share(self, holder: str, ask: Ask, held: Sequence[Share]) -> Share:
        """Set `ask` apart beside what is `held` already. Raises CapacityUnavailable, with the numbers."""
        vcpus, memory_gib = ask.vcpus or 0.0, ask.memory_gib or 0.0
        _fit("vCPUs", vcpus, self.vcpus, [(share.holder, share.vcpus) for share in held])
        _fit("GiB of memory", memory_gib, self.memory_gib, [(share.holder, share.memory_gib) for share in held])
        gpus: Mapping[int, float] = {}
        if ask.accelerator is not None:
            picked = self._pick_gpus(ask.accelerator, held)
            if picked is None:
                raise self._no_gpus_left(ask.accelerator, held)
            gpus = picked
        return Share(holder, vcpus, memory_gib, gpus)

    def _pick_gpus(self, want: Accelerator, held: Sequence[Share]) -> dict[int, float] | None:
        free = self._free_gpus(want.name, held)
        if want.count < 1:
            # The fullest GPU that still has room, so that whole ones stay whole.
            room = sorted((part, index) for index, part in free.items() if part + _EPSILON >= want.count)
            return {room[0][1]: want.count} if room else None
        whole = [index for index, part in free.items() if part > 1 - _EPSILON]
        needed = round(want.count)
        return dict.fromkeys(whole[:needed], 1.0) if needed <= len(whole) else None

    def _free_gpus(self, name: str, held: Sequence[Share]) -> dict[int, float]:
        return {
            gpu.index: 1.0 - sum(share.gpus.get(gpu.index, 0.0) for share in held)
            for gpu in self.gpus
            if gpu.name.lower() == name.lower()
        }

    def _no_gpus_left(self, want: Accelerator, held: Sequence[Share]) -> CapacityUnavailable:
        free = self._free_gpus(want.name, held)
        users = [(share.holder, sum(part for index, part in share.gpus.items() if index in free)) for share in held]
        return _refusal(want.name, want.count, sum(free.values()), len(free), users)


def _fit(what: str, asked: float, total: float, used: Sequence[tuple[str, float]]) -> None:
    free = total - sum(amount for _, amount in used)
    if asked > free + _EPSILON and asked > 0:
        raise _refusal(what, asked, free, total, used)


def _refusal(
    what: str, asked: float, free: float, total: float, used: Sequence[tuple[str, float]]
) -> CapacityUnavailable:
    users = ", ".join(f"{holder} has {amount:g}" for holder, amount in used if amount)
    return CapacityUnavailable(
        f"{asked:g} {what} asked, {max(0.0, free):g} of {total:g} free{f': {users}' if users else ''}",
        hint="ask for less in `resources`, lower `max_replicas`, or take down a service",
        retry_after_s=_RETRY_AFTER_S,
    )


def detect(env: Mapping[str, str], *, cgroup: Path = Path("/sys/fs/cgroup")) -> Machine:
    """Look at this machine. Honours CPU affinity, the limits of the container (`cgroup`), and CUDA_VISIBLE_DEVICES.

    Blocks for 5 seconds at worst, when the GPU driver hangs; without its answer there are no GPUs.
    """
    return Machine(vcpus=_vcpus(cgroup), memory_gib=_memory_gib(cgroup), gpus=_visible(_gpus(env), env))


def canonical_gpu_name(raw: str) -> str:
    """The name a Service YAML uses for what the driver calls `raw`: `NVIDIA A100-SXM4-80GB` is `A100-80GB`."""
    model = _DATA_CENTER_MODEL.search(raw)
    if model is None or "RTX" in raw.upper():
        return accelerators.canonical(re.sub(r"^RTX-(?=A?\d)", "RTX", "-".join(_NOISE.sub(" ", raw).split())))
    name = model.group()
    big_gib = _BIG_MEMORY_GIB.get(name)
    return f"{name}-{big_gib}GB" if big_gib is not None and re.search(rf"\b{big_gib}GB\b", raw) else name


def _vcpus(cgroup: Path) -> float:
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _limit(cgroup / "cpu.max").partition(" ")
    if not quota.isdigit() or not period.isdigit():
        return float(affinity)
    return min(float(affinity), int(quota) / int(period))


def _memory_gib(cgroup: Path) -> float:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _limit(cgroup / "memory.max")
    return round(min(total, int(limit) if limit.isdigit() else total) / _GIB, 1)


def _limit(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _gpus(env: Mapping[str, str]) -> tuple[Gpu, ...]:
    tool = shutil.which("nvidia-smi", path=env.get("PATH", os.defpath))
    if tool is None:
        return ()
    command = [tool, "--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits"]
    gpus = (_parse_gpu(line) for line in _output(command, env).splitlines())
    return tuple(gpu for gpu in gpus if gpu is not None)


def _output(command: list[str], env: Mapping[str, str]) -> str:
    """What a command prints; nothing if it fails or does not answer in time."""
    try:
        process = subprocess.Popen(
            command, env=dict(env), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
    except OSError:
        return ""
    with process:
        try:
            out, _ = process.communicate(timeout=_NVIDIA_SMI_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with its children, as they hold the pipe open too
            return ""
    return out.decode(errors="replace") if process.returncode == 0 else ""


def _parse_gpu(line: str) -> Gpu | None:
    fields = [part.strip() for part in line.split(",")]
    if len(fields) != 3 or not fields[0].isdigit():
        return None
    try:
        memory_gib = round(float(fields[2]) / 1024, 1)
    except ValueError:  # "[N/A]" on machines whose GPU shares the main memory
        memory_gib = 0.0
    return Gpu(int(fields[0]), canonical_gpu_name(fields[1]), memory_gib)


def _visible(gpus: tuple[Gpu, ...], env: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The GPUs left by CUDA_VISIBLE_DEVICES, where that lists numbers: whoever set it keeps the others for himself."""
    listed = env.get("CUDA_VISIBLE_DEVICES")
    if listed is None or not re.fullmatch(r"(\s*-?\d+\s*(,|$))*", listed):
        return gpus
    allowed = {int(number) for number in listed.split(",") if number.strip()}
    return tuple(gpu for gpu in gpus if gpu.index in allowed)
