"""The pages in docs/: their commands, manifests, values and scripts are held against the real ones."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main
import yaml

from orchestrator.cli import app
from orchestrator.manifest import Manifest, manifest_files, parse_manifest
from orchestrator.plan import plan
from orchestrator.planview import only_the_user
from orchestrator.rules import load_round
from tests.test_tidy import kept_files

TIME_BUDGET_S = 15

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "helm" / "loadgrid"
PAGES = sorted((ROOT / "docs").glob("*.md"))


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    kind: str  # bash | yaml manifest | yaml values
    text: str

    @property
    def where(self) -> str:
        return f"docs/{self.page}:{self.line}"

    @property
    def file(self) -> str:
        """The name in its first comment."""
        found = re.match(r"# (\S+\.yaml)\n", self.text)
        return found[1] if found else ""


def blocks_of(page: Path) -> list[Block]:
    found: list[Block] = []
    inside: tuple[int, str, list[str]] | None = None
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if line.startswith("```") and inside is None:
            inside = (number, line.removeprefix("```"), [])
        elif line.startswith("```") and inside is not None:
            found.append(Block(page.name, inside[0], inside[1], "\n".join(inside[2]) + "\n"))
            inside = None
        elif inside is not None:
            inside[2].append(line)
    assert inside is None, f"{page}: a block does not end"
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def of_kind(kind: str) -> list[Any]:
    return [pytest.param(block, id=block.where) for block in BLOCKS if block.kind == kind]


def commands(text: str) -> list[list[str]]:
    """The commands of a shell block, a pipe's parts apart; here-documents left out."""
    text = re.sub(r"<<'(\w+)'\n.*?\n\1\n", "\n", text, flags=re.DOTALL)
    lines = text.replace("\\\n", " ").splitlines()
    found = []
    for line in (line for line in lines if line.strip() and not line.lstrip().startswith("#")):
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&<>()")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|;&()"):
                found += [words] if words else []
                words = []
            else:
                words.append(word)
    return found


SHELL_COMMANDS = [
    (block, words) for block in BLOCKS if block.kind == "bash" for words in commands(block.text)
]
LOADGRID = [(block, words) for block, words in SHELL_COMMANDS if words[0] == "loadgrid"]


def test_there_are_pages_and_each_kind_of_block_is_known() -> None:
    assert {page.name for page in PAGES} >= {"kubernetes.md", "bare-cluster.md"}
    assert {block.kind for block in BLOCKS} == {"bash", "yaml manifest", "yaml values"}
    assert len(LOADGRID) >= 8


@pytest.mark.parametrize("block", of_kind("bash"))
def test_every_script_is_good_shell(block: Block) -> None:
    checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, ""), block.where


@pytest.mark.parametrize(("block", "words"), LOADGRID, ids=lambda one: getattr(one, "where", None))
def test_every_command_of_loadgrid_is_one(block: Block, words: list[str]) -> None:
    """Parsed by the real command line, without being run."""
    command: Any = typer.main.get_command(app)
    # `loadgrid run "$@"`: the manifests come from outside
    rest = ["manifests" if word == "$@" else word for word in words[1:]]
    while hasattr(command, "resolve_command"):  # a group
        _, command, rest = command.resolve_command(typer.Context(command), rest)
    command.make_context(words[1], list(rest))
    for word in rest:
        if word.startswith("manifests/"):
            assert any(name.startswith(word.rstrip("/")) for name in kept_files()), f"{block.where}: {word}"


