#!/usr/bin/env python3
"""Holds the source tree to the layering table of ARCHITECTURE.md and to its limits.

Prints one line per finding, `file:line: rule: what`, and exits 1 where there is one. Reads nothing but the
tree: `check.py [ROOT]`. tests/tidy/check_test.py plants violations and expects them found.
"""

import pathlib
import re
import sys

LINE_LIMIT = 100
FILE_LIMIT, KERNEL_FILE_LIMIT = 400, 600
FUNCTION_LIMIT, KERNEL_FUNCTION_LIMIT = 70, 120
SOURCE_SUFFIXES = {".h", ".cc", ".cpp", ".cu", ".cuh"}

# The arrows: a folder, and what its files may include besides the folder itself. A name ending in / is a folder
# with all below it; any other is a header's path without suffix. The first match of a file counts.
PLANS = ["worker/kv/layer_plan", "worker/kv/pass_plan", "worker/kv/block_size"]
KERNEL_HEADERS = "kernels/*"  # the folder's own headers, none of those below it
ARROWS = [
    ("rpc/", ["proto/"]),
    ("router/", ["rpc/", "proto/"]),
    ("client/", ["rpc/", "proto/", "worker/model/model_config"] + PLANS + ["kernels/dtype"]),
    ("worker/service/", ["rpc/", "proto/", "worker/engine/", "worker/scheduler/", "worker/kv/"]),
    ("worker/group/", ["rpc/", "proto/", "worker/engine/", "worker/scheduler/", "kernels/"]),
    ("worker/engine/", ["worker/scheduler/", "worker/kv/", "worker/model/", "kernels/"]),
    ("worker/sim/", ["worker/scheduler/", "worker/kv/", "worker/model/", "worker/engine/", "kernels/"]),
    ("worker/scheduler/", ["worker/kv/"]),
    ("worker/model/", PLANS + ["worker/kv/ids", "kernels/"]),
    ("worker/kv/", []),
    # The wiring: main and the files beside it.
    ("worker/", ["rpc/", "proto/", "kernels/", "worker/"]),
    ("kernels/cpu/", [KERNEL_HEADERS]),
    ("kernels/cuda/", [KERNEL_HEADERS]),
    ("kernels/", [KERNEL_HEADERS]),
    ("tests/", None),  # everything
]
ANYWHERE = {"kernels/check"}  # header-only, no dependencies
PROTO_HEADER = re.compile(r"^(lckv|grpc/health|google/rpc)/.*\.pb\.h$")
FLAT_LIBRARIES = {"sentencepiece_processor.h", "dnnl.hpp", "dnnl.h", "omp.h"}
PROJECT_FOLDERS = ("rpc/", "router/", "client/", "worker/", "kernels/", "tests/", "proto/")

GRPC_FOLDERS = ("rpc/", "router/", "client/", "worker/service/", "worker/group/", "tests/")
CUDA_HEADER = re.compile(r"^(cuda|cublas|cub/|thrust/|nccl|cooperative_groups)")

# Words that name nothing, as a part of a name of ours.
EMPTY_WORDS = {"manager", "helper", "helpers", "util", "utils", "common", "misc"}
OTHER_WORDS = {"page", "pages", "cell", "cells", "node", "nodes"}  # we say block, slot, rank
# `context` is the model's here: names of types that end in it would mean something else.
TYPE_OR_FUNCTION = re.compile(
    r"^\s*(?:template\s*<[^>]*>\s*)?(?:class|struct|enum(?:\s+class)?|using|namespace)\s+([A-Za-z_]\w*)"
)
FUNCTION_NAME = re.compile(r"^[\w:<>,&*~\s\[\]]*?\b([a-z_]\w*)\s*\([^;]*$")


class Findings:
    def __init__(self):
        self.lines = []

    def add(self, path, line, rule, what):
        self.lines.append(f"{path}:{line}: {rule}: {what}")


def words(name):
    return {
        word.lower()
        for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name.replace("_", " "))
    }


def without_comments(text):
    """The same lines, with comments and the contents of literals blanked."""
    pattern = re.compile(
        r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.S
    )

    def blank(match):
        token = match.group(0)
        if token[0] == "'" and match.start() and text[match.start() - 1].isalnum():
            return token  # a digit separator
        return re.sub(r"[^\n]", " ", token)

    return pattern.sub(blank, text)


def allowed_includes(path):
    for folder, targets in ARROWS:
        if path.startswith(folder):
            return folder, targets
    return None, None


def check_includes(path, text, findings):
    folder, targets = allowed_includes(path)
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r'\s*#\s*include\s+["<]([^">]+)[">]', line)
        if not match:
            continue
        header = match.group(1)
        if header.startswith(("grpc/", "grpcpp/")) or header.endswith(".grpc.pb.h"):
            is_ours = header.startswith("grpc/health/") and not header.endswith(".grpc.pb.h")
            if not is_ours and not path.startswith(GRPC_FOLDERS):
                findings.add(path, number, "grpc", f"{header} outside {', '.join(GRPC_FOLDERS)}")
        if CUDA_HEADER.match(header) and not path.startswith("kernels/cuda/"):
            findings.add(path, number, "cuda", f"{header} outside kernels/cuda/")
        if PROTO_HEADER.match(header):
            header = "proto/" + header
        elif not header.startswith(PROJECT_FOLDERS):
            if f'"{header}"' in line and "/" not in header and header not in FLAT_LIBRARIES:
                findings.add(path, number, "include", f"{header} is not relative to the root")
            continue
        if targets is not None and not may_include(folder, targets, header):
            findings.add(path, number, "layering", f"{folder} may not include {header}")


