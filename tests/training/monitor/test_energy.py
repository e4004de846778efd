"""Energy is what the counters say: through their wraps, over all sessions, and never a part for the whole."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch

from terminus.training.distributed.process_group import World
from terminus.training.monitor import energy
from terminus.training.monitor.energy import EnergyLog, energy_measured, measured_energy
from terminus.training.monitor.energy_counters import Counters, find_counters, find_nvml, find_rapl

CPU = torch.device("cpu")
RANGE = 262_143_328_850


class Powercap:
    """A folder like /sys/class/powercap: two packages, one with its memory, and zones that overlap with them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True)
        for zone, name in {"0": "package-0", "0:0": "core", "0:1": "dram", "1": "package-1", "2": "psys"}.items():
            (root / f"intel-rapl:{zone}").mkdir()
            (root / f"intel-rapl:{zone}" / "name").write_text(f"{name}\n")
            (root / f"intel-rapl:{zone}" / "max_energy_range_uj").write_text(f"{RANGE}\n")
            self.set(zone, 0)
        (root / "intel-rapl").mkdir()

    def set(self, zone: str, microjoules: int) -> None:
        (self.root / f"intel-rapl:{zone}" / "energy_uj").write_text(f"{microjoules}\n")


@pytest.fixture
def powercap(tmp_path: Path) -> Powercap:
    return Powercap(tmp_path / "powercap")


def test_packages_and_their_memory_are_added_and_nothing_twice(powercap: Powercap, tmp_path: Path):
    powercap.set("0", RANGE - 1_000_000)
    with EnergyLog(tmp_path / "energy-0.json", find_rapl(powercap.root), 1000.0):
        powercap.set("0", 2_000_000)  # went round once: 3 J
        powercap.set("1", 5_000_000)
        powercap.set("0:1", 250_000)
        powercap.set("0:0", 1_000_000)  # inside package 0
        powercap.set("2", 9_000_000)  # the whole machine
    found = measured_energy(tmp_path)
    assert found.joules == {"RAPL": pytest.approx(8.25)}
    assert found.missing is None


