"""Devices to train on: what they hold, what they compute, what an hour of them costs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from toolkit.errors import ConfigError, sentence_end
from toolkit.load_yaml import load_yaml
from toolkit.section import Section, check_section

PRICES_DATED = "2025, from memory of public on-demand lists: check, or give your own"
"""Where the default prices come from: clouds differ by a factor of three, and change."""


@dataclass(frozen=True)
class Device:
    """One kind of device.

    Attributes:
        name: name in `--devices 8xH100`.
        memory_bytes: memory of one, as its vendor writes it.
        flops: peak of dense bfloat16 matrix products, operations per second.
        price: dollars per hour for one.
        utilization: share of the peak that training reaches; an assumption where not measured.
        is_measured: whether `flops` was measured here, so that `utilization` is 1.
    """

    name: str
    memory_bytes: float
    flops: float
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
        # Memory and dense bf16 peak as in the vendor's data sheets; prices PRICES_DATED.
        Device("H100", 80 * _GB, 989 * _T, 3.00, 0.40),
        Device("H200", 141 * _GB, 989 * _T, 3.80, 0.40),
        Device("B200", 180 * _GB, 2250 * _T, 5.50, 0.35),
        Device("A100", 80 * _GB, 312 * _T, 1.80, 0.45),
        Device("L40S", 48 * _GB, 362 * _T, 1.00, 0.35),
    )
}
"""utilization: an assumption in the middle of what is reported for dense models with FSDP (0.3 to
0.5 of the peak); `--utilization` replaces it."""

CPU = "CPU"


def _refuse_truth(value: object) -> object:
    """A `yes` is no number, though Python would count it as 1."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number (got {value})")
    return value


Measure = Annotated[float, BeforeValidator(_refuse_truth), Field(ge=0.0, allow_inf_nan=False)]


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
    # People write 8xH100, 8*H100 and 8×H100.
    match = re.fullmatch(r"\s*(?:(\d+)\s*[x*×]\s*)?([\w.-]+)\s*", text)
    if match is None or (match[1] and int(match[1]) < 1):
        raise ConfigError(f"--devices: must be like 8xH100 or L40S (got {text!r}).")
    fleet = Fleet(int(match[1] or 1), find_device(match[2], known, "--devices"))
    if fleet.device.name == CPU and fleet.count > 1:
        raise ConfigError(
            f"--devices: {CPU} is this machine, all of its processors, and there is one of it "
            f"(got {text!r}); write {CPU}."
        )
    return fleet


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


class OwnDevice(Section):
    """A device of the user's, as a file for `--prices` describes it."""

    memory_gb: Annotated[Measure, Field(gt=0.0)]
    tflops: Annotated[Measure, Field(gt=0.0)]
    price: Measure = 0.0
    utilization: Annotated[Measure, Field(gt=0.0, le=1.0)] = 0.35

    def as_device(self, name: str) -> Device:
        memory_bytes, flops = self.memory_gb * _GB, self.tflops * _T
        return Device(name, memory_bytes, flops, self.price, self.utilization)


def with_prices(
    known: Mapping[str, Device], given: Sequence[str], file: Path | None
) -> dict[str, Device]:
    """Devices with the user's prices, and the user's own devices.

    Args:
        known: table of devices.
        given: `NAME=dollars per hour`, once for each; they win over the file.
        file: YAML with `prices: {H100: 2.5}` and `devices: {NAME: {memory_gb, tflops, price,
            utilization}}`, or prices alone.

    Raises:
        ConfigError: a device is not known, or a number is none.
    """
    devices = dict(known)
    named_prices: list[tuple[str, str, object]] = []
    if file is not None:
        own_devices, file_prices = _read_prices(file)
        devices |= own_devices
        named_prices += [(f"{file}: {name}", name, price) for name, price in file_prices.items()]
    for text in given:
        name, sign, dollars = text.partition("=")
        if not sign:
            raise ConfigError(f"--price: must be like H100=2.5 (got {text!r}).")
        named_prices.append(("--price", name, dollars))
    for where, name, price in named_prices:
        device = find_device(name, devices, where)
        devices[device.name] = replace(device, price=_number(price, f"{where}: {name}"))
    return devices


def _read_prices(file: Path) -> tuple[dict[str, Device], dict[str, object]]:
    """The user's own devices, and prices by device."""
    values = load_yaml(file)
    own_devices = values.pop("devices", {})
    # A file of prices alone needs no heading.
    prices = values.pop("prices", None)
    if prices is None:
        prices = values
    elif values:
        unknown_keys = ", ".join(map(str, values))
        raise ConfigError(f"{file}: {unknown_keys}: unknown key beside prices and devices.")
    if not isinstance(own_devices, dict) or not isinstance(prices, dict):
        raise ConfigError(f"{file}: prices and devices must be keys with values.")
    own_by_name = {}
    for name, measures in own_devices.items():
        where = f"{file}: devices.{name}"
        if not isinstance(measures, dict):
            raise ConfigError(f"{where}: must hold memory_gb, tflops and price (got {measures!r}).")
        section, faults = check_section(OwnDevice, measures)
        if section is None:
            raise ConfigError("\n".join(f"{where}.{fault}" for fault in faults))
        own_by_name[str(name)] = section.as_device(str(name))
    return own_by_name, {str(name): price for name, price in prices.items()}


def _number(value: object, where: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    # NaN fails the first comparison; a bool is a number to Python and no price.
    if not 0.0 <= number < math.inf or isinstance(value, bool):
        raise ConfigError(f"{where}: must be a number, not below 0 (got {value!r}).")
    return number
