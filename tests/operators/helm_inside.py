"""Lints, renders and validates the chart; runs in the environment that has Helm, not in pytest's.

Reads questions from standard input, one a line: ``{"chart": folder, "values": {…}}`` as JSON, or
instead of the values ``"text"``, which is YAML. Writes an answer for each.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import helm_python
import kubernetes_validate
import yaml

# The chart's kubeVersion, and the newest that the package knows.
VERSIONS = ("1.27", kubernetes_validate.latest_version())
INFORMATION = 1


class Strict(yaml.SafeLoader):  # type: ignore[misc]  # it has no types here
    """Reads YAML as kubectl does: a key that is there twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that is there twice."""
        keys = [key.value for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.YAMLError(f"{sorted(twice)} twice, at {node.start_mark}")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def answer(chart: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return what came of some values."""
    report = helm_python.lint(chart, values, strict=True, namespace="prod")
    lint = [
        f"{each['path']}: {each['error']}"
        for each in report["messages"]
        if each["severity"] > INFORMATION
    ]
    empty = {"error": "", "lint": lint, "invalid": [], "notes": "", "manifests": []}
    with helm_python.Chart.load(chart) as loaded:
        try:
            files = loaded.render(values, name="kiln", namespace="prod")
        except helm_python.HelmError as error:
            return {**empty, "error": str(error)}
    notes = files.pop("wasmkiln/templates/NOTES.txt", "")
    manifests = [
        manifest for text in files.values() for manifest in yaml.load_all(text, Strict) if manifest
    ]
    invalid = [problem for each in manifests for problem in problems(each)]
    return {**empty, "invalid": invalid, "notes": notes, "manifests": manifests}


def problems(manifest: dict[str, Any]) -> Iterator[str]:
    """Say what the schemas of Kubernetes refuse; they know no resources of operators."""
    if manifest["apiVersion"].startswith("monitoring.coreos.com/"):
        return
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = ".".join(str(part) for part in error.path)
            yield f"{version}: {manifest['kind']}: {where}: {error.message}"


if __name__ == "__main__":
    for line in sys.stdin:
        question = json.loads(line)
        if text := question.get("text"):
            question["values"] = yaml.load(text, Strict)
        print(json.dumps(answer(question["chart"], question["values"])), flush=True)
