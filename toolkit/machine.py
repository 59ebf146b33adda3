"""What this machine computes well: one answer for every room.

Processors and GPUs differ in the types that their matrix products are fast in: bfloat16 is twice as
fast as float32 on some, forty times slower on others, and no list of names tells which. So a few
products are timed once, and the speeds are kept for this machine, these libraries and this device.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from toolkit.errors import ConfigError
from toolkit.leftovers import appearing_file, remove_leftovers
from toolkit.library_errors import check_writable
from toolkit.progress import say

if TYPE_CHECKING:
    import torch

Precision = Literal["bf16", "fp16", "fp32"]
"""A type of matrix products: bfloat16, float16 or float32."""

PrecisionWish = Literal["auto", "bf16", "fp32"]
"""What a recipe may ask of training: `auto` is the type that the device is fast in."""

OVERRIDE = "TOOLKIT_PRECISION"
"""Environment variable that answers `auto` in place of the measurement."""

DTYPE_NAMES: dict[Precision, str] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
ENVIRONMENT_PREFIXES = ("ATEN_", "ONEDNN_", "DNNL_", "MKL_", "OPENBLAS_")
"""Of environment variables by which libraries are told what a processor can do."""

MARGIN = 1.1
"""A narrower type than float32 is taken where it is faster by this: it costs precision."""

UNDISTURBED = 0.75
"""Share of the processor that a measurement had, below which it is not kept for later."""

_CPU_PRODUCT, _GPU_PRODUCT = (512, 576, 1536), (4096, 4096, 4096)
"""Rows, width and columns: a micro-batch in one matrix of a small model, and of a large one."""

_WARM_UP_ROWS, _HOPELESS = 32, 2.0
"""A type that is this many times slower than float32 in a few rows is not timed any further."""

_ROUNDS, _SECONDS = 3, 2.0
"""Rounds of a measurement; and the time after which no further one begins."""

_VERSION = 1


@dataclass(frozen=True)
class ProductSpeeds:
    """How fast a device multiplies matrices.

    Attributes:
        device: kind of device, as torch calls it.
        flops: floating-point operations per second of each type; 0 where it cannot do them.
        disturbed: other work took much of the processor meanwhile.
    """

    device: str
    flops: dict[Precision, float]
    disturbed: bool = False

    @property
    def possible(self) -> list[Precision]:
        """Types that the device can multiply in."""
        return [precision for precision, speed in self.flops.items() if speed > 0.0]

    @property
    def fastest(self) -> Precision:
        """The type to train in: float32, or a narrower one that is faster by `MARGIN`.

        >>> ProductSpeeds("cpu", {"fp32": 1e11, "bf16": 2e11, "fp16": 0.0}).fastest
        'bf16'
        >>> ProductSpeeds("cpu", {"fp32": 1e11, "bf16": 2e9, "fp16": 2e10}).fastest
        'fp32'
        """
        narrow_types: tuple[Precision, ...] = ("bf16", "fp16")
        best = max(narrow_types, key=lambda precision: self.flops.get(precision, 0.0))
        if self.flops.get("bf16", 0.0) >= MARGIN * self.flops["fp32"]:
            # Wherever bfloat16 gains too, its range is worth more than float16's bits.
            best = "bf16"
        return best if self.flops.get(best, 0.0) >= MARGIN * self.flops["fp32"] else "fp32"

    def describe(self, precision: Precision) -> str:
        """Such as `bf16 412 GFLOP/s`."""
        return f"{precision} {self.flops.get(precision, 0.0) / 1e9:,.0f} GFLOP/s"


def cache_folder() -> Path:
    """Where this user's artifacts, answers and measurements are kept: `$TOOLKIT_CACHE`, else
    `cpt-toolkit` in the user's cache folder."""
    if cache_setting := os.environ.get("TOOLKIT_CACHE"):
        return Path(cache_setting).expanduser()
    user_cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(user_cache) if user_cache else Path.home() / ".cache") / "cpt-toolkit"


def check_cache() -> None:
    """Refuse a cache folder that cannot be written to, before hours of work need it.

    Raises:
        ToolkitError: it cannot; says how to take another.
    """
    remove_leftovers(cache_folder(), below=False)
    check_writable(cache_folder(), "Change its rights, or set TOOLKIT_CACHE to another folder.")


def dtype_of(precision: str) -> torch.dtype:
    """The torch type of a precision, such as a settled recipe holds."""
    import torch

    return cast("torch.dtype", getattr(torch, DTYPE_NAMES[cast(Precision, precision)]))


def precision_of(dtype: torch.dtype) -> Precision:
    """The precision that products of a type have; what is none of the three counts as float32."""
    name = str(dtype).removeprefix("torch.")
    return next((precision for precision, known in DTYPE_NAMES.items() if known == name), "fp32")


def current_device() -> torch.device:
    """The device that this process computes on: the first accelerator, else the processor."""
    import torch

    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    return torch.device("cpu")


