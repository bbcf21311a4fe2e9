"""What the machine tells of itself: hours, battery, metered network; and what of them keeps it from working now."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hansa.client.policy import Resources, hours_of
from hansa.core.clock import Clock

_SECONDS: Final = 5


def local_hour(now: float) -> float:
    """Return the hour of the day here, 0 to 24."""
    local = time.localtime(now)
    return local.tm_hour + local.tm_min / 60


def network_is_metered() -> bool:
    """Return whether NetworkManager says that a connection is metered; False where nothing is told."""
    command = shutil.which("nmcli")
    if command is None:
        return False
    try:
        told = subprocess.run(  # noqa: S603 - a fixed command
            [command, "-g", "GENERAL.METERED", "device", "show"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return any(line.strip().startswith("yes") for line in told.stdout.splitlines())


@dataclass(frozen=True)
class Machine:
    """What the platform tells of time, power and network; a test brings one of its own."""

    power: Path = Path("/sys/class/power_supply")
    hour: Callable[[float], float] = local_hour
    metered: Callable[[], bool] = network_is_metered

    def battery(self) -> float | None:
        """Return the charge (0 to 1) where the machine runs on battery; None on mains, or where nothing is told."""
        charges = []
        for supply in self._supplies():
            kind = _text(supply / "type")
            if kind in {"Mains", "USB"} and _text(supply / "online") == "1":
                return None
            if kind == "Battery" and _text(supply / "scope") != "Device":
                capacity = _text(supply / "capacity")
                charges.append(int(capacity) / 100 if capacity.isdecimal() else 1.0)
                if _text(supply / "status") in {"Charging", "Full", "Not charging"}:
                    return None
        return min(charges, default=None)

    def _supplies(self) -> Iterator[Path]:
        try:
            yield from sorted(self.power.iterdir())
        except OSError:
            return


def obstacles(resources: Resources, clock: Clock, machine: Machine) -> list[str]:
    """Return why the machine is not to work now, a sentence each; none where it may."""
    reasons = []
    hours, hour = hours_of(resources.hours), machine.hour(clock.now())
    if hours and not any(_within(hour, start, end) for start, end in hours):
        reasons.append(f"it is not within the hours {resources.hours!r}")
    charge = machine.battery() if resources.battery else None
    if charge is not None and (charge < resources.battery or resources.battery == 1):
        reasons.append("the machine runs on battery")
    if not resources.metered_network and machine.metered():
        reasons.append("the network is metered")
    return reasons


def _within(hour: float, start: float, end: float) -> bool:
    return start <= hour < end if start < end else hour >= start or hour < end


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
