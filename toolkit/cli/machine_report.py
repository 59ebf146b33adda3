"""This machine as plain values: nothing in it names a user, a folder or a host."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

from toolkit import __version__
from toolkit.machine import (
    ENVIRONMENT_PREFIXES,
    OVERRIDE,
    Precision,
    current_device,
    overridden,
    product_speeds,
)

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "peft",
    "numpy",
    "numba",
    "mergekit",
    "lm_eval",
    "optuna",
    "safetensors",
    "tokenizers",
)

OPTIONAL = {
    "flash-attention": "flash_attn",
    "liger kernels": "liger_kernel",
    "S3 (s3fs)": "s3fs",
    "PostgreSQL (psycopg)": "psycopg",
    "bitsandbytes": "bitsandbytes",
    "TensorBoard": "tensorboard",
    "Weights & Biases": "wandb",
    "Trackio": "trackio",
}


@dataclass(frozen=True)
class ProcessorReport:
    """The processor, and what its products reach."""

    name: str
    architecture: str
    capability: str
    cores: int | None
    logical_cores: int | None
    threads: int
    flops: Mapping[Precision, float]
    fast_type: str
    disturbed: bool


@dataclass(frozen=True)
class MachineReport:
    """Everything that tells how this machine computes; the JSON is its dump."""

    toolkit: str
    system: str
    processor: ProcessorReport
    accelerators: list[str]
    accelerator_flops: Mapping[Precision, float] | None
    device: str
    fast_type: str
    override: str | None
    memory_bytes: int
    free_memory_bytes: int
    free_disk_bytes: int
    packages: dict[str, str | None]
    optional: dict[str, bool]
    environment: dict[str, str]


def describe_machine() -> MachineReport:
    """Measure and look up what the report holds."""
    import psutil
    import torch

    device = current_device()
    cpu_speeds, device_speeds = product_speeds("cpu"), product_speeds(device)
    memory = psutil.virtual_memory()
    # Older versions of torch have no such function; `dict` answers with nothing.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return MachineReport(
        toolkit=__version__,
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        processor=ProcessorReport(
            name=str(capabilities.get("cpu_name") or platform.processor() or "unknown"),
            architecture=platform.machine(),
            capability=torch.backends.cpu.get_cpu_capability(),
            cores=psutil.cpu_count(logical=False),
            logical_cores=psutil.cpu_count(),
            threads=torch.get_num_threads(),
            flops=cpu_speeds.flops,
            fast_type=cpu_speeds.fastest,
            disturbed=cpu_speeds.disturbed,
        ),
        accelerators=_accelerators(),
        accelerator_flops=None if device.type == "cpu" else device_speeds.flops,
        device=device.type,
        fast_type=device_speeds.fastest,
        override=overridden(),
        memory_bytes=memory.total,
        free_memory_bytes=memory.available,
        free_disk_bytes=shutil.disk_usage(".").free,
        packages={name: _version(name) for name in PACKAGES},
        optional={
            title: importlib.util.find_spec(module) is not None
            for title, module in OPTIONAL.items()
        },
        environment={
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(ENVIRONMENT_PREFIXES) or name in {OVERRIDE, "OMP_NUM_THREADS"}
        },
    )


def machine_text(report: MachineReport) -> str:
    """The same as lines of text."""
    cpu = report.processor
    chosen_type = f"{report.fast_type} on the {report.device}"
    if report.override:
        chosen_type = f"{report.override}, as {OVERRIDE} says (measured: {chosen_type})"
    versions = (f"{name} {version or 'missing'}" for name, version in report.packages.items())
    installed_parts = [title for title, is_there in report.optional.items() if is_there]
    missing_parts = [title for title, is_there in report.optional.items() if not is_there]
    variables = ", ".join(f"{name}={value}" for name, value in report.environment.items())
    kind = f"{cpu.architecture}, {cpu.capability}"
    rows = [
        ("toolkit", f"{report.toolkit}, {report.system}"),
        ("processor", f"{cpu.name} ({kind}), {cpu.cores} cores, {cpu.threads} threads"),
        ("products", _speeds(cpu.flops)),
        ("memory", f"{_gb(report.memory_bytes)}, {_gb(report.free_memory_bytes)} free"),
        ("disk", f"{_gb(report.free_disk_bytes)} free here"),
        *(("accelerator", accelerator) for accelerator in report.accelerators or ["none"]),
    ]
    if report.accelerator_flops:
        rows.append(("products", f"{_speeds(report.accelerator_flops)} (accelerator)"))
    rows += [
        ("precision: auto", chosen_type),
        ("packages", ", ".join(versions)),
        ("optional", ", ".join(installed_parts) or "none"),
        ("not installed", ", ".join(missing_parts) or "none"),
        ("environment", variables or "nothing that matters here"),
    ]
    if cpu.disturbed:
        rows.append(("careful", "other work was running: speeds are lower than this machine's own"))
    return "\n".join(f"{title:<16} {text}" for title, text in rows)


def _speeds(flops: Mapping[Precision, float]) -> str:
    return ", ".join(
        f"{name} {speed / 1e9:,.0f} GFLOP/s" if speed else f"{name} cannot be done"
        for name, speed in flops.items()
    )


def _accelerators() -> list[str]:
    import torch

    if not torch.accelerator.is_available():
        return []
    device_kind = str(torch.accelerator.current_accelerator())
    # `torch.cuda`, `torch.xpu` and their like; not all have names and properties.
    torch_module = getattr(torch, device_kind.partition(":")[0], None)
    device_lines = []
    for number in range(torch.accelerator.device_count()):
        name = getattr(torch_module, "get_device_name", lambda _: device_kind)(number)
        device_properties = getattr(torch_module, "get_device_properties", None)
        memory_words = (
            f", {_gb(device_properties(number).total_memory)}"
            if device_properties is not None
            else ""
        )
        device_lines.append(f"{name}{memory_words}")
    return device_lines


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
