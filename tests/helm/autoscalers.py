"""What Kubernetes and KEDA do with a demand and with what the chart tells them.

HorizontalPodAutoscaler: kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale ("Algorithm details" and
"Configurable scaling behavior"), in the order of Kubernetes 1.34, pkg/controller/podautoscaler/horizontal.go. KEDA:
keda.sh/docs/2.17/reference/scaledobject-spec, in the order of 2.17, pkg/scaling/executor/scale_scaledobjects.go."""

import math

SYNC_SECONDS = 15  # between two decisions of a HorizontalPodAutoscaler, as it is shipped
TOLERANCE = 0.1


class PodAutoscaler:
    """Of one metric, whose target is an average per replica."""

    def __init__(self, least, most, target, behavior):
        self.least, self.most, self.target, self.behavior = least, most, target, behavior
        # Not given, the policy that allows the largest change counts: nothing else is done here.
        assert all("selectPolicy" not in rules for rules in behavior.values())
        self.recommendations = []  # (time, replicas)
        self.changes = []  # (time, replicas more)

    @classmethod
    def of(cls, manifest):
        [metric] = manifest["spec"]["metrics"]
        least, most = manifest["spec"]["minReplicas"], manifest["spec"]["maxReplicas"]
        return cls(least, most, int(metric["external"]["target"]["averageValue"]), manifest["spec"]["behavior"])

    def decide(self, now, replicas, demand):
        """How many replicas there are to be from now on; `demand` is None where there is no series."""
        if not self.recommendations:
            self.recommendations.append((now, replicas))
        if replicas == 0 or demand is None:
            return replicas
        wanted = replicas
        if abs(1 - demand / (self.target * replicas)) > TOLERANCE:
            wanted = math.ceil(demand / self.target)
        wanted = self._limited(now, replicas, self._stabilized(now, replicas, wanted))
        self.changes.append((now, wanted - replicas))
        return wanted

    def _stabilized(self, now, replicas, wanted):
        """Up only as far as all recommendations of its window say, down likewise."""

        def recent(direction):
            begin = now - self.behavior[direction]["stabilizationWindowSeconds"]
            return [wanted, *(given for time, given in self.recommendations if time > begin)]

        lowest, highest = min(recent("scaleUp")), max(recent("scaleDown"))
        self.recommendations.append((now, wanted))
        return min(max(replicas, lowest), highest)

    def _limited(self, now, replicas, wanted):
        """By the policies, each of which counts from the replicas that there were at the begin of its period."""
        sign = 1 if wanted > replicas else -1
        limits = []
        for policy in self.behavior["scaleUp" if sign > 0 else "scaleDown"]["policies"]:
            begin = now - policy["periodSeconds"]
            before = replicas - sum(more for time, more in self.changes if time > begin)
            value = policy["value"]
            if policy["type"] == "Percent":
                value = before * value / 100
            limits.append(before + sign * value)
        if sign > 0:
            return min(wanted, self.most, max(replicas, math.ceil(max(limits))))
        return max(wanted, self.least, min(replicas, int(min(limits))))


class Keda:
    """Brings a workload from no replica to one and from any number to none; its autoscaler does the rest."""

    def __init__(self, manifest):
        spec = manifest["spec"]
        [trigger] = spec["triggers"]
        # Replicas stay as they are where the query gives nothing.
        assert trigger["metadata"]["ignoreNullValues"] == "false" and "fallback" not in spec
        assert trigger["metricType"] == "AverageValue" and spec["pollingInterval"] == SYNC_SECONDS
        self.least = spec["minReplicaCount"]
        self.activation = float(trigger["metadata"]["activationThreshold"])
        self.cooldown = spec["cooldownPeriod"]
        self.last_active = None
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        target = int(trigger["metadata"]["threshold"])
        self.autoscaler = PodAutoscaler(max(1, self.least), spec["maxReplicaCount"], target, behavior)

    def decide(self, now, replicas, demand):
        if demand is None:
            return replicas
        if demand > self.activation:
            self.last_active = now
            replicas = replicas or max(1, self.least)
        elif self.least == 0 and replicas > 0 and (self.last_active is None or self.last_active + self.cooldown < now):
            return 0
        return self.autoscaler.decide(now, max(replicas, self.least), demand)
