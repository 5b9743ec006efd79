"""Who may speak to whom: what network policies open, written down in full."""

import copy
import itertools

import pytest

import chart

OWN = {"app.kubernetes.io/name": "lckv", "app.kubernetes.io/instance": "lckv"}
BOTH = {"Ingress", "Egress"}


def described(selector):
    """`own component=worker model=demo` of pods of this release; a selector that has no condition is `all`."""
    assert set(selector) <= {"matchLabels"}, selector
    labels = dict(selector.get("matchLabels", {}))
    own = OWN.items() <= labels.items()
    rest = sorted(f'{key.rpartition("/")[2]}={value}' for key, value in labels.items() if not own or key not in OWN)
    return " ".join([*(["own"] if own else []), *rest]) or "all"


def peers(given):
    """An absent or empty list is everyone."""
    for peer in given or [None]:
        if peer is None:
            yield "everyone"
        elif "ipBlock" in peer:
            assert set(peer) == {"ipBlock"} and set(peer["ipBlock"]) == {"cidr"}, peer
            yield peer["ipBlock"]["cidr"]
        else:
            parts = [described(peer["podSelector"])] if "podSelector" in peer else []
            if "namespaceSelector" in peer:
                parts.append(f'in {described(peer["namespaceSelector"])}')
            yield " ".join(parts)


def ports(given):
    for port in given or [None]:
        if port is None:
            yield "every port"
        else:
            last = f'-{port["endPort"]}' if "endPort" in port else ""
            yield f'{port["protocol"]} {port["port"]}{last}'


def openings(documents):
    """{(pods, direction, peer, port)} of all policies together: they add up."""
    found = set()
    for policy in chart.of_kind(documents, "NetworkPolicy"):
        spec = policy["spec"]
        pods = described(spec["podSelector"])
        for kind, side in (("Ingress", "from"), ("Egress", "to")):
            if kind not in spec["policyTypes"]:
                found.add((pods, side, "everyone", "every port"))
            for rule in spec.get(kind.lower(), []):
                both = itertools.product(peers(rule.get(side)), ports(rule.get("ports")))
                found |= {(pods, side, *opened) for opened in both}
    return found


ROUTER, TEST = "own component=router", "own component=test"
KUBE_DNS = "k8s-app=kube-dns in metadata.name=kube-system"
NODE_DNS = "169.254.20.10/32"
MONITORING = "in metadata.name=monitoring"


def worker(key="demo", leads=False):
    return f"own component=worker model={key}" + (" worker-index=0" if leads else "")


def rank(group):
    return f"own component=worker group-index={group} model=demo"


def asks_names(*pods, of=(KUBE_DNS, NODE_DNS), at=(53,)):
    return {(one, "to", who, f"{by} {port}") for one in pods for who in of for by in ("UDP", "TCP") for port in at}


def serves(key="demo", hosts=1):
    """What a model adds, names aside."""
    return {
        (ROUTER, "to", worker(key, hosts > 1), "TCP grpc"),
        (worker(key), "from", ROUTER, "TCP grpc"),
        (worker(key), "from", MONITORING, "TCP metrics"),
    }


ROUTES = {
    (ROUTER, "from", "everyone", "TCP grpc"),
    (ROUTER, "from", MONITORING, "TCP metrics"),
    (TEST, "to", ROUTER, "TCP grpc"),
}
PODS = (ROUTER, TEST, worker())
EXPECTED = {
    "defaults": ROUTES | serves() | asks_names(*PODS),
    "no-policy": set(),
    "no-test": {one for one in ROUTES | serves() | asks_names(*PODS) if one[0] != TEST},
    "second-model": ROUTES | serves() | serves("other") | asks_names(*PODS, worker("other")),
    "eight-gpus": ROUTES | serves() | asks_names(*PODS) | {(worker(), "from", MONITORING, "TCP 9101-9107")},
    # Ranks speak to those of their group alone, at every port.
    "two-hosts": ROUTES
    | serves(hosts=2)
    | asks_names(*PODS)
    | {(worker(), "from", MONITORING, "TCP 9101-9107")}
    | {(rank(group), direction, rank(group), "every port") for group in (0, 1) for direction in ("from", "to")},
    # Clients that are listed, and `helm test` besides; nobody reads metrics; an init container reaches a bucket.
    "policy": {one for one in serves() | asks_names(*PODS) if one[2] != MONITORING}
    | {(ROUTER, "from", who, "TCP grpc") for who in ("10.0.0.0/8", TEST)}
    | {(TEST, "to", ROUTER, "TCP grpc"), (worker(), "to", "10.1.0.0/16", "every port")},
    "dns-addresses": ROUTES | serves() | asks_names(*PODS, of=(KUBE_DNS, "10.96.0.10/32", "fd00:10:96::a/128")),
    "no-dns-addresses": ROUTES | serves() | asks_names(*PODS, of=(KUBE_DNS,)),
    "dns-ports": ROUTES | serves() | asks_names(*PODS, at=(53, 5353)),
}