def named_in(page: Path) -> set[str]:
    """What a page names in backquotes, outside of blocks."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    return set(re.findall(r"`([^`\n]+)`", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    tops = ("tests/", "manifests/", "helm/", "docs/", "orchestrator/", "monitoring/")
    for name in (name for name in named_in(page) if name.startswith(tops)):
        assert list(ROOT.glob(name.rstrip("/"))), f"{page.name}: {name}"
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"


def read_manifest(text: str, where: str) -> None:
    manifest = parse_manifest(text.encode(), f"{where}.yaml")
    assert plan(manifest, load_round(manifest.round))


@pytest.mark.parametrize("block", of_kind("yaml manifest"))
def test_every_manifest_is_one_and_has_a_plan(block: Block) -> None:
    read_manifest(block.text, block.where.replace("/", "-"))


def closed_on_kubernetes() -> list[Any]:
    """Manifests of the closed division on the page on Kubernetes and among the chart's examples."""
    texts = [(one.where, one.text) for one in BLOCKS if one.kind == "yaml manifest" and "kubern" in one.page]
    for file in sorted((ROOT / "helm" / "ci").glob("*.yaml")):
        given = yaml.safe_load(file.read_text("utf-8"))["manifests"]
        texts += [(f"{file.name} {name}", text) for name, text in given.items()]
    read = [(where, parse_manifest(text.encode(), "a.yaml")) for where, text in texts]
    return [pytest.param(one, id=where) for where, one in read if one.division == "closed"]


@pytest.mark.parametrize("manifest", closed_on_kubernetes())
def test_a_closed_manifest_for_kubernetes_can_become_official(manifest: Manifest) -> None:
    """The chart's driver is on another host than the workers: samples must travel."""
    assert manifest.dispatch.payload == "value" and list(only_the_user([manifest])) == []
    specs = plan(manifest, load_round(manifest.round))
    assert [f for spec in specs for f in spec.broken_rules if f.scope == "test"] == []


def installs() -> list[Any]:
    """What each `helm install` of our chart is given: its name, its values."""
    files = {block.file: block.text for block in BLOCKS if block.file}
    found = []
    for block, words in SHELL_COMMANDS:
        if words[:2] != ["helm", "install"] or "helm/loadgrid" not in words:
            continue
        values: dict[str, Any] = {}
        for option, given in pairwise(words):
            if option == "--values":
                values |= yaml.safe_load(files[given])
            elif option == "--set-file":
                name, _, file = given.removeprefix("manifests.").partition("=")
                values.setdefault("manifests", {})[name] = files[file]
        found.append(pytest.param(words[2], values, id=f"{block.where} {words[2]}"))
    return found


def whole_values() -> list[Any]:
    """Blocks of values that are enough by themselves."""
    blocks = [block for block in BLOCKS if block.kind == "yaml values" and "manifests:" in block.text]
    return [pytest.param("page", yaml.safe_load(one.text), id=one.where) for one in blocks]


needs_chart = pytest.mark.skipif(not CHART.is_dir(), reason="the chart is not there")


@needs_chart
@pytest.mark.parametrize(("name", "values"), [*installs(), *whole_values()])
def test_every_set_of_values_is_taken_by_the_chart_and_by_kubernetes(
    name: str, values: dict[str, Any]
) -> None:
    from tests.helm_charts import render
    from tests.kubernetes_objects import crds_here, problems_of

    objects = render(values, name)
    assert [one["metadata"]["name"] for one in objects if one["kind"] == "RayJob"] == [name]
    checked = [one for one in objects if crds_here or one["kind"] != "RayJob"]
    assert [problem for one in checked for problem in problems_of(one)] == []
    for manifest in values["manifests"].values():
        read_manifest(manifest, name)


@needs_chart
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name == "kubernetes.md"], ids=lambda page: page.name
)
def test_values_that_the_text_names_are_values_of_the_chart(page: Path) -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    sections = "run|cluster|cache|job|auth|runs|driver|gang|monitoring|networkPolicy"
    for name in (name for name in named_in(page) if re.fullmatch(rf"({sections})(\.\w+)+(: \w+)?", name)):
        section: Any = values
        for step in name.partition(":")[0].split("."):
            assert step in section, f"{page.name}: {name}"
            section = section[step]
    for name in (name for name in named_in(page) if re.match(rf"({sections}): \{{", name)):
        ((section, given),) = yaml.safe_load(name).items()
        assert given.keys() <= values[section].keys(), f"{page.name}: {name}"


def test_the_folders_of_manifests_that_pages_name_are_read() -> None:
    folders = [word for _, words in LOADGRID for word in words if word.startswith("manifests/")]
    assert folders and all(manifest_files([ROOT / folder]) for folder in folders)
