"""Runs the evidence manifests at full length, and makes and checks a submission tree of each group.

    python manifests/evidence/make_trees.py [--lanes N] [--loadgens DIR] [--out DIR]

Nothing here is a result: the echo backend answers without computing, so every tree is branded as a draft.
The tests sleep most of the time, so several run at once; yet Server's limit of 15 ms and the comparisons of
compliance tests want a quiet machine (where it is not, as root: `chrt -r 10` in front). `--loadgens DIR` has
in it the folders v1.0.1 and r1.1 of modules that were built from those tags, for the manifests of v1.0 and
v1.1; without, LoadGen 6 runs them. Where the echo backend's answers cannot be scored (3d-unet), there are
logs but no accuracy, and so no tree.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from orchestrator.manifest import load_manifest
from orchestrator.manifest_fields import Manifest
from orchestrator.plan import plan
from orchestrator.rules import load_round

HERE = Path(__file__).resolve().parent
LOADGRID = str(Path(sys.executable).with_name("loadgrid"))
OWN_LOADGENS = {"v1.0": "v1.0.1", "v1.1": "r1.1"}  # round -> tag of mlcommons/inference
# What no record can say of a backend without a model.
FACTS = (
    "input_data_types=none: synthetic samples",
    "retraining=No",
    "weight_data_types=none: no model",
    "weight_transformations=none: no model",
)
UNSCORED = ("3d-unet-99",)
SECONDS_A_TEST = 460  # on average: most last the rounds' 600 s, accuracy tests 1 to 7 minutes


def main() -> int:
    """Run what has not run, then make the trees; 1 if a run or a tree went wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lanes", type=int, default=os.cpu_count() or 1, help="tests at a time")
    parser.add_argument("--loadgens", type=Path, help="folder with v1.0.1 and r1.1")
    parser.add_argument("--out", type=Path, default=Path("evidence"), help="folder to write")
    asked = parser.parse_args()
    for part in ("manifests", "runs", "trees"):
        (asked.out / part).mkdir(parents=True, exist_ok=True)
    found = [load_manifest(path) for path in sorted(HERE.glob("*.yaml"))]
    waiting = [one for one in found if not list((asked.out / "runs").glob(f"{one.name}-2*"))]
    tests = sum(len(plan(one, load_round(one.round))) for one in waiting)
    hours = tests * SECONDS_A_TEST / 3600 / max(1, min(asked.lanes, len(waiting)))
    print(f"{tests} tests, {asked.lanes} at a time: about {hours:.1f} h", flush=True)
    began = time.monotonic()
    with ThreadPoolExecutor(max(1, asked.lanes)) as lanes:
        ran = list(lanes.map(lambda one: run(one, asked.out, asked.loadgens), waiting))
    print(f"ran for {(time.monotonic() - began) / 3600:.1f} h")
    groups: dict[str, list[Manifest]] = {}
    for one in found:
        groups.setdefault("-".join((one.suite, one.round, one.division)), []).append(one)
    systems = {name: describe(asked.out, name) for name in sorted({one.round for one in found})}
    made = [make(name, group, asked.out, systems[group[0].round]) for name, group in groups.items()]
    return 0 if all(ran) and all(made) else 1


def run(manifest: Manifest, out: Path, loadgens: Path | None) -> bool:
    """Run one manifest, its report in a file beside the runs; whether every test was as it should be."""
    text, tag = manifest.raw.decode(), OWN_LOADGENS.get(manifest.round)
    if loadgens is not None and tag is not None:
        text = text.replace("loadgen:\n", f"loadgen:\n  path: {(loadgens / tag).resolve()}\n")
    place = out / "manifests" / manifest.path.name
    place.write_text(text)
    with open(place.with_suffix(".txt"), "w", encoding="utf-8") as report:
        command = [LOADGRID, "run", "--runs-dir", str(out / "runs"), str(place)]
        code = subprocess.run(command, stdout=report, stderr=subprocess.STDOUT, check=False).returncode
    good = code == 0 or manifest.benchmark in UNSCORED
    print(f"{manifest.name}: {'ran' if good else f'exit code {code}'}, see {report.name}", flush=True)
    return good


def describe(out: Path, round_name: str) -> Path:
    """The description of this machine, with a round's fields."""
    system = out / "systems" / round_name / "echo.json"
    given = ("--given", str(HERE / "system.json"), "--round", round_name, "--out", str(system))
    subprocess.run([LOADGRID, "describe-system", *given], check=False, stdout=subprocess.DEVNULL)
    return system


def make(name: str, group: Sequence[Manifest], out: Path, system: Path) -> bool:
    """Make and check one tree; its only fault is that it is a draft (and, in v1.x, of LoadGen 6)."""
    if any(one.benchmark in UNSCORED for one in group):
        print(f"\n{name}: no tree, for nobody can score what the echo backend answers")
        return True
    print(f"\n{name}", flush=True)
    runs = [max((out / "runs").glob(f"{one.name}-2*")) for one in group]
    tree = out / "trees" / name
    facts = [part for fact in FACTS for part in ("--fact", fact)]
    wanted = ["--system", str(system), "--out", str(tree), *facts, "--draft"]
    if told(LOADGRID, "submit", *map(str, runs), *wanted) not in (0, 1):
        return False
    told(LOADGRID, "check", str(tree), "--round", group[0].round)
    return True


def told(*command: str) -> int:
    """Run a command whose report the user sees."""
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
