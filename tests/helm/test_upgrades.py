"""An upgrade changes no field that Kubernetes keeps as it was."""

import shutil

import chart

# By kind, what the API refuses to change, or what would lose its pods.
IMMUTABLE = {
    "Deployment": [["spec", "selector"]],
    "LeaderWorkerSet": [["spec", "leaderWorkerTemplate", "size"], ["spec", "networkConfig"]],
    "StatefulSet": [["spec", "selector"], ["spec", "serviceName"], ["spec", "volumeClaimTemplates"]],
    "Service": [["spec", "clusterIP"], ["spec", "selector"], ["spec", "type"]],
    "PodDisruptionBudget": [["spec", "selector"]],
}


def fields(documents):
    found = {}
    for document in documents:
        name = (document["apiVersion"], document["kind"], document["metadata"]["name"])
        found[name] = []
        for path in IMMUTABLE.get(document["kind"], []):
            value = document
            for key in path:
                value = value.get(key, {})
            found[name].append(value)
    return found


def next_version(folder):
    """A copy of the chart as its next version."""
    copied = folder / "next"
    shutil.copytree(chart.CHART, copied)
    text = (copied / "Chart.yaml").read_text()
    (copied / "Chart.yaml").write_text(text.replace("0.1.0", "0.2.0"))
    return copied


LATER = {
    "images": {"router": {"tag": "later"}, "workerCpu": {"tag": "later"}, "workerCuda": {"tag": "later"}},
    "modelDefaults": {"flags": {"max-num-seqs": 32}, "drainTimeoutSeconds": 45, "podLabels": {"team": "b"}},
    "router": {"replicas": 4, "flags": {"routing-policy": "least-loaded"}, "podLabels": {"team": "b"}},
    "log": {"level": "debug"},
}


def test_two_versions_differ_in_no_immutable_field(tmp_path):
    later_chart = next_version(tmp_path)
    for file in chart.CI:
        before = chart.render(tmp_path, chart.values_of(file))
        after = chart.render(tmp_path, chart.values_of(file, LATER), chart=later_chart)
        assert before != after
        assert fields(before) == fields(after), file.name


def test_a_selector_with_a_version_is_found(tmp_path):
    later_chart = next_version(tmp_path)
    names = later_chart / "templates" / "_names.tpl"
    line = "app.kubernetes.io/instance: {{ .root.Release.Name }}\n"
    names.write_text(names.read_text().replace(line, line + "version: {{ .root.Chart.AppVersion }}\n"))
    before = chart.render(tmp_path, chart.SMALL)
    after = chart.render(tmp_path, chart.SMALL, chart=later_chart)
    assert fields(before) != fields(after)
