"""Finds what a rendered chart names, but nobody has: selectors, ports, targets, secrets, files."""

import json
import re

import chart

SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"(?=.{0,63}$)([A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?)?")


def matches(selector, labels):
    return all(labels.get(name) == value for name, value in selector["matchLabels"].items())


def port_names(spec):
    return {port["name"] for container in spec["containers"] for port in container.get("ports", [])}


class Rendering:
    """The documents of one rendering, and the faults found in them."""

    def __init__(self, documents, given):
        self.documents = documents
        self.pods = list(chart.pods(documents))
        self.names = [(d["kind"], d["metadata"]["name"]) for d in documents]
        self.given = given  # {kind: names} of what users have made
        self.faults = []

    def fault(self, where, what):
        self.faults.append(f"{where}: {what}")

    def has(self, kind, name):
        made = (kind, name) in self.names or name in self.given.get(kind, ())
        certificates = chart.of_kind(self.documents, "Certificate")
        return made or (kind == "Secret" and any(c["spec"]["secretName"] == name for c in certificates))

    def selected(self, where, selector):
        found = [(name, spec) for name, labels, spec in self.pods if matches(selector, labels)]
        if not found:
            self.fault(where, f"selects no pod: {selector}")
        return found

    def need_port(self, where, port, found):
        for name, spec in found:
            numbers = {p["containerPort"] for c in spec["containers"] for p in c.get("ports", [])}
            if port not in port_names(spec) | numbers:
                self.fault(where, f"{name} has no port {port}")


def check_names(rendering):
    names = [*rendering.names, *made_by_controllers(rendering.documents)]
    for kind, name in set(names):
        if names.count((kind, name)) > 1:
            rendering.fault((kind, name), "is there twice")
        # A label of a StatefulSet's pods holds its name with a dash and a hash of ten characters behind it.
        if len(name) > (52 if kind == "StatefulSet" else 63):
            rendering.fault((kind, name), "is too long")
        if kind in ("Service", "LeaderWorkerSet") and not SERVICE_NAME.fullmatch(name):
            rendering.fault((kind, name), "is no name of a Service")


def made_by_controllers(documents):
    """(kind, name) of what others make of the chart's objects, with names that follow from theirs."""
    limits = {
        scaler["spec"]["scaleTargetRef"]["name"]: scaler["spec"].get("maxReplicas", scaler["spec"].get("maxReplicaCount"))
        for kind in ("HorizontalPodAutoscaler", "ScaledObject")
        for scaler in chart.of_kind(documents, kind)
    }
    for workload in chart.of_kind(documents, "LeaderWorkerSet"):
        name = workload["metadata"]["name"]
        yield "Service", name
        yield "StatefulSet", name
        for group in range(limits.get(name, workload["spec"].get("replicas", 1))):
            yield "StatefulSet", f"{name}-{group}"
    for scaler in chart.of_kind(documents, "ScaledObject"):
        yield "HorizontalPodAutoscaler", f'keda-hpa-{scaler["metadata"]["name"]}'


def check_labels(rendering):
    every = [(f'{d["kind"]}/{d["metadata"]["name"]}', d["metadata"].get("labels", {})) for d in rendering.documents]
    for where, labels in every + [(name, labels) for name, labels, _ in rendering.pods]:
        for label, value in labels.items():
            if not LABEL_VALUE.fullmatch(value):
                rendering.fault(where, f"{label} cannot be {value!r}")


def check_workloads(rendering):
    for workload in chart.of_kind(rendering.documents, "Deployment"):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        if not matches(workload["spec"]["selector"], labels):
            rendering.fault(workload["metadata"]["name"], "does not select its own pods")
    workloads = [pod for pod in rendering.pods if pod[0].startswith("Deployment/")]
    for workload in chart.of_kind(rendering.documents, "Deployment"):
        found = [name for name, labels, _ in workloads if matches(workload["spec"]["selector"], labels)]
        if len(found) != 1:
            rendering.fault(workload["metadata"]["name"], f"selects the pods of {found}")


def check_services(rendering):
    for service in chart.of_kind(rendering.documents, "Service"):
        where = f'Service/{service["metadata"]["name"]}'
        found = rendering.selected(where, {"matchLabels": service["spec"]["selector"]})
        for port in service["spec"]["ports"]:
            rendering.need_port(where, port["targetPort"], found)


def check_budgets(rendering):
    for budget in chart.of_kind(rendering.documents, "PodDisruptionBudget"):
        rendering.selected(f'PodDisruptionBudget/{budget["metadata"]["name"]}', budget["spec"]["selector"])


def check_policies(rendering):
    for policy in chart.of_kind(rendering.documents, "NetworkPolicy"):
        where = f'NetworkPolicy/{policy["metadata"]["name"]}'
        # Groups after the first look like it.
        if "-ranks-" in where and not where.endswith("-ranks-0"):
            continue
        own = rendering.selected(where, policy["spec"]["podSelector"])
        for direction, side in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(direction, []):
                check_policy_rule(rendering, where, own, (direction, side, rule))


def check_policy_rule(rendering, where, own, given):
    direction, side, rule = given
    others = []
    for peer in rule.get(side, []):
        if set(peer) == {"podSelector"}:
            others += rendering.selected(where, peer["podSelector"])
    asked = own if direction == "ingress" else others
    for port in rule.get("ports", []):
        if not isinstance(port["port"], str):
            continue
        # Leaders have the port; that followers of theirs have none is no fault.
        having = [pod for pod in asked if port["port"] in port_names(pod[1])]
        if not having:
            rendering.fault(where, f'no pod has the port {port["port"]}')


