"""Ranks that cannot become a replica: one clear line each, and the exit code."""

import shutil
import signal
import socket

import pytest

import serving
from ranks import FLAGS, errors
from tcp_ports import free_port, is_free


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

    # Of the second, as graphs with exchanges are recorded by all ranks or by none.
    @pytest.mark.parametrize("flags", [["--max-num-seqs", 7], ["--enforce-eager"]])
    def test_other_limits_of_steps(self, flags):
        port = free_port()
        results = self.run(((0, port), {}), ((1, port, *flags), {}))
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
        (["--tensor-parallel-size", 2, "--leader", "10.0.0.1:1", "--rank", 1], "--allow-plaintext"),
        (["--tensor-parallel-size", 2, "--rank-tls-ca", "ca.crt"], "--rank-tls-cert"),
    ],
)
def test_wrong_flags(flags, text):
    result = serving.run("lckv-worker", "--model", serving.DEMO, *flags)
    assert result.returncode == 2 and text in result.stderr, result.stderr
