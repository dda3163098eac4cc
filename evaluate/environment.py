"""The environment a result comes from: whether the package's names are its own there, versions, and hardware."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

from prompts.io.errors import UserError


def check() -> None:
    """Raise UserError where another distribution installs a top-level `evaluate` too: pip
    merges the two without a word.
    """
    owners = sorted(set(packages_distributions().get("evaluate", ())) - {"onestep-align"})
    if owners:
        raise UserError(
            f"the distribution {owners[0]!r} installs a package called 'evaluate' as well; uninstall it or use a"
            " separate environment"
        )


def versions(*names: str) -> str:
    """Versions of distributions, and of Python, in one line."""
    numbers = {"python": platform.python_version()}
    for name in names:
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:
            numbers[name] = "not installed"
    return ", ".join(f"{name} {number}" for name, number in numbers.items())


@cache
def commit() -> str | None:
    """The commit of this project's checkout, `-dirty` behind it where files differ from it; None
    where it runs from no checkout.
    """
    here = Path(__file__)
    try:
        for command in (
            ["ls-files", "--error-unmatch", here.name],
            ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        ):
            done = subprocess.run(["git", "-C", str(here.parent), *command], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def device_of(asked: str | None) -> str:
    """The device that `--device` names; by default a GPU where there is one, of processes that were launched together
    one each. Raises UserError for one that is not there.
    """
    import torch

    if asked is None:
        rank = os.environ.get("LOCAL_RANK")
        return "cpu" if not torch.cuda.is_available() else "cuda" if rank is None else f"cuda:{rank}"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise UserError(f"--device {asked}: no such device; give cpu, cuda, or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {asked}: no such GPU, of {torch.cuda.device_count()} that are there; choose cpu")
    return asked


@cache
def processor(device: str) -> str:
    """What computes, in words: a GPU's name, or the CPU's."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [line.split(":", 1)[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def hardware(device: str) -> str:
    """What a time was measured on: the processor, and a CPU's threads."""
    import torch

    on_cpu = torch.device(device).type == "cpu"
    return f"{processor(device)}, {torch.get_num_threads()} threads" if on_cpu else processor(device)


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
