"""Renders the chart, and runs the programs that check what comes out."""

import os
import pathlib
import re
import shutil
import subprocess

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "lckv"
CI = sorted((CHART / "ci").glob("*.yaml"))
TOOLS = ROOT / "build" / "tools" / "bin"
NAMESPACE = "serving"
RELEASE = "lckv"
# What kubectl-validate knows itself; the newest comes from Kubernetes' own module (deploy/install-deps.sh).
KUBERNETES = ["1.27", "1.28", "1.29", "1.30", "1.34"]
NEWEST = KUBERNETES[-1]

# A chart that works, with as little as can be said.
SMALL = {"models": {"demo": {"source": {"pvc": {"claimName": "checkpoints", "folder": "demo"}}}}}


def tool(name):
    found = TOOLS / name
    return str(found) if found.exists() else shutil.which(name) or name


def helm(*arguments):
    """(exit status, standard output, standard error)"""
    done = subprocess.run(
        [tool("helm"), *map(str, arguments)], capture_output=True, text=True, timeout=600, check=False
    )
    return done.returncode, done.stdout, done.stderr


def merged(below, above):
    """As helm merges values: objects key by key, everything else as a whole."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    both = dict(below)
    for key, value in above.items():
        both[key] = merged(below[key], value) if key in below else value
    return both


def values_of(*layers):
    """Of files and objects, the later over the earlier."""
    values = {}
    for layer in layers:
        if isinstance(layer, pathlib.Path):
            layer = yaml.safe_load(layer.read_text())
        values = merged(values, layer)
    return values


def template(folder, values, chart=CHART, kubernetes=NEWEST):
    """What `helm template` says: (exit status, text, error)."""
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    return helm(
        "template", RELEASE, chart, "--namespace", NAMESPACE, "--kube-version", f"{kubernetes}.0", "--values", file
    )


def render(folder, values, **how):
    """The manifests, as a list of objects."""
    status, text, error = template(folder, values, **how)
    assert status == 0, error
    return [document for document in yaml.safe_load_all(text) if document]


def schemas():
    return sorted((ROOT / "build" / "tools").glob(f"schemas-{NEWEST}.*"))[-1]


def is_known_to_newest(document):
    """Whether the newest Kubernetes, or a custom kind, has this API."""
    group, _, version = document["apiVersion"].rpartition("/")
    path = f"apis/{group}/{version}.json" if group else f"api/{version}.json"
    # Named GROUP_PLURAL.yaml.
    customs = {file.name.partition("_")[0] for file in (schemas() / "crds").iterdir()}
    return (schemas() / "kubernetes" / path).exists() or group in customs


def validate(folder, kubernetes=NEWEST):
    """The faults that kubectl-validate finds in each file of a folder: {name: text, empty where there is none}."""
    # Schemas in files go before those that it brings itself, of which it needs some version all the same.
    own = ["--version", KUBERNETES[0], "--local-schemas", schemas() / "kubernetes"]
    done = subprocess.run(
        [
            tool("kubectl-validate"),
            *(own if kubernetes == NEWEST else ["--version", kubernetes]),
            *("--local-crds", schemas() / "crds", folder),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
        # A schema that is not here must not be looked for elsewhere.
        env={**os.environ, "HTTPS_PROXY": "http://127.0.0.1:9", "KUBECONFIG": "/nonexistent"},
    )
    found = {}
    for line in re.sub(r"\x1b\[[0-9]*m", "", done.stdout).splitlines():
        path, dots, verdict = line.partition("...")
        if dots:
            name = pathlib.Path(path).name
            found[name] = "" if verdict == "OK" else verdict
        elif line and line != "Error: validation failed":
            found[name] += "\n" + line
    expected = {file.name for file in folder.iterdir()}
    assert set(found) == expected, (expected - set(found), done.stdout[-2000:])
    assert (done.returncode == 0) == (not any(found.values())), done.stdout[-2000:]
    return found


def pods(documents):
    """Of each workload and each pod: (name, labels, spec). Those of a LeaderWorkerSet have the labels that its controller
    gives them, for a leader and for one follower, of the first group."""
    for document in documents:
        name = f'{document["kind"]}/{document["metadata"]["name"]}'
        if document["kind"] == "Pod":
            yield name, document["metadata"]["labels"], document["spec"]
        elif document["kind"] == "Deployment":
            pod = document["spec"]["template"]
            yield name, pod["metadata"]["labels"], pod["spec"]
        elif document["kind"] == "LeaderWorkerSet":
            for index, part in enumerate(("leaderTemplate", "workerTemplate")):
                pod = document["spec"]["leaderWorkerTemplate"][part]
                prefix = "leaderworkerset.sigs.k8s.io/"
                labels = {
                    **pod["metadata"]["labels"],
                    f"{prefix}name": document["metadata"]["name"],
                    f"{prefix}group-index": "0",
                    f"{prefix}worker-index": str(index),
                }
                yield f"{name}/{part}", labels, pod["spec"]


def of_kind(documents, kind):
    return [document for document in documents if document["kind"] == kind]


def flags(container):
    """{name: value}; the value of a flag without one is None."""
    given = {}
    for argument in container["args"]:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            given[name] = value if equals else None
    return given


def metric_queries(documents):
    """The queries by which the chart scales, as PromQL."""
    queries = []
    for scaler in of_kind(documents, "ScaledObject"):
        queries += [trigger["metadata"]["query"] for trigger in scaler["spec"]["triggers"]]
    for scaler in of_kind(documents, "HorizontalPodAutoscaler"):
        for metric in scaler["spec"]["metrics"]:
            asked = metric["external"]["metric"]
            labels = ",".join(f'{k}="{v}"' for k, v in asked["selector"]["matchLabels"].items())
            queries.append(f'sum({asked["name"]}{{{labels}}})')
    return queries
