"""Devices to train on: what they hold, what they compute, what an hour of them costs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.errors import ConfigError, sentence_end
from toolkit.load_yaml import load_yaml

PRICES_DATED = "2025, from memory of public on-demand lists: check, or give your own"
"""Where the default prices come from: clouds differ by a factor of three, and change."""


@dataclass(frozen=True)
class Device:
    """One kind of device.

    Attributes:
        name: as in `--devices 8xH100`.
        memory_bytes: of one, as its vendor writes it.
        flops: peak of dense bfloat16 matrix products, operations a second.
        bandwidth: of its memory, bytes a second.
        price: dollars an hour for one.
        utilization: share of the peak that training reaches; an assumption where not measured.
        is_measured: `flops` is what was measured here, so that `utilization` is 1.
    """

    name: str
    memory_bytes: float
    flops: float
    bandwidth: float
    price: float
    utilization: float
    is_measured: bool = False

    @property
    def sustained(self) -> float:
        """Operations a second in training."""
        return self.flops * self.utilization


_GB, _T = 1e9, 1e12
DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        # Memory, dense bf16 peak and bandwidth as in the vendor's data sheets; prices PRICES_DATED.
        Device("H100", 80 * _GB, 989 * _T, 3.35 * _T, 3.00, 0.40),
        Device("H200", 141 * _GB, 989 * _T, 4.8 * _T, 3.80, 0.40),
        Device("B200", 180 * _GB, 2250 * _T, 8.0 * _T, 5.50, 0.35),
        Device("A100", 80 * _GB, 312 * _T, 2.04 * _T, 1.80, 0.45),
        Device("L40S", 48 * _GB, 362 * _T, 0.864 * _T, 1.00, 0.35),
    )
}
"""utilization: an assumption in the middle of what is reported for dense models with FSDP (0.3 to
0.5 of the peak); `--utilization` replaces it."""

CPU = "CPU"


@dataclass(frozen=True)
class Fleet:
    """So many devices of one kind."""

    count: int
    device: Device

    @property
    def text(self) -> str:
        return self.device.name if self.count == 1 else f"{self.count}x{self.device.name}"


def parse_fleet(text: str, known: Mapping[str, Device]) -> Fleet:
    """Read `8xH100` or `L40S`.

    Raises:
        ConfigError: no such device, or no number.

    >>> parse_fleet("8xh100", DEVICES).text
    '8xH100'
    """
    found = re.fullmatch(r"\s*(?:(\d+)\s*[x*×]\s*)?([\w.-]+)\s*", text)
    if found is None or (found[1] and int(found[1]) < 1):
        raise ConfigError(f"--devices: must be like 8xH100 or L40S (got {text!r}).")
    device = find_device(found[2], known, "--devices")
    return Fleet(int(found[1] or 1), device)


def find_device(name: str, known: Mapping[str, Device], where: str) -> Device:
    """A device by name, whatever the case.

    Raises:
        ConfigError: it is not known; the message lists those that are.
    """
    by_key = {key.upper(): device for key, device in known.items()}
    if name.upper() not in by_key:
        hint = sentence_end(name.upper(), by_key)
        raise ConfigError(
            f"{where}: there is no device {name!r}{hint} Known: {', '.join(known)}; others "
            "with memory_gb, tflops and price under `devices:` in a file for --prices."
        )
    return by_key[name.upper()]


def with_prices(
    known: Mapping[str, Device], given: Sequence[str], file: Path | None
) -> dict[str, Device]:
    """Devices with the user's prices, and the user's own devices.

    Args:
        known: the table.
        given: `NAME=dollars an hour`, once for each; they win over the file.
        file: YAML with `prices: {H100: 2.5}` and `devices: {NAME: {memory_gb, tflops, price,
            bandwidth_tb, utilization}}`, or prices alone.

    Raises:
        ConfigError: a device is not known, or a number is none.
    """
    devices = dict(known)
    prices: dict[str, tuple[object, str]] = {}
    if file is not None:
        values = load_yaml(file)
        own = values.pop("devices", {})
        listed = values.pop("prices", None)
        if listed is not None and values:
            raise ConfigError(
                f"{file}: {', '.join(map(str, values))}: unknown key beside prices and devices."
            )
        if not isinstance(own, dict) or not isinstance(values if listed is None else listed, dict):
            raise ConfigError(f"{file}: prices and devices must be keys with values.")
        for name, measures in own.items():
            devices[str(name)] = _own_device(str(name), measures, f"{file}: devices.{name}")
        for name, price in (values if listed is None else listed).items():
            prices[str(name)] = (price, f"{file}: {name}")
    for text in given:
        name, sign, price = text.partition("=")
        if not sign:
            raise ConfigError(f"--price: must be like H100=2.5 (got {text!r}).")
        prices[name] = (price, "--price")
    for name, (price, where) in prices.items():
        device = find_device(name, devices, where)
        devices[device.name] = replace(device, price=_number(price, f"{where}: {name}"))
    return devices


_MEASURES = ("memory_gb", "tflops", "price", "bandwidth_tb", "utilization")


def _own_device(name: str, measures: object, where: str) -> Device:
    if not isinstance(measures, dict):
        raise ConfigError(f"{where}: must hold memory_gb, tflops and price.")
    for key in measures:
        if key not in _MEASURES:
            hint = sentence_end(str(key), _MEASURES)
            raise ConfigError(f"{where}.{key}: unknown key{hint}")
    for key in ("memory_gb", "tflops"):
        if key not in measures:
            raise ConfigError(f"{where}.{key}: is missing.")
    numbers = {key: _number(value, f"{where}.{key}") for key, value in measures.items()}
    utilization = numbers.get("utilization", 0.35)
    if not 0.0 < utilization <= 1.0:
        raise ConfigError(
            f"{where}.utilization: must be above 0 and at most 1 (got {utilization})."
        )
    return Device(
        name,
        numbers["memory_gb"] * _GB,
        numbers["tflops"] * _T,
        numbers.get("bandwidth_tb", math.nan) * _T,
        numbers.get("price", 0.0),
        utilization,
    )


def _number(value: object, where: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not 0.0 <= number < math.inf or isinstance(value, bool):
        raise ConfigError(f"{where}: must be a number, not below 0 (got {value!r}).")
    return number
