"""What pods promise: security, grace periods, probes, upgrades."""

import pytest

import chart
import expressions
import switches

SHUTDOWN_SLACK_SECONDS = {"router": 33, "worker": 32}  # after the flags' times: router/router.cc, worker/launch.cc


def pods_of(documents):
    for name, labels, spec in chart.pods(documents):
        yield name, labels["app.kubernetes.io/component"], spec


def all_pods(rendered):
    for case, documents in rendered.items():
        for name, component, spec in pods_of(documents):
            yield f"{case}: {name}", component, spec


def seconds(text):
    assert text.endswith("s") and text[:-1].isdigit(), text
    return int(text[:-1])


def test_pods_are_restricted(rendered):
    """The Pod Security Standard's level, and a root that nobody writes."""
    for name, _, spec in all_pods(rendered):
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] == 65532, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        for container in spec["containers"] + spec.get("initContainers", []):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert all("hostPort" not in port for port in container.get("ports", [])), name
        kinds = {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}
        if name.startswith(("host-path", "ci-laptop")):
            kinds.add("hostPath")
        for volume in spec.get("volumes", []):
            assert set(volume) - {"name"} <= kinds, name


def test_a_container_that_fails_leaves_its_last_lines_in_the_pods_status(rendered):
    seen = set()
    for name, component, spec in all_pods(rendered):
        for container in spec["containers"] + spec.get("initContainers", []):
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError", name
            seen.add((component, container["name"]))
    assert seen == {("router", "router"), ("worker", "worker"), ("worker", "model"), ("test", "generate")}


def test_what_a_model_adds_reaches_its_workers_alone(rendered):
    for name, component, spec in all_pods(rendered):
        given = {v["name"]: v["value"] for v in spec["containers"][0].get("env", [])}
        added = component == "worker" and name.startswith("library-variables")
        assert given == ({"NCCL_DEBUG": "INFO", "OMP_PROC_BIND": "true"} if added else {}), name
        has_group = component == "worker" and name.startswith("volume-group")
        assert spec["securityContext"].get("fsGroup") == (2000 if has_group else None), name
    key = "leaderworkerset.sigs.k8s.io/exclusive-topology"
    groups = [d for d in rendered["racks"] if d["kind"] == "LeaderWorkerSet"]
    assert [d["metadata"]["annotations"] for d in groups] == [{key: "topology.kubernetes.io/rack"}]


def test_nothing_of_the_cluster_reaches_a_program(rendered):
    for name, _, spec in all_pods(rendered):
        assert spec["automountServiceAccountToken"] is False, name
        # A Service called lckv would give LCKV_PORT, which is a flag.
        assert spec["enableServiceLinks"] is False, name
        # subPath would hide changes of secrets and of the routers' files.
        mounts = [m for c in spec["containers"] for m in c.get("volumeMounts", [])]
        assert all("subPath" not in mount for mount in mounts), name


def test_memory_volumes_are_where_ranks_share_a_pod(rendered):
    seen = set()
    for name, component, spec in all_pods(rendered):
        memory = [v["name"] for v in spec.get("volumes", []) if v.get("emptyDir", {}).get("medium") == "Memory"]
        if component != "worker":
            assert memory == [], name
            continue
        flags = chart.flags(spec["containers"][0])
        hosts = 2 if "two-hosts" in name else 8 if "eight-hosts" in name else None
        if hosts or "LeaderWorkerSet" not in name:
            several = int(flags["--tensor-parallel-size"]) > (hosts or 1)
            assert memory == (["shm"] if several else []), name
            seen.add(several)
    assert seen == {True, False}


def test_grace_periods_fit_the_flags(rendered):
    for name, component, spec in all_pods(rendered):
        if component not in SHUTDOWN_SLACK_SECONDS:
            continue
        flags = chart.flags(spec["containers"][0])
        names = {"router": ("--shutdown-delay", "--shutdown-grace"), "worker": ("--drain-timeout",)}[component]
        needed = sum(seconds(flags[flag]) for flag in names) + SHUTDOWN_SLACK_SECONDS[component]
        assert needed <= spec["terminationGracePeriodSeconds"] <= needed + 10, name
        assert all("lifecycle" not in container for container in spec["containers"]), name


def test_probes_ask_those_who_answer_and_wait_for_the_weights(rendered):
    for name, component, spec in all_pods(rendered):
        container = spec["containers"][0]
        probes = {key: container.get(f"{key}Probe") for key in ("startup", "liveness", "readiness")}
        if component == "test" or name.endswith("/workerTemplate"):
            assert not any(probes.values()), name
            continue
        flags = chart.flags(container)
        for probe in probes.values():
            assert str(probe["grpc"]["port"]) == flags["--health-port"], name
        assert [probes[key]["grpc"]["service"] for key in probes] == ["readiness", "liveness", "readiness"], name
        # One late answer takes no router out of the Service, nor ends a process.
        patient = ["startup", "liveness", *(["readiness"] if component == "router" else [])]
        assert all(probes[key]["failureThreshold"] >= 3 for key in patient), name
        if component == "worker":
            budget = probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"]
            assert 30 <= budget - seconds(flags["--start-timeout"]) < 40, name


