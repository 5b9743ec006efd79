"""A model's replicas and the calls for it, second by second: what autoscalers act on, and what they change."""

SCRAPE_SECONDS = 15
SEATS = 64  # --max-num-seqs
START_SECONDS = 75  # of a pod, until its replica is ready
SEQUENCE_SECONDS = 20  # on average

ROUTERS = 2
QUEUE, WAITING, RUNNING = "lckv_router_queue_depth", "vllm:num_requests_waiting", "vllm:num_requests_running"


class Pod:
    def __init__(self, number, ready_at):
        self.number, self.ready_at = number, ready_at
        self.waiting = self.running = 0
        self.leaving = False


class Fleet:
    """Sequences wait at routers while no replica is ready, for `ready_wait` seconds, and at the emptiest replica
    otherwise."""

    def __init__(self, model, dice, ready_wait, replicas=0):
        self.model, self.dice, self.ready_wait = model, dice, ready_wait
        self.queues = [[] for _ in range(ROUTERS)]  # when each came
        self.pods = [Pod(number, 0) for number in range(replicas)]
        self.num_pods = replicas
        self.ended = self.failed = 0
        self.scraped = {}  # {(metric, program): value}

    def replicas(self):
        return sum(not pod.leaving for pod in self.pods)

    def scale(self, now, replicas):
        for _ in range(replicas - self.replicas()):
            self.pods.append(Pod(self.num_pods, now + START_SECONDS))
            self.num_pods += 1
        for pod in [pod for pod in self.pods if not pod.leaving][replicas:]:
            pod.leaving = True

    def pass_second(self, now, arrivals):
        for _ in range(arrivals):
            self.dice.choice(self.queues).append(now)
        ready = [pod for pod in self.pods if pod.ready_at <= now and not pod.leaving]
        for queue in self.queues:
            for arrival in queue[:]:
                if ready:
                    min(ready, key=lambda pod: pod.running + pod.waiting).waiting += 1
                elif now - arrival < self.ready_wait:
                    continue
                else:
                    self.failed += 1
                queue.remove(arrival)
        for pod in self.pods:
            ended = sum(self.dice.random() < 1 / SEQUENCE_SECONDS for _ in range(pod.running))
            seated = min(pod.waiting, SEATS - pod.running + ended)
            pod.running += seated - ended
            pod.waiting -= seated
            self.ended += ended
        # What a pod that leaves still has, it ends (--drain-timeout).
        self.pods = [pod for pod in self.pods if not pod.leaving or pod.running + pod.waiting > 0]
        self._scrape(now)

    def _scrape(self, now):
        """Each program at a second of its own: a call that moves may be counted twice, or not at all."""
        targets = {f"router-{number}": {QUEUE: len(queue)} for number, queue in enumerate(self.queues)}
        for pod in self.pods:
            targets[f"pod-{pod.number}"] = {WAITING: pod.waiting, RUNNING: pod.running}
        # A target that is gone takes its series with it.
        self.scraped = {series: value for series, value in self.scraped.items() if series[1] in targets}
        for number, (program, values) in enumerate(sorted(targets.items())):
            if (now + 4 * number) % SCRAPE_SECONDS == 0:
                self.scraped.update({(metric, program): value for metric, value in values.items()})

    def metrics(self):
        """What was scraped last, as lines of /metrics."""
        return [
            f'{metric}{{model_name="{self.model}",program="{program}"}} {value}'
            for (metric, program), value in self.scraped.items()
        ]
