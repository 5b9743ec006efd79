"""deploy/rolling-restart.sh with a test in the place of whatever restarts processes."""

import os
import signal
import subprocess

import serving


class RollingRestart:
    """Runs the script beside the test, which restarts what `orders` names and says so with `done`."""

    def __init__(self, router, folder, timeout=60):
        self.folder = folder
        wait = 'touch "$0/$1.stop"; until [[ -e "$0/$1.done" ]]; do sleep 0.1; done; rm "$0/$1.done"'
        self.script = subprocess.Popen(
            [str(serving.ROOT / "deploy/rolling-restart.sh"), "--router", router.address]
            + ["--lckv", str(serving.BIN / "lckv"), "--timeout", str(timeout * serving.SLOWNESS)]
            + ["--restart", f"bash -c '{wait}' {folder} \"$1\""],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that what it waits in can be ended with it
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.running():
            os.killpg(self.script.pid, signal.SIGKILL)
        self.script.wait()

    def running(self):
        return self.script.poll() is None

    def orders(self):
        """Addresses whose replica is to be restarted now; each is named once."""
        found = []
        for order in self.folder.glob("*.stop"):
            order.unlink()
            found.append(order.stem)
        return found

    def done(self, address):
        (self.folder / f"{address}.done").touch()

    def expect_success(self):
        assert self.script.returncode == 0, self.script.stdout.read()

    def failure(self):
        """What it says, with exit code 1."""
        said = self.script.communicate(timeout=60 * serving.SLOWNESS)[0]
        assert self.script.returncode == 1, said
        return said
