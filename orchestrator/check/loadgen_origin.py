"""Where a test's queries came from: the round's own LoadGen, and in the network division over the network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

from orchestrator.check.cell_logs import Test
from orchestrator.check.finding import Finding
from orchestrator.findings_manifest import plan_findings_for_loadgen
from orchestrator.old_logs import GENERATOR

# The sources of the round's LoadGen: the SHA-256 of what its log calls loadgen_file_sha1, the entries of
# C++ outside of /tests alone, as JSON with sorted keys. v1.0: of mlcommons/inference 8b58587c (v1.0.1), the
# same since 9f46116f; v1.1: of b1452de4, with which most results were made, and c5b89189 (the end of r1.1).
SOURCES = {
    "v1.0": {"760cc5675308ea6af5b644014b2620124b60135d2d0ebf1be1778822286085c1"},
    "v1.1": {
        "66d87ceeebd4104bfdcfb286e47b608c26301dd4674a0fd9f88cea55543a041b",
        "9369a0d3f8bb0676525a4b064ae8ae98ce24b5b80122d9c4900c2324b85f2ec4",
    },
}
NETWORK_SUT = "Network SUT"  # submission_checker/constants.py of the newest checker
# What tells LoadGrid's own generator of the old MultiStream, whatever its version: "LoadGrid ".
OWN = GENERATOR.partition(" ")[0]


def origin(test: Test) -> Iterator[Finding]:
    """Who generated the queries, and what answered."""
    run, found = test.run, test.context.round
    version = run.loadgen_version or ""
    if version.startswith(OWN):
        what = f"{version}: LoadGrid's own generator asked the queries, so this result is unofficial"
        mend = f"run the test with LoadGen {found.loadgen.tag or found.loadgen.versions[0]}: loadgen.path"
        yield test.finding("unofficial-generator", what, mend)
    else:
        yield from _version(test, version)
    status = str(run.values.get("loadgen_git_status_message") or "").strip()
    if status and status != "NA":
        what = f"LoadGen was built from a changed checkout: {' '.join(status.split())[:200]}"
        mend = "build LoadGen from an unchanged checkout of the round's revision, and run the test again"
        yield test.finding("loadgen-changed", what, mend)
    yield from _sut_name(test)


def _version(test: Test, version: str) -> Iterator[Finding]:
    """The version's number, and the revision, or better the sources themselves, where the log names them."""
    found, revision = test.context.round, test.run.loadgen_revision or ""
    mend = f"run the test with the round's LoadGen: {found.loadgen.tag or found.loadgen.versions[0]}"
    sources = source_hash(test)
    for one in plan_findings_for_loadgen(f"{version} @ {revision}", None, found):
        if not one.source.endswith(".revision"):
            yield test.finding("loadgen-version", one.why, mend)
            return
        if sources is None:
            yield test.finding("loadgen-revision", one.why, mend)
    if sources is not None and sources not in SOURCES[found.name]:
        what = f"the sources of this LoadGen (revision {revision[:40]}) are not those of {found.name}'s"
        yield test.finding("loadgen-sources", what, mend)


def source_hash(test: Test) -> str | None:
    """The hash of the hashes of LoadGen's sources; None where there is nothing to compare it with."""
    hashes = test.run.values.get("loadgen_file_sha1")
    if test.context.round.name not in SOURCES or not isinstance(hashes, dict):
        return None
    own = {name: told for name, told in hashes.items() if name.endswith((".cc", ".h"))}
    compiled = {name: told for name, told in own.items() if not name.startswith("/tests/")}
    if not compiled:
        return None
    return hashlib.sha256(json.dumps(compiled, sort_keys=True).encode()).hexdigest()


def _sut_name(test: Test) -> Iterator[Finding]:
    name, division = test.run.sut_name, test.cell.submission.division
    says = NETWORK_SUT in (name or "")
    if division == "network" and not says:
        what = f'sut_name is {name!r}; in the network division it contains "{NETWORK_SUT}"'
        mend = "name the SUT so in Name(), which asks every node for its name"
        yield test.finding("sut-name", what, mend, "unseen", "error")
    elif division != "network" and says:
        what = f"sut_name is {name!r}: this was run over a network, and the division is {division}"
        mend = "submit it in the network division, or run it without the network"
        yield test.finding("sut-name", what, mend)
