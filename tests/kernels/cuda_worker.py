#!/usr/bin/env python3
"""A worker of the CUDA build whose device is not there ends with one line that says so: `cuda_worker.py WORKER MODEL`.

It has served its metrics by then: the libraries of the build leave every thread enough of its stack.
"""

import re
import subprocess
import sys

REASONS = r"no CUDA (driver on this machine|device to be seen|device 4095: there (is|are) .*)|the CUDA driver .*"


def main(worker, model):
    ports = ["--port", "0", "--metrics-port", "0", "--health-port", "0"]
    result = subprocess.run(
        [worker, "--model", model, "--device", "cuda:4095", "--kv-cache-memory", "64MiB", *ports],
        capture_output=True, text=True, timeout=60,
    )
    errors = [line for line in result.stderr.splitlines() if " error " in line]
    print(result.stderr, end="")
    if result.returncode != 1 or len(errors) != 1 or not re.search(f" error ({REASONS})$", errors[0]):
        print(f"exit code {result.returncode}, expected 1 and one line: {REASONS}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