def test_a_leader_waits_while_another_host_fetches_the_model(rendered):
    for case, expected in (("slow-init", {600}), ("two-hosts", {600}), ("fetched-by-two-hosts", {600, 600 + 900})):
        workers = [spec for _, component, spec in pods_of(rendered[case]) if component == "worker"]
        assert {seconds(chart.flags(w["containers"][0])["--start-timeout"]) for w in workers} == expected, case


def test_a_container_that_a_probe_ends_is_not_waited_for_as_if_it_drained(rendered):
    for name, _, spec in all_pods(rendered):
        container = spec["containers"][0]
        for key in ("startup", "liveness"):
            if probe := container.get(f"{key}Probe"):
                assert 5 <= probe["terminationGracePeriodSeconds"] <= 30 < spec["terminationGracePeriodSeconds"], name
        # Which the API refuses.
        assert "terminationGracePeriodSeconds" not in container.get("readinessProbe", {}), name


FETCH_SECONDS = {"ci-many-small-models": 1800, "init": 1800, "keda-init": 1800, "slow-init": 7200}


def test_an_upgrade_is_not_given_up_while_a_pod_may_still_start(rendered):
    """Between two signs of progress a pod may wait for one to end, fetch its model, and use up its startup probe."""
    seen = set()
    for case, documents in rendered.items():
        for deployment in chart.of_kind(documents, "Deployment"):
            spec = deployment["spec"]["template"]["spec"]
            probe = spec["containers"][0]["startupProbe"]
            fetch = FETCH_SECONDS[case] if "initContainers" in spec else 0
            seen.add(fetch)
            needed = spec["terminationGracePeriodSeconds"] + fetch + probe["periodSeconds"] * probe["failureThreshold"]
            where = f'{case}: {deployment["metadata"]["name"]}'
            # And five minutes for a node and an image; but no hour more, in which nobody would hear of it.
            assert needed + 300 <= deployment["spec"]["progressDeadlineSeconds"] <= needed + 310, where
            assert deployment["spec"].get("minReadySeconds", 0) < 300, where
    assert seen == {0, 1800, 7200}


def test_a_generation_runs_where_routers_may(rendered):
    router, test = (
        next(spec for _, component, spec in pods_of(rendered["placement"]) if component == wanted)
        for wanted in ("router", "test")
    )
    for field in ("nodeSelector", "tolerations"):
        assert test[field] == router[field]
    # What keeps routers apart would keep it off nodes that are theirs.
    assert test["affinity"] == {"nodeAffinity": router["affinity"]["nodeAffinity"]}


def test_a_model_without_replicas_is_not_asked(rendered):
    """Whoever has turned one off wants to hear of the others alone."""
    for case, asked in (("second-model", ["demo", "other"]), ("no-replicas", ["demo"]), ("keda", ["demo"])):
        tests = [d["metadata"]["name"] for d in chart.of_kind(rendered[case], "Pod")]
        assert tests == [f"lckv-test-{key}" for key in asked], case


def test_all_pods_have_the_secrets_of_the_registry(rendered):
    pods = list(pods_of(rendered["images"]))
    assert {component for _, component, _ in pods} == {"router", "worker", "test"}
    assert all(spec["imagePullSecrets"] == [{"name": "bucket"}] for _, _, spec in pods)


def router_of(documents):
    [spec] = [spec for _, component, spec in pods_of(documents) if component == "router"]
    return spec["containers"][0]


# (of calls, of the generation in `helm test`) where a model may have no replica: a start and a minute and a half, with
# the generation's own time besides; and what ci gives itself.
FROM_ZERO_SECONDS = {"keda": (720, 840), "keda-init": (2520, 2640), "ci-four-hosts-tp16": (3900, 3840)}


