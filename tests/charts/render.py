"""Helm's own library, for the tests of the chart: lints it, and renders it for the values on standard input.

Input: {"chart": PATH, "values": {...}, "namespace": TEXT}; output: {"lint": {...}, "refused": TEXT or null, "manifests":
{template: text}}. With `base CHART VALUES` as arguments it prints deploy/kustomize/base/warmpath.yaml.
"""

import json
import sys

import helm_python


def render(chart, values, namespace):
    loaded = helm_python.Chart.load(chart)
    try:
        loaded.validate_schema(values)
    except helm_python.HelmError as error:
        return str(error), {}
    manifests = loaded.render(values, name="warmpath", namespace=namespace)
    return None, {path: text for path, text in manifests.items() if text.strip()}


def base(chart, values):
    refused, manifests = render(chart, values, "default")
    assert refused is None, refused
    parts = []
    for path, text in sorted(manifests.items()):
        if not path.endswith(".yaml"):
            continue
        # Helm has nothing to do with what kustomize applies.
        lines = [line for line in text.strip().splitlines() if "helm.sh/chart:" not in line and "managed-by:" not in line]
        parts.append("\n".join(lines).removeprefix("---\n"))
    return "# What the chart makes of values.json beside this file; tests/charts/render.py wrote it.\n" + "\n---\n".join(parts) + "\n"


if len(sys.argv) > 1 and sys.argv[1] == "base":
    sys.stdout.write(base(sys.argv[2], json.load(open(sys.argv[3], encoding="utf-8"))))
else:
    asked = json.load(sys.stdin)
    report = helm_python.lint(asked["chart"], asked["values"], strict=True, namespace=asked["namespace"])
    refused, rendered = render(asked["chart"], asked["values"], asked["namespace"])
    json.dump({"lint": report, "refused": refused, "manifests": rendered}, sys.stdout)