@pytest.mark.parametrize("case", EXPECTED)
def test_policies_let_through_what_is_needed_and_nothing_else(rendered, case):
    found = openings(rendered[case])
    assert found - EXPECTED[case] == set(), "opened besides"
    assert EXPECTED[case] - found == set(), "not opened"


def test_every_pod_is_held_by_a_policy_in_both_directions(rendered):
    for case, documents in rendered.items():
        selectors = [
            policy["spec"]["podSelector"]["matchLabels"].items()
            for policy in chart.of_kind(documents, "NetworkPolicy")
            if set(policy["spec"]["policyTypes"]) == BOTH
        ]
        for name, labels, _ in chart.pods(documents):
            held = any(selector <= labels.items() for selector in selectors)
            assert held == (case != "no-policy"), (case, name)


def test_the_router_alone_may_be_spoken_to_by_everyone(rendered):
    """Of all switches, also those that are not written down above."""
    for case, documents in rendered.items():
        wide = {one for one in openings(documents) if one[2] == "everyone" or one[2].startswith(("all", "in all"))}
        assert wide <= {(ROUTER, "from", "everyone", "TCP grpc")}, case


def rule(policy, direction, number):
    return policy["spec"][direction][number]


# (in which switch, the end of the policy's name, what makes it let through more, or less)
PLANTED = {
    "any port": ("defaults", "-router", lambda p: rule(p, "ingress", 0).pop("ports")),
    "any peer": ("defaults", "-worker-demo", lambda p: rule(p, "ingress", 0).pop("from")),
    "no peer listed": ("defaults", "-test", lambda p: rule(p, "egress", 1).update(to=[])),
    "everything": ("defaults", "-worker-demo", lambda p: p["spec"]["egress"].append({})),
    "one direction alone": ("defaults", "-test", lambda p: p["spec"].update(policyTypes=["Egress"])),
    "one peer more": (
        "defaults", "-worker-demo", lambda p: rule(p, "ingress", 0)["from"].append({"ipBlock": {"cidr": "0.0.0.0/0"}})
    ),
    "of all namespaces": (
        "defaults", "-router", lambda p: rule(p, "ingress", 1).update({"from": [{"namespaceSelector": {}}]})
    ),
    "one port more": ("eight-gpus", "-worker-demo", lambda p: rule(p, "ingress", 1)["ports"][1].update(endPort=9108)),
    "other groups' ranks": (
        "two-hosts", "-ranks-0",
        lambda p: rule(p, "ingress", 0)["from"][0]["podSelector"]["matchLabels"].pop(
            "leaderworkerset.sigs.k8s.io/group-index"
        ),
    ),
    "followers": (
        "two-hosts", "-router",
        lambda p: rule(p, "egress", 1)["to"][0]["podSelector"]["matchLabels"].pop(
            "leaderworkerset.sigs.k8s.io/worker-index"
        ),
    ),
    "another release": (
        "policy", "-router",
        lambda p: rule(p, "ingress", 0)["from"][1]["podSelector"]["matchLabels"].pop("app.kubernetes.io/instance"),
    ),
    "no names": ("defaults", "-router", lambda p: p["spec"]["egress"].pop(0)),
    "names by UDP alone": ("defaults", "-test", lambda p: rule(p, "egress", 0)["ports"].pop(1)),
    "no metrics": ("defaults", "-worker-demo", lambda p: p["spec"]["ingress"].pop(1)),
}  # fmt: skip


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_opening_is_found(rendered, fault):
    case, name, plant = PLANTED[fault]
    documents = copy.deepcopy(rendered[case])
    [policy] = [p for p in chart.of_kind(documents, "NetworkPolicy") if p["metadata"]["name"].endswith(name)]
    plant(policy)
    assert openings(documents) != EXPECTED[case]
