"""`doctor`: what is installed, what each operator runs on, and what is missing for which feature."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import sys
from dataclasses import dataclass
from typing import Any

from rlforget.cli import output
from rlforget.cli.options import Json
from rlforget.errors import missing_extra

REQUIRED = (
    "torch>=2.8",
    "triton>=3.4",
    "numpy>=1.26",
    "safetensors>=0.5",
    "numba>=0.61",
    "scipy>=1.13",
    "zstandard>=0.23",
    "xxhash>=3.4",
)


@dataclass(frozen=True)
class Feature:
    """Something that needs more than the core.

    Attributes:
        purpose: What it is for.
        extra: The extra that installs it.
        requirements: What it needs: distributions, with the least version of each.
    """

    purpose: str
    extra: str
    requirements: tuple[str, ...]

    def missing(self) -> list[str]:
        """Return the requirements that are not met here."""
        return [one for one in self.requirements if not _is_met(one)]


FEATURES = (
    Feature(
        "models: demo, train, sequence, refresh, conflict, rollback",
        "train",
        (
            "transformers>=5.11",
            "trl>=1.16",
            "accelerate>=1.15",
            "datasets>=4.0",
            "peft>=0.21",
            "pydantic>=2.10",
            "pyyaml>=6.0",
            "jsonschema>=4.23",
        ),
    ),
    Feature("pages: report, demo", "report", ("plotly>=6.0", "matplotlib>=3.9")),
    Feature("the command line", "cli", ("typer>=0.20", "rich>=13.9")),
    Feature("domains reasoning-gym:NAME", "reasoning-gym", ("reasoning-gym>=0.1.23",)),
)
"""What is optional for a user, as in setup.py."""

RUNS_ON = ("linux", "darwin")
"""What is supported, as `sys.platform` calls it."""

_DISTRIBUTION = {"yaml": "pyyaml", "reasoning_gym": "reasoning-gym"}  # by the name that is imported


def doctor(as_json: Json = False) -> None:
    """Show platform, versions, devices, the backend of each operator, and what is missing for which feature."""
    found = diagnosis()
    if as_json:
        output.json_object(found)
        return
    here = found["platform"]
    fit = "" if here["supported"] else ": not supported"
    output.line(f"{here['system']} {here['machine']}{fit} (runs on Linux; on macOS on CPUs alone; not on Windows)")
    output.line()
    output.table(("package", "version"), [(name, version or "missing") for name, version in found["versions"].items()])
    output.line()
    output.table(("device", "", "memory"), [(d["name"], d["description"], d["memory"]) for d in found["devices"]])
    output.line()
    rows = [(op["name"], op["cpu"], op["cuda"]) for op in found["operators"]]
    output.table(("operator", "CPU tensors", "CUDA tensors"), rows)
    output.line()
    for feature in found["features"]:
        missing = ", ".join(feature["missing"])
        state = f"missing {missing}. Install it with: {feature['install']}" if missing else "ready"
        output.line(f"{feature['purpose']}: {state}")


def diagnosis() -> dict[str, Any]:
    """Return everything that `doctor` shows."""
    every = [*REQUIRED, *(requirement for feature in FEATURES for requirement in feature.requirements)]
    packages = [requirement.partition(">=")[0] for requirement in every]
    core = Feature("the core: diff, apply, revert", "", tuple(one for one in REQUIRED if _is_wanted(one)))
    return {
        "platform": {"system": platform.system(), "machine": platform.machine(), "supported": sys.platform in RUNS_ON},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "devices": _devices(),
        "operators": _operators(),
        "features": [
            {
                "purpose": feature.purpose,
                "extra": feature.extra,
                "missing": feature.missing(),
                "install": f"pip install 'rlforget[{feature.extra}]'" if feature.extra else "pip install rlforget",
            }
            for feature in (core, *FEATURES)
        ],
    }


def need(*extras: str) -> None:
    """Hold that all that some extras install is here, before long work that needs all of them begins.

    Raises:
        MissingExtraError: Something is not; the message names all of it, and the command that installs it.
    """
    lacking = {f.extra: missing for f in FEATURES if f.extra in extras and (missing := f.missing())}
    if lacking:
        raise missing_extra(", ".join(one for missing in lacking.values() for one in missing), *lacking)


def extra_of(module: str) -> str | None:
    """Return the extra that installs an importable module, or None where it is no optional dependency."""
    package = distribution_of(module)
    for feature in FEATURES:
        if package in (requirement.partition(">=")[0] for requirement in feature.requirements):
            return feature.extra
    return None


def distribution_of(module: str) -> str:
    """Return what an importable module is installed as."""
    name = module.partition(".")[0]
    return _DISTRIBUTION.get(name, name)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_wanted(requirement: str) -> bool:
    """Whether this platform takes it: triton is for Linux alone."""
    return sys.platform == "linux" or not requirement.startswith("triton")


def _is_met(requirement: str) -> bool:
    package, _, least = requirement.partition(">=")
    found = _version(package)
    return found is not None and _numbers(found) >= _numbers(least)


def _numbers(version: str) -> list[int]:
    """Return the leading numbers of a version, e.g. [2, 11, 0] of 2.11.0+cu130."""
    match = re.match(r"\d+(\.\d+)*", version)
    return [int(part) for part in match[0].split(".")] if match else []


def _devices() -> list[dict[str, str]]:
    import torch

    devices = [{"name": "cpu", "description": f"{torch.get_num_threads()} threads", "memory": ""}]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": f"cuda:{index}",
                "description": f"{properties.name}, sm_{properties.major}{properties.minor}",
                "memory": f"{properties.total_memory / 2**30:.0f} GiB",
            }
        )
    return devices


def _operators() -> list[dict[str, str]]:
    import torch

    from rlforget_kernels import OPERATORS

    numba = "numba" if importlib.util.find_spec("numba") else "none: numba is missing"
    triton = "triton" if importlib.util.find_spec("triton") else "none: triton is missing"
    if not torch.cuda.is_available():
        triton += " (no device here)"
    return [{"name": name, "cpu": numba, "cuda": triton} for name in OPERATORS]
