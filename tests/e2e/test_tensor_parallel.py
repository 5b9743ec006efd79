"""Replicas of several ranks: they serve as one, and whatever befalls a rank ends all of them, with one line."""

import os
import pathlib
import re
import shutil
import signal
import socket
import time

import pytest

import api
import serving

FLAGS = ["--dtype", "float32", "--tensor-parallel-size", "2"]
# Far below the default, and far above what a step of the demo model takes.
RANK_SECONDS = 2 * serving.SLOWNESS
TIMEOUTS = ["--rank-timeout", f"{RANK_SECONDS}s", "--step-timeout", f"{10 * serving.SLOWNESS}s"]
PROMPTS = ["The history of the city", "Once upon a time", "The people of the village", "In the year"]
# Between the logprobs of replicas of different sizes, float32.
TOLERANCE = 1e-4
# From a failure to the end of the last process, beyond the timeouts of the test.
END_SECONDS = 30 * serving.SLOWNESS


def process_state(pid):
    """The letter of /proc: None once it is gone; Z is a process that has ended."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def gone(pid):
    return process_state(pid) in (None, "Z")


def ranks_of(launcher):
    """pid of each rank, by number."""
    found = {}
    children = pathlib.Path(f"/proc/{launcher.popen.pid}/task/{launcher.popen.pid}/children")
    for pid in map(int, children.read_text().split()):
        arguments = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        found[int(arguments[arguments.index(b"--rank") + 1])] = pid
    return found


def is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def errors(text):
    return [line for line in text.splitlines() if " error " in line]


class Replica:
    """A launcher and its ranks; leaves nothing behind."""

    def __init__(self, *flags, timeouts=TIMEOUTS):
        self.launcher = serving.Worker(serving.DEMO, *FLAGS, *timeouts, *flags)
        try:
            self.launcher.wait_ready()
            self.ranks = ranks_of(self.launcher)
            assert sorted(self.ranks) == [0, 1]
            self.leader_port = self.port_of_leader()
        except BaseException:
            self.close()
            raise

    def port_of_leader(self):
        arguments = pathlib.Path(f"/proc/{self.ranks[1]}/cmdline").read_bytes().split(b"\0")
        return int(arguments[len(arguments) - arguments[::-1].index(b"--leader")].rpartition(b":")[2])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        # The kernel takes the ranks with their launcher.
        self.launcher.close()

    def expect_end(self, code=1):
        assert self.launcher.wait() == code, self.launcher.log()
        self.expect_nothing_left()

    def expect_nothing_left(self):
        serving.wait_until(
            lambda: all(gone(pid) for pid in self.ranks.values()), "all ranks gone", END_SECONDS
        )
        for port in (self.launcher.port, self.leader_port):
            serving.wait_until(lambda port=port: is_free(port), f"port {port} free", END_SECONDS)

    def last_line(self):
        lines = errors(self.launcher.log())
        assert len(lines) == 1, self.launcher.log()
        assert lines[0] == self.launcher.log().splitlines()[-1]
        match = re.search(r'replica ended rank=(\d+) step=(\d+) operation=(\w+) why="?([^"]*)"?$', lines[0])
        assert match, lines[0]
        return int(match[1]), int(match[2]), match[3], match[4]


def generate(client, text, **fields):
    asked = api.request(text=text, stopping={"ignore_eos": True, "max_new_tokens": 40}, **fields)
    return client.generate(asked)


def start_stream(router):
    asked = api.request(
        text=PROMPTS[0],
        sampling={"temperature": 0.8, "seed": 3},
        stopping={"ignore_eos": True, "max_new_tokens": 400},
    )
    call = router.client.stream(asked)
    read = api.Choice()
    for event in call:
        read.add(event)
        if len(read.ids) >= 5:
            return call
    raise AssertionError("the stream ended early")


def greedy(client):
    """For each prompt what follows it, with the two most likely tokens of each place."""
    fields = {"sampling": {"temperature": 0}, "output": {"num_logprobs": 2}}
    return [generate(client, text, **fields)[0] for text in PROMPTS]


def compare(one, other):
    """Equal as far as the choice is clear; how many tokens that are."""
    assert len(one.ids) == len(other.ids) == 40
    for place, (a, b) in enumerate(zip(one.logprobs, other.logprobs)):
        assert abs(a.top[0].logprob - b.top[0].logprob) <= TOLERANCE
        if a.id != b.id:
            assert a.top[0].logprob - a.top[1].logprob <= 2 * TOLERANCE
            return place
    return len(one.ids)


def test_two_ranks_give_what_one_gives():
    results = []
    for flags in (["--dtype", "float32"], FLAGS):
        with serving.System(serving.DEMO, *flags) as system:
            results.append(greedy(system.client))
            if flags is not FLAGS:
                continue
            address = system.workers[0].metrics_address
            ranks = system.client.replicas()
            assert [replica.tensor_parallel_size for replica in ranks] == [2]
            assert serving.metric(address, "lckv_rank_step", rank="0") > 0
            assert serving.metric(address, "lckv_rank_collectives_total", rank="0") > 0
            assert serving.metric(address, "vllm:num_requests_running") == 0
            assert system.workers[0].stop() == 0, system.workers[0].log()
            assert not errors(system.workers[0].log())
    num_clear = sum(compare(one, other) for one, other in zip(*results))
    assert num_clear > 20 * len(PROMPTS)


def test_followers_serve_their_own_metrics_where_asked_to():
    port = free_port() - 1
    with Replica("--rank-metrics-port", str(port)):
        text = serving.scrape(f"127.0.0.1:{port + 1}")
        assert 'lckv_rank_step{' in text and 'rank="1"' in text and "vllm:" not in text


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("busy", [True, False])
def test_killed_rank_ends_the_replica(victim, busy):
    with Replica() as replica:
        router = serving.Router([replica.launcher]).wait_ready()
        try:
            call = start_stream(router) if busy else None
            os.kill(replica.ranks[victim], signal.SIGKILL)
            replica.expect_end()
            rank, _, _, why = replica.last_line()
            assert (rank, why) == (victim, "killed by SIGKILL")
            if call is not None:
                call.cancel()
        finally:
            router.close()


def test_killed_launcher_takes_its_ranks_along():
    with Replica() as replica:
        replica.launcher.kill()
        replica.expect_nothing_left()


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("busy", [True, False])
def test_stopped_rank_ends_the_replica(victim, busy):
    with Replica() as replica:
        router = serving.Router([replica.launcher]).wait_ready()
        try:
            call = start_stream(router) if busy else None
            begin = time.monotonic()
            os.kill(replica.ranks[victim], signal.SIGSTOP)
            replica.expect_end()
            assert time.monotonic() - begin < RANK_SECONDS + END_SECONDS
            rank, _, _, why = replica.last_line()
            assert rank == victim
            assert why == f"silent for {RANK_SECONDS}s (--rank-timeout)"
            if call is not None:
                call.cancel()
        finally:
            router.close()


def test_rank_that_pauses_for_a_moment_harms_nothing():
    with Replica(timeouts=["--rank-timeout", f"{10 * serving.SLOWNESS}s"]) as replica:
        os.kill(replica.ranks[1], signal.SIGSTOP)
        time.sleep(1)
        os.kill(replica.ranks[1], signal.SIGCONT)
        router = serving.Router([replica.launcher]).wait_ready()
        try:
            assert len(generate(router.client, PROMPTS[0])[0].ids) == 40
        finally:
            router.close()
        assert replica.launcher.stop() == 0, replica.launcher.log()
        replica.expect_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_finishes_its_streams(number):
    with Replica() as replica:
        router = serving.Router([replica.launcher]).wait_ready()
        try:
            asked = api.request(
                text=PROMPTS[0], stopping={"ignore_eos": True, "max_new_tokens": 300}
            )
            call = router.client.stream(asked)
            choice = api.Choice()
            for event in call:
                choice.add(event)
                if len(choice.ids) >= 5:
                    break
            replica.launcher.signal(number)
            for event in call:
                choice.add(event)
            assert len(choice.ids) == 300
            replica.expect_end(0)
            assert not errors(replica.launcher.log())
        finally:
            router.close()


def test_told_to_end_while_it_starts_it_ends_in_order():
    process = serving.Process(
        "lckv-worker",
        ["--model", serving.DEMO, *FLAGS, "--port", 0, "--metrics-port", 0, "--health-port", 0,
         "--local-ranks", 1, "--leader", f"127.0.0.1:{free_port()}"],
    )
    try:
        process.find("listening")  # and waiting for a rank that nobody starts
        assert process.stop() == 0, process.log()
        assert not errors(process.log())
    finally:
        process.close()


class TestRanksStartedByHand:
    """One rank each, as on several hosts."""

    def start(self, rank, port, *flags, model=serving.DEMO, size=2):
        return serving.Process(
            "lckv-worker",
            ["--model", model, "--dtype", "float32", "--kv-cache-memory", "64MiB", "--swap-space", "16MiB",
             "--threads", 1, "--port", 0, "--metrics-port", 0, "--health-port", 0,
             "--tensor-parallel-size", size, "--leader", f"127.0.0.1:{port}", "--rank", rank, *flags],
        )

    def run(self, *starts):
        """Each to its end; exit codes and error lines."""
        processes = []
        try:
            processes = [self.start(*start[0], **start[1]) for start in starts]
            return [(process.wait(), errors(process.log())) for process in processes]
        finally:
            for process in processes:
                process.close()

    def expect_refusal(self, results, text):
        for code, lines in results:
            assert code == 1
            assert len(lines) == 1 and text in lines[0], lines

    def test_another_model(self, tmp_path):
        other = tmp_path / "demo"
        shutil.copytree(serving.DEMO, other)
        config = other / "config.json"
        config.write_text(config.read_text() + "\n")
        port = free_port()
        results = self.run(((0, port), {}), ((1, port), {"model": other}))
        self.expect_refusal(results, "different content of the model")

    def test_wrong_world_size(self):
        port = free_port()
        results = self.run(((0, port), {}), ((1, port), {"size": 4}))
        self.expect_refusal(results, "different --tensor-parallel-size: 2 on the leader, 4 on rank 1")

    def test_other_limits_of_steps(self):
        port = free_port()
        results = self.run(((0, port), {}), ((1, port, "--max-num-seqs", 7), {}))
        self.expect_refusal(results, "different limits of steps")

    def test_two_ranks_with_one_number(self):
        port = free_port()
        leader, first = self.start(0, port), self.start(1, port)
        try:
            leader.find(r"\bready seconds=")
            ((code, lines),) = self.run(((1, port), {}))
            assert code == 1
            assert len(lines) == 1 and "rank 1 has joined already" in lines[0], lines
            assert leader.alive() and first.alive()
            assert leader.stop() == 0, leader.log()
            assert first.wait() == 0, first.log()
        finally:
            leader.close()
            first.close()

    def test_two_leaders(self):
        port = free_port()
        leader = self.start(0, port)
        try:
            leader.find("listening")
            serving.wait_until(lambda: not is_free(port), "the leader serves ranks")
            results = self.run(((0, port), {}))
            self.expect_refusal(results, f"cannot serve ranks on 127.0.0.1:{port}")
            assert leader.alive()
        finally:
            leader.close()

    @pytest.mark.parametrize("victim", [0, 1])
    def test_without_a_launcher_the_other_rank_notices(self, victim):
        port = free_port()
        ranks = [self.start(0, port), self.start(1, port)]
        try:
            ranks[0].find(r"\bready seconds=")
            ranks[victim].signal(signal.SIGSTOP)
            assert ranks[1 - victim].wait() == 1
            assert len(errors(ranks[1 - victim].log())) == 1, ranks[1 - victim].log()
            ranks[victim].signal(signal.SIGCONT)
            assert ranks[victim].wait() == 1
        finally:
            for rank in ranks:
                rank.close()

    def test_no_leader(self):
        results = self.run(((1, free_port(), "--start-timeout", "1s"), {}))
        self.expect_refusal(results, "there is no leader at")

    def test_rank_that_never_comes(self):
        results = self.run(((0, free_port(), "--start-timeout", f"{2 * serving.SLOWNESS}s"), {}))
        self.expect_refusal(results, "rank 1 did not join")


def test_port_in_use_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = serving.run(
            "lckv-worker", "--model", serving.DEMO, *FLAGS, "--port", port, "--metrics-port", 0,
            "--health-port", 0, timeout=60,
        )
    assert result.returncode == 1
    (line,) = errors(result.stderr)
    assert "replica ended rank=0" in line and f"cannot serve routers on 127.0.0.1:{port}" in line


def test_model_that_cannot_be_cut_so_is_one_line():
    result = serving.run(
        "lckv-worker", "--model", serving.DEMO, "--tensor-parallel-size", 3, "--port", 0,
        "--metrics-port", 0, "--health-port", 0,
    )
    assert result.returncode == 1
    (line,) = errors(result.stderr)
    assert "replica ended rank=" in line and "--tensor-parallel-size 3" in line


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--tensor-parallel-size", 2, "--rank", 2, "--leader", "127.0.0.1:1"], "--rank 2 is not one of"),
        (["--tensor-parallel-size", 2, "--rank", 1], "--rank 1 needs --leader HOST:PORT"),
        (["--tensor-parallel-size", 2, "--leader", "nowhere"], '--leader "nowhere" is not HOST:PORT'),
        (["--tensor-parallel-size", 2, "--leader", "127.0.0.1:70000"], "is not HOST:PORT"),
        (["--tensor-parallel-size", 4, "--local-ranks", 2], "--leader HOST:PORT is needed"),
        (["--tensor-parallel-size", 2, "--first-rank", 1], "do not exist"),
    ],
)
def test_wrong_flags(flags, text):
    result = serving.run("lckv-worker", "--model", serving.DEMO, *flags)
    assert result.returncode == 2 and text in result.stderr, result.stderr
