#!/usr/bin/env python3
"""Lists what each kernel of the CUDA backend takes, out of the built objects: `cuda_resources.py CUOBJDUMP OBJECT...`.

Fails where a kernel of attention, sampling, products or exchanges keeps values in local memory: registers that do not
suffice, or arrays whose index is not known when compiling, cost a trip to memory at each use. Fails too where attention
over bfloat16 or float16 has no instruction of tensor cores for this format, or is not there at all.
"""

import collections
import os
import pathlib
import re
import subprocess
import sys

WATCHED = re.compile(r"(attention|merge|draw|logprobs|product|exchange_\w+)_kernel")
ON_TENSOR_CORES = re.compile(r"tensor_\w+_kernelIN\w*?\d(B?Float16)E")
FUNCTION = re.compile(r"^\s*Function\s*:?\s*(\S+?):?\s*$")
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
ARCHITECTURE = re.compile(r"^arch = (\S+)")
LOCAL_ACCESS = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?(STL|LDL)\b")
TENSOR_PRODUCT = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?HMMA\.16816\.F32(\.BF16)?\s")


def lines_of(cuobjdump, option, path):
    # It looks for nvdisasm in PATH, which lies beside it.
    environment = dict(os.environ, PATH=f"{pathlib.Path(cuobjdump).parent}:{os.environ['PATH']}")
    result = subprocess.run([cuobjdump, option, path], env=environment, capture_output=True, text=True, check=True)
    return result.stdout.splitlines()


def kernels_of(cuobjdump, path):
    """(architecture, mangled name) -> {registers, stack, shared, local, accesses, products}"""
    found = {}
    architecture = name = None
    for line in lines_of(cuobjdump, "-res-usage", path):
        if match := ARCHITECTURE.match(line):
            architecture = match.group(1)
        elif match := FUNCTION.match(line):
            name = match.group(1)
        elif match := USAGE.search(line):
            keys = ("registers", "stack", "shared", "local")
            found[architecture, name] = dict(zip(keys, map(int, match.groups())), accesses=0, products=0)
    for line in lines_of(cuobjdump, "-sass", path):
        if match := ARCHITECTURE.match(line):
            architecture = match.group(1)
        elif match := FUNCTION.match(line):
            name = match.group(1)
        elif LOCAL_ACCESS.match(line):
            found[architecture, name]["accesses"] += 1
        elif match := TENSOR_PRODUCT.match(line):
            found[architecture, name]["products"] += bool(match.group(1)) == ("BFloat16" in name)
    return found


def readable(names):
    result = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    plain = [re.sub(r"\(anonymous namespace\)::|lckv::|^void ", "", name) for name in result.stdout.splitlines()]
    return dict(zip(names, (name.split("(")[0] for name in plain)))


def main(cuobjdump, *objects):
    kernels = {}
    for path in objects:
        if path.endswith(".cu.o"):
            kernels |= {key: usage for key, usage in kernels_of(cuobjdump, path).items() if WATCHED.search(key[1])}
    names = readable(sorted({name for _, name in kernels}))
    spilled = idle = 0
    on_tensor_cores = collections.Counter()
    print(f"{'kernel':60} {'arch':8} registers shared stack local products")
    for (architecture, name), usage in sorted(kernels.items()):
        faults = []
        if usage["stack"] + usage["local"] + usage["accesses"] > 0:
            spilled += 1
            faults.append("local memory")
        if match := ON_TENSOR_CORES.search(name):
            on_tensor_cores[match.group(1)] += 1
            if usage["products"] == 0:
                idle += 1
                faults.append("no tensor cores")
        print(
            f"{names[name]:60} {architecture:8} {usage['registers']:9} {usage['shared']:6} {usage['stack']:5} "
            f"{usage['local'] + usage['accesses']:5} {usage['products']:8}"
            f"{'  <- ' if faults else ''}{', '.join(faults)}"
        )
    print(f"{len(kernels)} kernels, {spilled} of them with local memory; {on_tensor_cores.total()} for tensor cores, {idle} of them without")
    return 1 if spilled or idle or len(on_tensor_cores) < 2 else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
