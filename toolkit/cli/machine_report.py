"""This machine as plain values: nothing in it names a user, a folder or a host."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from toolkit import __version__
from toolkit.machine import (
    ENVIRONMENT_PREFIXES,
    OVERRIDE,
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


def describe_machine() -> dict[str, Any]:
    """Everything that tells how this machine computes, as plain values."""
    import psutil
    import torch

    device = current_device()
    cpu_speeds, device_speeds = product_speeds("cpu"), product_speeds(device)
    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(".")
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "toolkit": __version__,
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "processor": {
            "name": str(capabilities.get("cpu_name") or platform.processor() or "unknown"),
            "architecture": platform.machine(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "cores": psutil.cpu_count(logical=False),
            "logical_cores": psutil.cpu_count(),
            "threads": torch.get_num_threads(),
            "flops": dict(cpu_speeds.flops),
            "fast_type": cpu_speeds.fastest,
            "disturbed": cpu_speeds.disturbed,
        },
        "accelerators": _accelerators(),
        "accelerator_flops": None if device.type == "cpu" else dict(device_speeds.flops),
        "device": device.type,
        "fast_type": device_speeds.fastest,
        "override": overridden(),
        "memory_bytes": memory.total,
        "free_memory_bytes": memory.available,
        "free_disk_bytes": disk.free,
        "packages": {name: _version(name) for name in PACKAGES},
        "optional": {
            title: importlib.util.find_spec(module) is not None
            for title, module in OPTIONAL.items()
        },
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(ENVIRONMENT_PREFIXES) or name in {OVERRIDE, "OMP_NUM_THREADS"}
        },
    }


def machine_text(described: Mapping[str, Any]) -> str:
    """The same as lines of text."""
    cpu = described["processor"]
    rows = [
        ("toolkit", f"{described['toolkit']}, {described['system']}"),
        (
            "processor",
            f"{cpu['name']} ({cpu['architecture']}, {cpu['capability']}), {cpu['cores']} cores, "
            f"{cpu['threads']} threads",
        ),
        ("products", _speeds(cpu["flops"])),
        ("memory", f"{_gb(described['memory_bytes'])}, {_gb(described['free_memory_bytes'])} free"),
        ("disk", f"{_gb(described['free_disk_bytes'])} free here"),
    ]
    for accelerator in described["accelerators"] or ["none"]:
        rows.append(("accelerator", accelerator))
    if described["accelerator_flops"]:
        rows.append(("products", f"{_speeds(described['accelerator_flops'])} (accelerator)"))
    chosen_type = f"{described['fast_type']} on the {described['device']}"
    if described["override"]:
        chosen_type = f"{described['override']}, as {OVERRIDE} says (measured: {chosen_type})"
    rows.append(("precision: auto", chosen_type))
    package_versions = described["packages"]
    rows.append(
        ("packages", ", ".join(f"{n} {v or 'missing'}" for n, v in package_versions.items()))
    )
    installed_parts = [title for title, is_there in described["optional"].items() if is_there]
    missing_parts = [title for title, is_there in described["optional"].items() if not is_there]
    rows.append(("optional", ", ".join(installed_parts) or "none"))
    rows.append(("not installed", ", ".join(missing_parts) or "none"))
    environment_words = ", ".join(f"{n}={v}" for n, v in described["environment"].items())
    rows.append(("environment", environment_words or "nothing that matters here"))
    if cpu["disturbed"]:
        rows.append(("careful", "other work was running: speeds are lower than this machine's own"))
    return "\n".join(f"{title:<16} {text}" for title, text in rows)


def _speeds(flops: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name} {speed / 1e9:,.0f} GFLOP/s" if speed else f"{name} cannot be done"
        for name, speed in flops.items()
    )


def _accelerators() -> list[str]:
    import torch

    if not torch.accelerator.is_available():
        return []
    device_kind = str(torch.accelerator.current_accelerator())
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