def test_a_thread_follows_counters_that_go_round_more_than_once(
    powercap: Powercap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(energy, "SECONDS_BETWEEN_READINGS", 0.01)
    path = tmp_path / "energy-0.json"
    with EnergyLog(path, find_rapl(powercap.root), 1000.0):
        for reading in (RANGE - 1, 1_000_000, RANGE - 1, 2_000_000):
            powercap.set("0", reading)
            wait_until_read(path, reading, powercap)
    assert measured_energy(tmp_path).joules["RAPL"] == pytest.approx(2 * RANGE / 1e6 + 2.0)


def wait_until_read(path: Path, reading: int, powercap: Powercap) -> None:
    """The second package counts on until the file shows that both were read."""

    def seconds() -> float:
        return json.loads(path.read_text())["sessions"][-1]["seconds"]

    begin, end = seconds(), time.monotonic() + 30
    changes = 0
    while changes < 2:  # the first reading may have begun before the counter was set
        assert time.monotonic() < end
        time.sleep(0.002)
        if (now := seconds()) > begin:
            begin, changes = now, changes + 1


def test_sessions_that_were_killed_count(powercap: Powercap, tmp_path: Path):
    path = tmp_path / "energy-0.json"
    killed = EnergyLog(path, find_rapl(powercap.root), 1000.0).__enter__()
    powercap.set("0", 7_000_000)
    killed._add()  # what its thread does; then it is gone without an end
    powercap.set("0", 90_000_000)  # between the sessions, which is not the run's
    with EnergyLog(path, find_rapl(powercap.root), 5000.0):
        powercap.set("0", 93_000_000)
    killed._ended.set()
    killed._thread.join()
    assert measured_energy(tmp_path).joules == {"RAPL": pytest.approx(10.0)}
    assert [row["started"] for row in json.loads(path.read_text())["sessions"]] == [1000.0, 5000.0]


def test_a_session_without_counters_is_not_covered(powercap: Powercap, tmp_path: Path):
    with EnergyLog(tmp_path / "energy-0.json", find_rapl(powercap.root), 1000.0):
        powercap.set("0", 7_000_000)
    covered = measured_energy(tmp_path).seconds
    with EnergyLog(tmp_path / "energy-0.json", find_rapl(tmp_path / "nowhere"), 2000.0):
        pass
    found = measured_energy(tmp_path)
    assert (found.joules, found.seconds) == ({"RAPL": pytest.approx(7.0)}, covered)
    assert found.missing == f"this machine has no {tmp_path / 'nowhere'}"


def test_a_counter_that_goes_away_ends_the_measurement_and_not_the_run(
    powercap: Powercap, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with EnergyLog(tmp_path / "energy-0.json", find_rapl(powercap.root), 1000.0):
        shutil.rmtree(powercap.root)
    assert "energy is no longer measured" in caplog.text
    assert measured_energy(tmp_path).joules == {}


@pytest.mark.parametrize("damage", [b"", b"{", b'{"sessions": [{}]}', b"[]", b"\x00" * 64], ids=range(5))
def test_a_damaged_file_ends_no_run(powercap: Powercap, tmp_path: Path, damage: bytes):
    (tmp_path / "energy-0.json").write_bytes(damage)
    assert measured_energy(tmp_path).joules == {}
    with EnergyLog(tmp_path / "energy-0.json", find_rapl(powercap.root), 1000.0):
        powercap.set("1", 1_000_000)
    assert measured_energy(tmp_path).joules == {"RAPL": 1.0}


def test_what_may_not_be_read_is_said(powercap: Powercap):
    assert find_rapl(powercap.root).missing is None
    for zone in powercap.root.iterdir():
        (zone / "energy_uj").unlink(missing_ok=True)
        (zone / "energy_uj").mkdir()  # root, as which tests may run, can read any file
    assert find_rapl(powercap.root) == Counters(missing=f"{powercap.root} cannot be read (Is a directory)")


def test_the_packages_of_a_machine_are_counted_by_one_process(powercap: Powercap):
    assert len(find_counters(CPU, first_here=True, powercap=powercap.root).found) == 3
    assert find_counters(CPU, first_here=False, powercap=powercap.root) == Counters()


def test_several_processes_measure_all_or_none(powercap: Powercap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(energy, "find_counters", lambda device, first: find_rapl(powercap.root))
    for other, joules in ((None, {"RAPL": 4.0}), ("no driver", {})):
        folder = tmp_path / str(other)
        folder.mkdir()
        monkeypatch.setattr(World, "gather", lambda self, mine, other=other: [mine, other])
        powercap.set("0", 0)
        with energy_measured(folder, CPU, 1000.0, World(0, 2, 2)):
            powercap.set("0", 4_000_000)
        found = measured_energy(folder)
        assert (found.joules, found.missing) == (joules, other)


NVML = """
#include <string.h>
static unsigned long long millijoules = 1000;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  if (strcmp(uuid, "GPU-there")) return 6;
  *device = &millijoules;
  return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *energy) {
  *energy = (*(unsigned long long *)device += 2500);
  return 0;
}
const char *nvmlErrorString(int status) { return status == 6 ? "Not Found" : "Unknown"; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_gpu_is_measured_by_its_drivers_library(tmp_path: Path):
    """Through the functions of NVML's C interface; the device behind them is a stand-in."""
    (tmp_path / "nvml.c").write_text(NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True)
    with EnergyLog(tmp_path / "energy-0.json", find_nvml("GPU-there", str(library)), 1000.0):
        pass  # each reading is 2.5 J more than the one before
    assert measured_energy(tmp_path).joules == {"NVML": pytest.approx(2.5)}
    gone = find_nvml("GPU-gone", str(library))
    assert gone.missing == "NVML does not count this GPU (nvmlDeviceGetHandleByUUID: Not Found)"
    assert "cannot open shared object file" in (find_nvml("GPU-there", "no-such-library.so").missing or "")
