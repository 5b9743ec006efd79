"""Half an hour of everything at once, and whether anything grows: `soak.py [--minutes 30] [--smoke]`.

One router, a replica of one rank and one of two; streams that finish, that are cancelled, that run out of time and
that ask for what is refused, and once a minute a replica that drains and comes back. Prints memory, descriptors and
threads of every process; the last third is held against the one before it.
"""

import argparse
import os
import pathlib
import random
import statistics
import sys
import threading
import time

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

import api  # noqa: E402
import ranks  # noqa: E402
import serving  # noqa: E402

NUM_CLIENTS = 12
GOAL = 1.02


def request(dice):
    kind = dice.randrange(10)
    fields = {"stopping": {"ignore_eos": True, "max_new_tokens": 1 + dice.randrange(200)}}
    if kind == 0:
        fields["num_choices"] = 3
    if kind == 1:
        fields["output"] = {"num_logprobs": 5, "num_prompt_logprobs": 2}
    if kind == 2:
        fields["sampling"] = {"top_p": 2}  # refused
    return api.request(text="Once upon a time" + " and" * dice.randrange(100), **fields)


class Client(threading.Thread):
    def __init__(self, address, seed):
        super().__init__(daemon=True)
        self.client = api.Client(address)
        self.dice = random.Random(seed)
        self.ending = False
        self.outcomes = {}
        self.start()

    def run(self):
        while not self.ending:
            timeout = self.dice.choice([0.3, 60, 60, 60])
            call = self.client.stream(request(self.dice), timeout=timeout)
            cancel_after = self.dice.choice([5, None, None])
            try:
                for number, _ in enumerate(call):
                    if number == cancel_after:
                        call.cancel()
                outcome = "OK"
            except grpc.RpcError as error:
                outcome = error.code().name
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1


def sizes(pid):
    """MB resident, descriptors, threads."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]
    threads = next(line for line in status.splitlines() if line.startswith("Threads")).split()[1]
    return int(resident) / 1024, len(os.listdir(f"/proc/{pid}/fd")), int(threads)


def drain_one(client, dice):
    replica = dice.choice(client.replicas())
    client.drain(replica.replica_id, move=True)
    time.sleep(2)
    client.undrain(replica.replica_id)


def run(seconds):
    flags = ["--dtype", "float32"]
    workers = [serving.Worker(serving.DEMO, *flags), serving.Worker(serving.DEMO, *flags, "--tensor-parallel-size", 2)]
    router = serving.Router(workers).wait_ready(2)
    processes = {"router": router.popen.pid, "worker": workers[0].popen.pid, "launcher": workers[1].popen.pid}
    processes |= {f"rank {rank}": pid for rank, pid in ranks.ranks_of(workers[1]).items()}
    clients = [Client(router.address, seed) for seed in range(NUM_CLIENTS)]
    dice = random.Random(0)
    samples = {name: [] for name in processes}
    began = time.monotonic()
    try:
        while time.monotonic() - began < seconds:
            time.sleep(max(seconds / 180, 0.2))
            for name, pid in processes.items():
                samples[name].append(sizes(pid))
            if len(samples["router"]) % 6 == 0:
                drain_one(router.client, dice)
                print(f"{time.monotonic() - began:6.0f} s  " + "  ".join(
                    f"{name} {samples[name][-1][0]:.1f} MB {samples[name][-1][1]} fds {samples[name][-1][2]} threads"
                    for name in processes
                ), flush=True)
        for client in clients:
            client.ending = True
        for client in clients:
            client.join(120)
    finally:
        for process in (router, *workers):
            process.close()
    outcomes = {}
    for client in clients:
        for name, count in client.outcomes.items():
            outcomes[name] = outcomes.get(name, 0) + count
    print(f"calls: {outcomes}")
    return samples


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    samples = run(15 if options.smoke else options.minutes * 60)
    missed = 0
    for name, of_process in samples.items():
        third = len(of_process) // 3
        for what, unit, index in (("memory", "MB", 0), ("descriptors", "", 1), ("threads", "", 2)):
            before = statistics.median(sample[index] for sample in of_process[third : 2 * third])
            after = statistics.median(sample[index] for sample in of_process[2 * third :])
            met = after <= before * GOAL
            missed += not met
            verdict = "" if options.smoke else f"  goal <= {GOAL}: {'met' if met else 'missed'}"
            print(f"  {name + ': ' + what:30} {after:10.1f} {unit:3} = {after / before:6.3f} of the third before{verdict}")
    if not options.smoke:
        print(f"\n{3 * len(samples) - missed} goals met, {missed} missed")


if __name__ == "__main__":
    main()