def check_scalers(rendering):
    targets = {(d["apiVersion"], d["kind"], d["metadata"]["name"]): d for d in rendering.documents}
    for kind in ("HorizontalPodAutoscaler", "ScaledObject"):
        for scaler in chart.of_kind(rendering.documents, kind):
            ref = scaler["spec"]["scaleTargetRef"]
            target = targets.get((ref["apiVersion"], ref["kind"], ref["name"]))
            if target is None:
                rendering.fault(kind, f"scales {ref}, which is not there")
            elif "replicas" in target["spec"]:
                rendering.fault(kind, f'{ref["name"]} says its number of replicas itself')


def check_monitors(rendering):
    services = chart.of_kind(rendering.documents, "Service")
    for monitor in chart.of_kind(rendering.documents, "ServiceMonitor"):
        where = f'ServiceMonitor/{monitor["metadata"]["name"]}'
        found = [s for s in services if matches(monitor["spec"]["selector"], s["metadata"]["labels"])]
        for endpoint in monitor["spec"]["endpoints"]:
            if [p for s in found for p in s["spec"]["ports"] if p["name"] == endpoint["port"]] == []:
                rendering.fault(where, f'no service has the port {endpoint["port"]}')
    for monitor in chart.of_kind(rendering.documents, "PodMonitor"):
        where = f'PodMonitor/{monitor["metadata"]["name"]}'
        found = rendering.selected(where, monitor["spec"]["selector"])
        asked = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
        there = {port for _, spec in found for port in port_names(spec)} - {"grpc", "health"}
        if asked != there:
            rendering.fault(where, f"asks {sorted(asked)}, and there is {sorted(there)}")


def sources_of(volume):
    """(kind, name) of what a volume is made of."""
    if "configMap" in volume:
        return [("ConfigMap", volume["configMap"]["name"])]
    if "secret" in volume:
        return [("Secret", volume["secret"]["secretName"])]
    if "persistentVolumeClaim" in volume:
        return [("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])]
    return []


def check_pods(rendering):
    for name, labels, spec in rendering.pods:
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        needed = [source for volume in volumes.values() for source in sources_of(volume)]
        needed += [("ServiceAccount", spec["serviceAccountName"])]
        needed += [("Secret", secret["name"]) for secret in spec.get("imagePullSecrets", [])]
        containers = spec["containers"] + spec.get("initContainers", [])
        for container in containers:
            needed += [("Secret", e["secretRef"]["name"]) for e in container.get("envFrom", [])]
            check_files(rendering, name, container, volumes)
        for kind, wanted in needed:
            if not rendering.has(kind, wanted):
                rendering.fault(name, f"{kind} {wanted} is not there")
        mounted = {mount["name"] for c in containers for mount in c.get("volumeMounts", [])}
        if mounted != set(volumes):
            rendering.fault(name, f"mounts {sorted(mounted)} of the volumes {sorted(volumes)}")
        for spread in spec.get("topologySpreadConstraints", []):
            if not matches(spread["labelSelector"], labels):
                rendering.fault(name, "is spread by labels that it does not have")


def check_files(rendering, name, container, volumes):
    mounts = {mount["mountPath"]: volumes.get(mount["name"], {}) for mount in container.get("volumeMounts", [])}
    for flag, value in chart.flags({"args": container.get("args", [])}).items():
        if not (value or "").startswith("/"):
            continue
        path = max((path for path in mounts if f"{value}/".startswith(f"{path}/")), key=len, default=None)
        if path is None:
            rendering.fault(name, f"{flag}={value} is in no volume")
            continue
        for kind, source in sources_of(mounts[path]):
            maps = [d for d in chart.of_kind(rendering.documents, "ConfigMap") if d["metadata"]["name"] == source]
            if kind == "ConfigMap" and value[len(path) + 1 :] not in maps[0]["data"]:
                rendering.fault(name, f"{flag}={value} is not in ConfigMap {source}")


def check_addresses(rendering):
    """The routers' file of models, and the tests' router."""
    services = {
        f'{s["metadata"]["name"]}.{chart.NAMESPACE}.svc': {p["port"] for p in s["spec"]["ports"]}
        for s in chart.of_kind(rendering.documents, "Service")
    }
    addresses = []
    for config in chart.of_kind(rendering.documents, "ConfigMap"):
        if "models.json" in config["data"]:
            models = json.loads(config["data"]["models.json"])["models"]
            addresses += [address for model in models for address in model["workers"]]
    for pod in chart.of_kind(rendering.documents, "Pod"):
        addresses.append(chart.flags(pod["spec"]["containers"][0])["--router"])
    for address in addresses:
        host, _, port = address.partition(":")
        if int(port) not in services.get(host, ()):
            rendering.fault(address, "no service has this address")


def find_faults(documents, given):
    rendering = Rendering(documents, given)
    for check in (
        check_names,
        check_labels,
        check_workloads,
        check_services,
        check_budgets,
        check_policies,
        check_scalers,
        check_monitors,
        check_pods,
        check_addresses,
    ):
        check(rendering)
    return rendering.faults
