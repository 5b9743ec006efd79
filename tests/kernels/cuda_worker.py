#!/usr/bin/env python3
"""A worker of the CUDA build whose device is not there ends with one line that says so: `cuda_worker.py WORKER MODEL`.

It has served its metrics by then: the libraries of the build leave every thread enough of its stack. Of several ranks, the
launcher's last line says it for all.
"""

import re
import subprocess
import sys

REASONS = r"no CUDA (driver on this machine|device to be seen|device 409[56]: there (is|are) .*)|the CUDA driver .*"


def last_errors(worker, model, *flags):
    ports = ["--port", "0", "--metrics-port", "0", "--health-port", "0"]
    result = subprocess.run(
        [worker, "--model", model, "--device", "cuda:4095", "--kv-cache-memory", "64MiB", *ports, *flags],
        capture_output=True, text=True, timeout=60,
    )
    print(result.stderr, end="")
    return result.returncode, [line for line in result.stderr.splitlines() if " error " in line]


def main(worker, model):
    code, errors = last_errors(worker, model)
    if code != 1 or len(errors) != 1 or not re.search(f" error ({REASONS})$", errors[0]):
        print(f"exit code {code}, expected 1 and one line: {REASONS}")
        return 1
    code, errors = last_errors(worker, model, "--tensor-parallel-size", "2")
    if code != 1 or len(errors) != 1 or not re.search(f' rank=[01] .* why="({REASONS})"$', errors[0]):
        print(f"exit code {code}, expected 1 and one line that names a rank and why: {REASONS}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