def may_include(folder, targets, header):
    stem = re.sub(r"\.\w+$", "", header)
    if stem in ANYWHERE or (header.startswith(folder) and folder != "kernels/"):
        return True
    for target in targets:
        if target.endswith("/*"):
            if header.rpartition("/")[0] == target[:-2]:
                return True
        elif header.startswith(target) if target.endswith("/") else stem == target:
            return True
    return False


def check_sizes(path, text, code, findings):
    kernel = path.startswith("kernels/")
    lines = text.splitlines()
    limit = KERNEL_FILE_LIMIT if kernel else FILE_LIMIT
    if len(lines) > limit:
        findings.add(path, len(lines), "file size", f"{len(lines)} lines, at most {limit}")
    for number, line in enumerate(lines, 1):
        if len(line) > LINE_LIMIT and "http" not in line:
            findings.add(path, number, "line size", f"{len(line)} columns, at most {LINE_LIMIT}")
    limit = KERNEL_FUNCTION_LIMIT if kernel else FUNCTION_LIMIT
    for begin, end in functions(code):
        if end - begin + 1 > limit:
            findings.add(path, begin, "function size", f"{end - begin + 1} lines, at most {limit}")


def functions(code):
    """First and last line of each outermost brace block that is a function's body."""
    found = []
    stack = []  # (kind, first line of the statement)
    statement_begin, number, head = 1, 1, ""
    for char in code:
        if char == "\n":
            number += 1
        if char == "{":
            inside = any(kind == "function" for kind, _ in stack)
            kind = "block"
            flat = head.strip()
            if not inside and not flat.startswith("#") and re.search(r"\)[^=;]*$", flat):
                if not re.search(r"\b(class|struct|enum|namespace)\b[^()]*$", flat.split("(")[0]):
                    kind = "function"
            stack.append((kind, statement_begin))
            head, statement_begin = "", number
        elif char == "}":
            if stack:
                kind, begin = stack.pop()
                if kind == "function":
                    found.append((begin, number))
            head, statement_begin = "", number
        elif char == ";":
            head, statement_begin = "", number
        else:
            if not head.strip():
                if not char.isspace():
                    statement_begin = number
                head = ""
            head += char
    return found


def check_words(path, code, findings):
    for part in pathlib.PurePath(path).parts:
        bad = words(part.split(".")[0]) & (EMPTY_WORDS | OTHER_WORDS | {"context"})
        for word in sorted(bad):
            findings.add(path, 1, "word", f'"{word}" in a file name')
    for number, line in enumerate(code.splitlines(), 1):
        names = [m.group(1) for m in [TYPE_OR_FUNCTION.match(line)] if m]
        names += [m.group(1) for m in [FUNCTION_NAME.match(line)] if m]
        for name in names:
            for word in sorted(words(name) & (EMPTY_WORDS | OTHER_WORDS)):
                findings.add(path, number, "word", f'"{word}" in {name}')


def check_conditions(path, text, findings):
    """Compiling by condition hides code from tests: only the file that opens a device may ask for CUDA."""
    # Highway compiles such a file once per instruction set; guards keep the rest of it single.
    per_target = "hwy/foreach_target.h" in text or path.endswith("-inl.h")
    num_for_cuda = 0
    for number, line in enumerate(without_comments(text).splitlines(), 1):
        if not re.match(r"\s*#\s*(if|ifdef|ifndef)\b", line):
            continue
        if per_target and re.match(r"\s*#\s*ifn?def\s+LCKV_", line):
            continue
        if path == "worker/startup.cc" and "LCKV_CUDA" in line:
            num_for_cuda += 1
            if num_for_cuda == 1:
                continue
        # What Highway's own scheme for one file per instruction set is made of.
        if re.search(r"HWY_|__x86_64__|__SANITIZE_|__has_feature", line):
            continue
        findings.add(path, number, "condition", f"{line.strip()}: one #if, for CUDA, in worker/startup.cc")


def check_file(path, text):
    findings = Findings()
    code = without_comments(text)
    check_includes(path, text, findings)
    check_sizes(path, text, code, findings)
    check_words(path, code, findings)
    check_conditions(path, text, findings)
    if path.endswith(".h") and not path.endswith("-inl.h") and "#pragma once" not in text:
        findings.add(path, 1, "guard", "no #pragma once")
    return findings.lines


def sources(root):
    for folder in ("rpc", "router", "client", "worker", "kernels", "tests"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in SOURCE_SUFFIXES and path.is_file():
                yield path


def main(arguments):
    root = pathlib.Path(arguments[0] if arguments else pathlib.Path(__file__).parents[2])
    lines = []
    for path in sources(root):
        lines += check_file(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"))
    for line in lines:
        print(line)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
