"""Renders the chart's examples into this folder, for those without Helm.

    python manifests/kubernetes/render.py

wants LoadGrid's test extra, whose helm-python-sdk is Helm.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from helm_python import Chart

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
CHART, EXAMPLES = TOP / "helm" / "loadgrid", TOP / "helm" / "ci"
NAMES = ("quickstart", "two-hosts", "network-division")
HEAD = """\
# {title}
# Made by manifests/kubernetes/render.py from helm/ci/{name}.yaml. Set the image's name in a copy of it.
# kubectl -n NAMESPACE apply -f {name}.yaml
"""


def rendered(name: str) -> str:
    """The objects of one example as one file of YAML; the RayJob comes last, when all it needs is there."""
    text = (EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    files = Chart.load(CHART).render(values=values, name=name, namespace="default")
    order = sorted(files, key=lambda file: (file.endswith("rayjob.yaml"), file))
    objects = [files[file].strip().removesuffix("---") for file in order if not file.endswith("NOTES.txt")]
    title = text.partition("\n")[0].removeprefix("# ")
    return HEAD.format(title=title, name=name) + "".join(f"---\n{one.strip()}\n" for one in objects if one)


if __name__ == "__main__":
    for example in NAMES:
        (HERE / f"{example}.yaml").write_text(rendered(example), encoding="utf-8")
