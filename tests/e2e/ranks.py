"""A replica of several ranks: its launcher, its processes, its ports."""

import pathlib
import re

import serving
import tcp_ports

FLAGS = ["--dtype", "float32", "--tensor-parallel-size", "2"]
# However slow the build, below the 4 s after which silent connections are given up: another reason to end.
RANK_SECONDS = 2 if serving.SLOWNESS == 1 else 3
TIMEOUTS = ["--rank-timeout", f"{RANK_SECONDS}s", "--step-timeout", f"{10 * serving.SLOWNESS}s"]
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
            serving.wait_until(lambda port=port: tcp_ports.is_free(port), f"port {port} free", END_SECONDS)

    def last_line(self):
        lines = errors(self.launcher.log())
        assert len(lines) == 1, self.launcher.log()
        assert lines[0] == self.launcher.log().splitlines()[-1]
        match = re.search(r'replica ended rank=(\d+) step=(\d+) operation=(\w+) why="?([^"]*)"?$', lines[0])
        assert match, lines[0]
        return int(match[1]), int(match[2]), match[3], match[4]
