"""The end of the driver's pod: Kubernetes deletes it, and `loadgrid run` has time to write its record."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helm_charts import EXAMPLES, Pod, example, pods
from tests.processes import eventually

TIME_BUDGET_S = 15

LIMIT_S = 60.0
# Says on SIGTERM that it heard it, and ends when the gate lets it.
STAND_IN = """
import os, pathlib, signal, sys

folder, name = pathlib.Path(sys.argv[0]).parent, sys.argv[2]

def heard(*_):
    with open(folder / f"{name}.heard", "a") as file:
        file.write("SIGTERM ")
    (folder / "gate").read_bytes()
    sys.exit()

signal.signal(signal.SIGTERM, heard)
(folder / f"{name}.up").touch()
while True:
    signal.pause()
"""


def driver_of(name: str) -> Pod | None:
    return next((pod for pod in pods(example(name)) if pod.part == "driver"), None)


def test_a_drivers_pod_that_goes_tells_loadgrid_run_once_and_waits_until_it_is_gone(tmp_path: Path) -> None:
    driver = driver_of("quickstart")
    assert driver is not None
    *bash, script = driver.container["lifecycle"]["preStop"]["exec"]["command"]
    program, gate = tmp_path / "loadgrid", tmp_path / "gate"
    program.write_text(STAND_IN)
    os.mkfifo(gate)
    words = [["run", "told"], ["plan", "other"]]
    started = [subprocess.Popen([sys.executable, program, *each]) for each in words]
    try:
        assert eventually(lambda: all((tmp_path / f"{name}.up").exists() for _, name in words), LIMIT_S)
        # Other runs of this machine are none of this pod's. 2 ** 22: a process that has gone meanwhile.
        ours = ",".join(str(number) for number in (*(one.pid for one in started), 2**22))
        here = script.replace("/proc/[0-9]*", f"/proc/{{{ours}}}")
        hook = subprocess.Popen([*bash, here], stderr=subprocess.PIPE)
        assert eventually((tmp_path / "told.heard").exists, LIMIT_S)
        assert hook.poll() is None
        gate.write_bytes(b"")
        assert started[0].wait(LIMIT_S) == 0
        assert (hook.communicate(timeout=LIMIT_S)[1], hook.returncode) == (b"", 0)
        assert started[1].poll() is None and not (tmp_path / "other.heard").exists()
        assert (tmp_path / "told.heard").read_text() == "SIGTERM "
    finally:
        for one in started:
            one.kill()
            one.wait()


@pytest.mark.parametrize("name", EXAMPLES)
def test_kubernetes_leaves_the_driver_longer_than_its_hook_and_the_hook_longer_than_ray(name: str) -> None:
    driver = driver_of(name)
    others = [pod for pod in pods(example(name)) if pod.part != "driver"]
    assert not any("lifecycle" in pod.container for pod in others)
    if driver:
        script = driver.container["lifecycle"]["preStop"]["exec"]["command"][-1]
        (waits_s,) = re.findall(r"SECONDS < (\d+)", script)
        stops_s, whole_s = (
            driver.env["RAY_JOB_STOP_WAIT_TIME_S"],
            driver.template["spec"]["terminationGracePeriodSeconds"],
        )
        assert int(stops_s) < int(waits_s) < whole_s
