"""The segmentation example: its task, network and scorer, and the whole of it where its packages are."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml

from orchestrator.accuracy import AccuracyError
from orchestrator.manifest import load_manifest
from orchestrator.scorers import score
from workers.backends import BackendError
from workers.backends.torch_weights import load_weights
from workers.installed import LocateError, locate
from workers.library import Library
from workers.models import ModelError, open_model
from workers.models.deepbet import LinkNet
from workers.models.torchscript_state import is_torchscript, read_tensors
from workers.tasks import Task, TaskError, open_task

TIME_BUDGET_S = 150  # with the example's packages; 10 without them

MANIFEST = Path(__file__).parents[1] / "manifests" / "examples" / "segmentation.yaml"
SCAN = (30, 40, 36)


def test_the_manifest_is_read_and_asks_for_the_example() -> None:
    assert load_manifest(MANIFEST).name == "segmentation"


def section(name: str) -> dict[str, Any]:
    """A section of the example's manifest as it is written."""
    held: dict[str, Any] = yaml.safe_load(MANIFEST.read_text())[name]
    return held


def missing_parts() -> str:
    """What of the example is not installed; nothing if all of it is."""
    backend, task = section("backend"), section("task")
    try:
        files = [locate(backend["weights"]), locate(backend["options"]["box_weights"])]
    except LocateError as error:
        return str(error)
    files += [Path(task["path"]) / name for name in (*task["heads"], *task["masks"])]
    return ", ".join(str(file) for file in files if not file.is_file())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """Two made heads, one of them stored mirrored, and their masks."""
    rng = np.random.default_rng(1)
    for i, direction in enumerate((1.0, -1.0)):
        mask = np.zeros(SCAN, np.uint8)
        mask[8:20, 10:30, 9 + i : 25] = 1
        for name, voxels in (("head", 100.0 * mask + rng.uniform(0, 9, SCAN)), ("brain", 7 * mask)):
            image = nibabel.Nifti1Image(voxels.astype(np.float32), np.diag([direction, 1.0, 1.0, 1.0]))
            nibabel.save(image, tmp_path / f"{name}{i}.nii.gz")
    names = {"heads": ["head0.nii.gz", "head1.nii.gz"], "masks": ["brain0.nii.gz", "brain1.nii.gz"]}
    return {"path": str(tmp_path), **names}


def prepared(options: dict[str, Any], cache: Path) -> tuple[Task, Library, list[memoryview]]:
    task = open_task("brain-mask", options)
    library = task.prepare(cache)
    library.load(np.arange(library.count))
    return task, library, library.samples(np.arange(library.count))


def log_of(path: Path, answers: list[np.ndarray]) -> Path:
    entries = [{"seq_id": i, "qsl_idx": i, "data": a.tobytes().hex()} for i, a in enumerate(answers)]
    path.write_text(json.dumps(entries))
    return path


def test_masks_are_scored_where_the_heads_lie(options: dict[str, Any], tmp_path: Path) -> None:
    task, library, samples = prepared(options, tmp_path / "cache")
    answers = []
    for i, sample in enumerate(samples):
        head = task.collate([sample])
        assert head.shape == (1, 1, *SCAN) and head.dtype == np.float32
        answers.append(task.respond((head > 50).astype(np.uint8), np.array([i])).blob)
    assert score(log_of(tmp_path / "log.json", answers), library, 2).line == "Accuracy: mean = 1.00000"
    half = answers[0].reshape(SCAN).copy()
    half[:14] = 0  # 6 of the 12 slices: 2 * 1/2 / (1/2 + 1)
    scored = score(log_of(tmp_path / "log.json", [half, answers[1]]), library, 2)
    assert scored.value == pytest.approx((2 / 3 + 1) / 2) and scored.metric == "DICE"
    for bad in (answers[0][:9], answers[0] + 1):
        with pytest.raises(AccuracyError, match="the response to sample 0 has .* each 0 or 1"):
            score(log_of(tmp_path / "log.json", [bad, answers[1]]), library, 2)


def test_bad_heads_are_named(options: dict[str, Any], tmp_path: Path) -> None:
    def why(**more: Any) -> str:
        with pytest.raises(TaskError) as caught:
            prepared(options | more, tmp_path / "cache")
        return str(caught.value)

    assert "one mask a head" in why(masks=["brain0.nii.gz"])
    assert "absent.nii.gz is missing: Debian's mricron-data" in why(heads=["absent.nii.gz"] * 2)
    (tmp_path / "head1.nii.gz").write_bytes(b"no scan")
    assert "head1.nii.gz is damaged or no NIfTI file" in why()


def torchscript_file(folder: Path, seed: int) -> tuple[Path, LinkNet]:
    torch.manual_seed(seed)
    network = LinkNet().eval()
    file = folder / f"network{seed}.pt"
    with torch.no_grad():
        traced: Any = torch.jit.trace(network, torch.rand(1, 1, 64, 32, 32), check_trace=False)
    torch.jit.save(traced, str(file))
    return file, network


@pytest.mark.filterwarnings("ignore")  # torch.jit says that it is deprecated
def test_tensors_of_torchscript_files_are_loaded_strictly(tmp_path: Path) -> None:
    (box_file, box), (file, network) = (torchscript_file(tmp_path, seed) for seed in (1, 2))
    model = open_model("deepbet", {"box_weights": str(box_file)})
    facts = load_weights(model, str(file), "")
    assert facts["weights_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    for part, own in ((model.network, network), (model.box_network, box)):
        for name, tensor in own.state_dict().items():
            assert (part.state_dict()[name] == tensor).all()
    assert len(network.state_dict()) == 38 and is_torchscript(file)
    with pytest.raises(BackendError, match="does not fit the model"):
        load_weights(open_model("perceptron", {}), str(file), "")
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ModelError, match="box_weights .* cannot be loaded"):
        open_model("deepbet", {"box_weights": str(file)})
    torch.save({"a": torch.ones(1)}, tmp_path / "plain.pth")
    assert not is_torchscript(tmp_path / "plain.pth") and not is_torchscript(box_file.parent)