def choose_training_precision(
    wish: PrecisionWish | Precision,
    device: torch.device | str | None = None,
    where: str = "train.precision",
) -> Precision:
    """The type of matrix products in training.

    Args:
        wish: `auto`, or a type; a slow one is granted with a line that names both speeds.
        device: to train on; the current one by default.
        where: key of the wish, for messages.

    Raises:
        ConfigError: the device cannot multiply in that type at all.
    """
    speeds = product_speeds(device)
    if wish == "auto":
        # float16 would need its losses scaled; float32 is right everywhere.
        return overridden() or ("bf16" if speeds.fastest == "bf16" else "fp32")
    return _grant(wish, speeds, where)


def choose_scoring_precision(
    wish: str,
    stored: torch.dtype,
    device: torch.device | str | None = None,
    where: str = "evaluate.precision",
) -> Precision:
    """The type in which a model is scored, or answers.

    A model is used as it is stored wherever products of that type are fast. Elsewhere its numbers
    are widened to float32, which changes none of them, and only the arithmetic is float32.

    Args:
        wish: `auto`; `stored`, the model's own type at any speed; or a type.
        stored: type of the model's numbers on disk.
        device: to score on; the current one by default.
        where: key of the wish, for messages.

    Raises:
        ConfigError: the device cannot multiply in that type at all.
    """
    speeds = product_speeds(device)
    own = precision_of(stored)
    if wish == "auto":
        fp32_speed = speeds.flops.get("fp32", 0.0)
        as_stored: Precision = own if speeds.flops.get(own, 0.0) >= fp32_speed / MARGIN else "fp32"
        # Widening is exact, all else is not: an override may not round what is scored.
        wanted_precision = overridden()
        return wanted_precision if wanted_precision in (own, "fp32") else as_stored
    return _grant(own if wish == "stored" else cast(Precision, wish), speeds, where)


def overridden() -> Precision | None:
    """What the environment says of `auto`, if anything.

    Raises:
        ConfigError: it names no type.
    """
    environment_value = os.environ.get(OVERRIDE, "").strip() or None
    if environment_value is not None and environment_value not in ("bf16", "fp32"):
        raise ConfigError(f"{OVERRIDE}: must be bf16 or fp32 (got {environment_value!r}).")
    return cast("Precision | None", environment_value)


_SAID: set[tuple[str, str]] = set()


def _grant(wish: Precision, speeds: ProductSpeeds, where: str) -> Precision:
    if speeds.flops.get(wish, 0.0) <= 0.0:
        raise ConfigError(
            f"{where}: {speeds.device} cannot multiply in {wish} here; it can in "
            f"{', '.join(speeds.possible)}. Give auto, or one of these."
        )
    # The environment asks for it by name, so that a line about its speed would only repeat.
    if wish == overridden():
        return wish  # it is known to be wanted
    fast_type = speeds.fastest
    if speeds.flops[wish] * 1.5 < speeds.flops[fast_type] and (where, wish) not in _SAID:
        _SAID.add((where, wish))
        say(
            f"{where}: {wish} as asked, at {speeds.describe(wish)}; {speeds.describe(fast_type)} "
            "would be the fast type here (auto takes it)"
        )
    return wish


_KNOWN: dict[str, ProductSpeeds] = {}


def measure_again() -> None:
    """Measure the current device and the processor anew, in place of what was kept."""
    import torch

    # A set: without an accelerator the two are one, and it is measured once.
    for device in {str(current_device()), "cpu"}:
        torch_device = torch.device(device)
        speeds = measure_product_speeds(torch_device)
        _keep_speeds(_identity(torch_device), speeds)
        _KNOWN[_name_of(torch_device)] = speeds


def product_speeds(device: torch.device | str | None = None) -> ProductSpeeds:
    """Speeds of matrix products on a device: measured once, kept in the cache folder.

    Args:
        device: the current one by default.
    """
    import torch

    torch_device = current_device() if device is None else torch.device(device)
    device_name = _name_of(torch_device)
    if device_name not in _KNOWN:
        machine_identity = _identity(torch_device)
        kept_speeds = _read_speeds(machine_identity)
        if kept_speeds is None:
            kept_speeds = measure_product_speeds(torch_device)
            if not kept_speeds.disturbed:
                _keep_speeds(machine_identity, kept_speeds)
        _KNOWN[device_name] = kept_speeds
    return _KNOWN[device_name]


def _name_of(device: torch.device) -> str:
    # `cuda` and `cuda:0` are one device, to be measured once.
    return str(device) if device.index else device.type