def test_calls_wait_where_a_model_may_have_no_replica(rendered):
    """Only calls that wait are a demand, and bring a first replica; --max-queue-wait bounds each wait."""
    seen = set()
    for case, documents in rendered.items():
        scaled = {one["metadata"]["name"]: one["spec"] for one in chart.of_kind(documents, "ScaledObject")}
        from_zero = [name for name, one in scaled.items() if one["minReplicaCount"] == 0]
        given = chart.flags(router_of(documents))
        tests = [chart.flags(pod["spec"]["containers"][0])["--timeout"] for pod in chart.of_kind(documents, "Pod")]
        if not from_zero:
            # Until a new router has sessions.
            assert given["--max-ready-wait"] == "10s" and "--max-queue-wait" not in given, case
            assert set(tests) <= {"120s"}, case
            continue
        seen.add(case)
        wait, generation = FROM_ZERO_SECONDS[case]
        assert expressions.milliseconds(given["--max-ready-wait"]) == wait * 1000, case
        assert expressions.milliseconds(given["--max-queue-wait"]) == wait * 1000, case
        # `demo` of the small chart always has a replica.
        assert sorted(tests) == sorted(["120s"] * (len(tests) - 1) + [f"{generation}s"]), case
        for name in from_zero:
            [worker] = [spec for pod, _, spec in pods_of(documents) if name in pod and "workerTemplate" not in pod]
            probe = worker["containers"][0]["startupProbe"]
            assert min(wait, generation) > probe["periodSeconds"] * probe["failureThreshold"], case
    assert seen == set(FROM_ZERO_SECONDS)


@pytest.mark.parametrize("wait", ["629s", "10m29.9s", "0.17h", "0", "629999ms"])
@pytest.mark.parametrize("flag", ["max-ready-wait", "max-queue-wait"])
def test_a_wait_that_is_shorter_than_a_start_is_refused(tmp_path, flag, wait):
    values = chart.values_of(chart.SMALL, switches.SWITCHES["keda"], {"router": {"flags": {flag: wait}}})
    status, _, error = chart.template(tmp_path, values)
    assert status != 0
    said = f"models.demo.autoscaling.minReplicas 0: a first replica may take 630 s, but router.flags.{flag} is {wait}"
    assert said in error and len(error.strip().splitlines()) <= 3, error


@pytest.mark.parametrize("wait", ["630s", "10m30s", "0.5h", "1h", "630000ms"])
def test_a_wait_that_is_as_long_as_a_start_is_taken(tmp_path, wait):
    flags = {flag: wait for flag in ("max-ready-wait", "max-queue-wait")}
    values = chart.values_of(chart.SMALL, switches.SWITCHES["keda"], {"router": {"flags": flags}})
    given = chart.flags(router_of(chart.render(tmp_path, values)))
    assert {given[f"--{flag}"] for flag in flags} == {wait}


def test_a_new_router_runs_for_a_while_before_an_old_one_goes(rendered):
    """It is ready before it has found a replica: it looks for them, and one that ends at once shows it."""
    for case, documents in rendered.items():
        [router] = [d for d in chart.of_kind(documents, "Deployment") if d["metadata"]["name"].endswith("-router")]
        assert 15 <= router["spec"]["minReadySeconds"] < router["spec"]["progressDeadlineSeconds"], case


def test_upgrades_need_no_gpu_more(rendered):
    seen = set()
    for name, documents in rendered.items():
        for workload in chart.of_kind(documents, "Deployment"):
            rolling = workload["spec"]["strategy"]["rollingUpdate"]
            container = workload["spec"]["template"]["spec"]["containers"][0]
            has_gpu = any(resource.startswith("nvidia.com/") for resource in container["resources"].get("limits", {}))
            assert rolling == {"maxSurge": int(not has_gpu), "maxUnavailable": int(has_gpu)}, name
            seen.add(has_gpu)
        for workload in chart.of_kind(documents, "LeaderWorkerSet"):
            rolling = workload["spec"]["rolloutStrategy"]["rollingUpdateConfiguration"]
            assert rolling == {"maxSurge": 0, "maxUnavailable": 1}, name
    assert seen == {True, False}


def test_disruptions_take_one_leader_at_a_time(rendered):
    for name, documents in rendered.items():
        budgets = {b["metadata"]["name"]: b["spec"] for b in chart.of_kind(documents, "PodDisruptionBudget")}
        kinds = ("Deployment", "LeaderWorkerSet")
        workloads = {w["metadata"]["name"] for kind in kinds for w in chart.of_kind(documents, kind)}
        assert set(budgets) == workloads, name
        for budget in budgets.values():
            assert budget["maxUnavailable"] == 1 and budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow", name
        for workload in chart.of_kind(documents, "LeaderWorkerSet"):
            selector = budgets[workload["metadata"]["name"]]["selector"]["matchLabels"]
            assert selector["leaderworkerset.sigs.k8s.io/worker-index"] == "0", name


def test_routers_see_leaders_that_are_not_ready(rendered):
    for name, documents in rendered.items():
        leaders = [s for s in chart.of_kind(documents, "Service") if s["metadata"]["name"].endswith("-leaders")]
        assert leaders, name
        for service in leaders:
            assert service["spec"]["publishNotReadyAddresses"] is True, name
            assert service["spec"]["clusterIP"] == "None", name


