"""Runs an image's root file system as a container runtime would, without one.

A mount and a PID namespace each; the root file system is read-only, and so is what is mounted into it but for /dev/shm,
which every runtime gives. User, environment and program are those of the image.
"""

import functools
import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import time

IMAGES = pathlib.Path(os.environ["LCKV_IMAGES"])
SECONDS = 60  # ends what hangs

# root user [source target]... -- program...
SCRIPT = """
root=$1; user=$2; shift 2
mount --bind "$root" "$root"
while [ "$1" != -- ]; do
  mount --bind "$1" "$root$2"
  mount -o remount,bind,ro "$root$2"
  shift 2
done
shift
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null zero full random urandom; do
  : >"$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm"
mount -t tmpfs -o mode=1777,size=64m shm "$root/dev/shm"
mount -o remount,bind,ro "$root/dev"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t proc proc "$root/proc"
mount -o remount,bind,ro "$root"
exec chroot --userspec="$user" --groups= "$root" /usr/bin/setpriv --no-new-privs -- "$@"
"""


@functools.cache
def configuration(image):
    return json.loads((IMAGES / f"{image}.json").read_text())["OCIv1"]["config"]


class Container:
    """`mounts`: target -> source, read-only. Ends with the `with` block."""

    def __init__(self, image, *arguments, mounts=None, entrypoint=None):
        given = configuration(image)
        self.log_path = pathlib.Path(tempfile.mkstemp(prefix=f"{image}-", suffix=".log")[1])
        command = ["unshare", "--mount", "--pid", "--fork", "sh", "-euc", SCRIPT]
        command += ["container", os.path.realpath(IMAGES / image), given["User"]]
        for target, source in (mounts or {}).items():
            command += [str(source), target]
        command += ["--", "/usr/bin/env", "-i", *given["Env"]]
        command += [*(entrypoint or given["Entrypoint"]), *map(str, arguments)]
        with self.log_path.open("wb") as log:
            self.popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.name = image

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.popen.poll() is None:
            self.signal(signal.SIGKILL)
            self.popen.wait(SECONDS)
        self.log_path.unlink()

    def log(self):
        return self.log_path.read_text(errors="replace")

    def last_line(self):
        return self.log().rstrip("\n").rpartition("\n")[2]

    def wait_until(self, condition, what):
        """The container must live until then."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert self.popen.poll() is None, f"{self.name} ended before {what}:\n{self.log()}"
            assert time.monotonic() < deadline, f"{self.name} without {what}:\n{self.log()}"
            time.sleep(0.05)

    def pid(self):
        """Of the first process, as this side sees it."""
        children = pathlib.Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children")
        self.wait_until(children.read_text, "its first process")
        return int(children.read_text())

    def status(self, field):
        text = pathlib.Path(f"/proc/{self.pid()}/status").read_text()
        return re.search(rf"^{field}:\s*(.*)$", text, re.M).group(1).split()

    def signal(self, number):
        os.kill(self.pid(), number)

    def terminate(self):
        """SIGTERM to the first process; exit code, seconds."""
        begin = time.monotonic()
        self.signal(signal.SIGTERM)
        return self.wait(), time.monotonic() - begin

    def wait(self):
        """The exit code."""
        try:
            return self.popen.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end:\n{self.log()}") from None