class Various(torch.nn.Module):
    """Holds what a module can hold, of which only some is in its state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(2)
        self.list = torch.nn.ModuleList([torch.nn.Linear(3, 3, bias=False), torch.nn.ReLU()])
        self.shared = self.list[0]
        self.short = torch.nn.Parameter(torch.rand(3).half())
        self.turned = torch.nn.Parameter(torch.rand(6, 2).T)
        self.empty = torch.nn.Parameter(torch.empty(0, 3))
        self.register_buffer("whole", torch.arange(3))
        self.plain = torch.ones(4)
        self.sizes, self.names, self.device = [1, 2], {"a": 1}, torch.device("cpu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x) + self.plain.sum() + torch.ones(3).sum() + self.sizes[0] + self.names["a"]


def assert_same_state(file: Path) -> None:
    found, expected = read_tensors(file), torch.jit.load(str(file)).state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


@pytest.mark.filterwarnings("ignore")
def test_tensors_of_torchscript_files_are_those_that_torch_loads(tmp_path: Path) -> None:
    for number, module in enumerate((Various(), torch.nn.LSTM(2, 3))):
        file = tmp_path / f"{number}.pt"
        torch.jit.script(module).save(str(file))
        assert_same_state(file)


@pytest.mark.part(not missing_parts(), f"not installed here: {missing_parts()}")
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_deepbets_files_are_those_that_torch_loads() -> None:
    backend = section("backend")
    for path in (backend["weights"], backend["options"]["box_weights"]):
        assert_same_state(locate(path))


class Harmful(torch.nn.Module):
    """Writes zeros over a file when torch.jit.load makes it."""

    def __init__(self, victim: str) -> None:
        super().__init__()
        self.victim = victim
        self.weight = torch.nn.Parameter(torch.ones(2))

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool, str]:
        return (self.weight, self.training, self.victim)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool, str]) -> None:
        self.weight, self.training, self.victim = state[0], state[1], state[2]
        self.weight = torch.from_file(state[2], True, 8, dtype=torch.uint8).zero_().float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_file_runs_nothing(tmp_path: Path) -> None:
    victim, file = tmp_path / "victim", tmp_path / "harmful.pt"
    victim.write_bytes(b"precious")
    torch.jit.script(torch.nn.Sequential(Harmful(str(victim)))).save(str(file))
    torch.jit.load(str(file))
    assert victim.read_bytes() == bytes(8)  # it would
    victim.write_bytes(b"precious")
    with pytest.raises(BackendError, match="keeps its state by a method, which is not run; load it where"):
        load_weights(open_model("perceptron", {}), str(file), "")
    with pytest.raises(ModelError, match=r"box_weights .*harmful.pt cannot be loaded: .* which is not run"):
        open_model("deepbet", {"box_weights": str(file)})
    assert victim.read_bytes() == b"precious"


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_file_that_is_not_what_it_says_is_refused(tmp_path: Path) -> None:
    made = tmp_path / "made.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(made))

    def why(part: str, old: bytes, new: bytes) -> str:
        """What is said of the file with one of its parts changed."""
        changed = tmp_path / "changed.pt"
        with zipfile.ZipFile(made) as held, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as written:
            for name in held.namelist():
                content = held.read(name)
                written.writestr(name, content.replace(old, new) if name.endswith(part) else content)
        with pytest.raises(ModelError) as caught:
            read_tensors(changed)
        return str(caught.value)

    assert "it names os.system" in why("/data.pkl", b"collections\nOrderedDict", b"os\nsystem")
    assert "storage 0 has not the length that was announced" in why("/data/0", b"", b"0")
    assert "it unpacks to far more than its size" in why("/data/0", b"", b" " * (5 << 20))
    assert "remembers an object at place 400000000" in why(
        "/data.pkl", b"q\x00", b"r" + (400_000_000).to_bytes(4, "little")
    )
    assert "its program has no class" in why(".py", b"class Linear", b"class Other")


@pytest.mark.part(not missing_parts(), f"not installed here: {missing_parts()}")
@pytest.mark.filterwarnings("ignore")
def test_the_network_computes_what_the_published_program_does() -> None:
    file = locate(section("backend")["weights"])
    network = LinkNet().eval()
    network.load_state_dict(read_tensors(file), strict=True)
    x = torch.rand(1, 1, 64, 96, 64)
    with torch.no_grad():
        published = torch.jit.load(str(file)).eval()(x)[0, 1]
        assert torch.allclose(network(x), published, atol=1e-6)


@pytest.mark.part(not missing_parts(), f"not installed here: {missing_parts()}")
@pytest.mark.timeout(TIME_BUDGET_S)
def test_the_example_reaches_the_dice_of_deepbet(tmp_path: Path) -> None:
    manifest = tmp_path / "segmentation.yaml"
    manifest.write_text(MANIFEST.read_text().replace("[performance, accuracy]", "[accuracy]"))
    program = str(Path(sys.executable).parent / "loadgrid")
    ran = subprocess.run(
        [program, "run", str(manifest), "--runs-dir", str(tmp_path / "runs")],
        cwd=tmp_path, capture_output=True, text=True, timeout=TIME_BUDGET_S, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (line,) = [file.read_text().splitlines()[0] for file in tmp_path.rglob("accuracy.txt")]
    # 0.93585 by deepbet's own program; another machine's rounding may move a voxel
    assert abs(float(line.removeprefix("Accuracy: mean = ")) - 0.93585) < 0.0005