def test_gpus_are_asked_for_by_rank(rendered):
    asked = {}
    for name, component, spec in all_pods(rendered):
        if component == "worker":
            limits = spec["containers"][0]["resources"].get("limits", {})
            asked[name] = {k: v for k, v in limits.items() if k.startswith("nvidia.com/")}
    assert asked["one-gpu: Deployment/lckv-worker-demo"] == {"nvidia.com/gpu": 1}
    assert asked["eight-gpus: Deployment/lckv-worker-demo"] == {"nvidia.com/gpu": 8}
    assert asked["mig: Deployment/lckv-worker-demo"] == {"nvidia.com/mig-1g.18gb": 1}
    for part in ("leaderTemplate", "workerTemplate"):
        assert asked[f"two-hosts: LeaderWorkerSet/lckv-worker-demo/{part}"] == {"nvidia.com/gpu": 4}
    assert asked["defaults: Deployment/lckv-worker-demo"] == {}


def test_threads_follow_the_limit_of_cpus(rendered):
    flags = {name: chart.flags(spec["containers"][0]) for name, _, spec in all_pods(rendered)}
    assert flags["cpu-ranks: Deployment/lckv-worker-demo"]["--threads"] == "1"  # 6 CPUs, 4 ranks
    assert flags["ci-laptop: Deployment/lckv-worker-demo"]["--threads"] == "2"
    assert "--threads" not in flags["defaults: Deployment/lckv-worker-demo"]


def test_large_numbers_stay_whole(rendered):
    (spec,) = [s for name, c, s in all_pods(rendered) if name.startswith("flags: ") and c == "worker"]
    flags = chart.flags(spec["containers"][0])
    assert flags["--max-num-batched-tokens"] == "16777216"
    assert flags["--prefill-tolerance"] == "0.0001"
    assert flags["--enable-prefix-caching"] == "false"


def test_names_are_asked_of_the_clusters_servers_and_of_the_nodes(rendered):
    """A cache on the node is no pod that a selector finds."""
    blocks = {
        "defaults": ["169.254.20.10/32"],
        "dns-addresses": ["10.96.0.10/32", "fd00:10:96::a/128"],
        "no-dns-addresses": [],
    }
    ports = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
    for case, expected in blocks.items():
        policies = [p for p in chart.of_kind(rendered[case], "NetworkPolicy") if "-ranks-" not in p["metadata"]["name"]]
        assert len(policies) == 3
        for policy in policies:
            [rule] = [rule for rule in policy["spec"]["egress"] if rule["ports"] == ports]
            found = [peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer]
            assert found == [{"cidr": cidr} for cidr in expected], case
            assert [set(peer) for peer in rule["to"] if "ipBlock" not in peer] == [{"namespaceSelector", "podSelector"}]


def test_each_group_of_ranks_has_a_policy_of_its_own(rendered):
    for case, groups in (("two-hosts", 2), ("ci-four-hosts-tp16", 3), ("eight-hosts", 1), ("eight-gpus", 0)):
        ranks = [p for p in chart.of_kind(rendered[case], "NetworkPolicy") if "-ranks-" in p["metadata"]["name"]]
        indices = []
        for policy in ranks:
            own = policy["spec"]["podSelector"]
            indices.append(own["matchLabels"]["leaderworkerset.sigs.k8s.io/group-index"])
            # All ports, of this group alone.
            assert policy["spec"]["ingress"] == [{"from": [{"podSelector": own}]}], case
            assert policy["spec"]["egress"] == [{"to": [{"podSelector": own}]}], case
        assert indices == [str(index) for index in range(groups)], case


def test_plaintext_is_allowed_only_where_a_hop_has_no_tls(rendered):
    expected = {
        "defaults": (True, True),
        "tls-given": (False, False),
        "tls-clients-alone": (True, True),
        "tls-workers-alone": (True, False),
        "hosts-tls": (False, True),  # what ranks exchange within a step
    }
    for case, (router, worker) in expected.items():
        for name, _, spec in chart.pods(rendered[case]):
            if not name.startswith("Pod/"):
                allowed = "--allow-plaintext" in spec["containers"][0]["args"]
                assert allowed == (router if "router" in name else worker), (case, name)


def test_users_labels_stand_beside_those_that_select(rendered):
    found = {name: labels for name, labels, _ in chart.pods(rendered["placement"])}
    for name in ("Deployment/lckv-router", "Deployment/lckv-worker-demo"):
        assert found[name]["team"] == "a" and found[name]["app.kubernetes.io/name"] == "lckv", name


def test_switches_cover_ci():
    assert len(chart.CI) == 4 and len(switches.everything()) > 40