def measure_product_speeds(device: torch.device) -> ProductSpeeds:
    """Time the three products of a linear layer (forward, and both gradients) in each type.

    They differ: where a type has no instructions of its own, one layout may still be fair while
    another is a hundred times slower. Types take turns, and the best of several rounds counts, so
    that other work on the machine disturbs less.
    """
    rows, width, columns = _CPU_PRODUCT if device.type == "cpu" else _GPU_PRODUCT
    all_precisions: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
    # A few rows first: in a type without instructions of its own the whole products may take
    # minutes. Their times, scaled up, stand for types that are not timed in full.
    times: dict[Precision, float] = {}
    for kind in all_precisions:  # a few rows, twice: the first call of a product also prepares it
        found = [_time_products(device, kind, _WARM_UP_ROWS, width, columns) for _ in range(2)]
        if (best := min((t for t in found if t is not None), default=None)) is not None:
            times[kind] = best * rows / _WARM_UP_ROWS
    fair = [kind for kind in times if times[kind] <= _HOPELESS * times.get("fp32", times[kind])]
    best_of_whole: dict[Precision, float] = {}
    # Then the whole products of the types that are left, in turns.
    clocks_at_start = time.perf_counter(), time.process_time()
    for round_number in range(2 * _ROUNDS):
        for kind in fair:
            seconds = _time_products(device, kind, rows, width, columns)
            if seconds is not None:
                best_of_whole[kind] = min(best_of_whole.get(kind, seconds), seconds)
        is_late = time.perf_counter() - clocks_at_start[0] > _SECONDS
        if is_late or (round_number + 1 >= _ROUNDS and not _was_disturbed(device, clocks_at_start)):
            break  # otherwise other work was in the way, and it is measured again
    times |= best_of_whole
    work = 3 * 2.0 * rows * width * columns
    speeds = {kind: work / times[kind] if kind in times else 0.0 for kind in all_precisions}
    return ProductSpeeds(device.type, speeds, _was_disturbed(device, clocks_at_start))


def _was_disturbed(device: torch.device, began: tuple[float, float]) -> bool:
    if device.type != "cpu":
        return False
    import torch

    # Where the process had less of the cores than its threads could use, others had them. Work on a
    # GPU takes no processor time, so there it cannot be told.
    processor_share = (time.process_time() - began[1]) / max(time.perf_counter() - began[0], 1e-9)
    return processor_share < UNDISTURBED * torch.get_num_threads()


def _time_products(
    device: torch.device, kind: Precision, rows: int, width: int, columns: int
) -> float | None:
    """Seconds of `x @ w.T`, `g @ w` and `g.T @ x` together; None where the device cannot."""
    import torch

    dtype = dtype_of(kind)
    try:
        x = torch.ones(rows, width, dtype=dtype, device=device)
        weight = torch.ones(columns, width, dtype=dtype, device=device)
        gradient = torch.ones(rows, columns, dtype=dtype, device=device)
        # A GPU works while the call returns: the clock starts on an idle device, and stops on one.
        _wait_for(device)
        began = time.perf_counter()
        with torch.inference_mode():
            _ = x @ weight.T, gradient @ weight, gradient.T @ x
        _wait_for(device)
        return time.perf_counter() - began
    except (RuntimeError, TypeError, NotImplementedError):
        return None


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        import torch

        torch.accelerator.synchronize(device)


def _identity(device: torch.device) -> dict[str, Any]:
    """Everything that the speeds depend on, as plain values."""
    import torch

    identity: dict[str, Any] = {
        "format": _VERSION,
        "torch": torch.__version__,
        "device": device.type,
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(ENVIRONMENT_PREFIXES)
        },
    }
    if device.type == "cpu":
        cpu_capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        identity |= {
            "machine": platform.machine(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "capabilities": {key: str(value) for key, value in sorted(cpu_capabilities.items())},
            "processor": platform.processor(),
            "threads": torch.get_num_threads(),
        }
    else:
        device_module = getattr(torch, device.type, None)
        get_name = getattr(device_module, "get_device_name", None)
        identity["name"] = get_name(device) if get_name is not None else device.type
    return identity


def _file_of(key: dict[str, Any]) -> Path:
    text = json.dumps(key, sort_keys=True)
    return cache_folder() / "machine" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _read_speeds(key: dict[str, Any]) -> ProductSpeeds | None:
    """What was kept for exactly this machine; None where nothing usable was."""
    try:
        kept_values = json.loads(_file_of(key).read_text(encoding="utf-8"))
        # The name of the file holds a part of the hash; what counts is the whole identity.
        if kept_values["identity"] != key:
            return None
        flops = {name: float(kept_values["speeds"]["flops"][name]) for name in DTYPE_NAMES}
        if not 0.0 < flops["fp32"] < float("inf") or min(flops.values()) < 0.0:
            return None
        return ProductSpeeds(key["device"], flops)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None


def _keep_speeds(key: dict[str, Any], speeds: ProductSpeeds) -> None:
    with contextlib.suppress(OSError, RuntimeError):  # a full disk, no home: measured again
        path = _file_of(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"identity": key, "speeds": asdict(speeds)}, indent=1)
        with appearing_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
