"""Plants one violation of each rule and expects it found, with its line; and clean code passed."""

import pytest

import check

LONG_BODY = "\n".join(["int f(int x) {"] + ["  x += 1;"] * 80 + ["  return x;", "}"])

VIOLATIONS = [
    ("router/a.cc", '#include "worker/kv/ids.h"', 1, "layering"),
    ("rpc/a.cc", '\n#include "router/relay.h"', 2, "layering"),
    ("client/a.cc", '#include "worker/engine/engine.h"', 1, "layering"),
    ("client/a.cc", '#include "worker/kv/block_pool.h"', 1, "layering"),
    ("worker/kv/a.h", '#pragma once\n#include "worker/model/model.h"', 2, "layering"),
    ("worker/kv/a.cc", '#include "kernels/ops.h"', 1, "layering"),
    ("worker/kv/a.cc", '#include "lckv/v1/inference.pb.h"', 1, "layering"),
    ("worker/scheduler/a.cc", '#include "worker/model/model.h"', 1, "layering"),
    ("worker/model/a.cc", '#include "worker/kv/block_pool.h"', 1, "layering"),
    ("worker/engine/a.cc", '#include "rpc/logging.h"', 1, "layering"),
    ("kernels/a.cc", '#include "kernels/cpu/cpu_ops.h"', 1, "layering"),
    ("worker/engine/a.cc", "#include <grpcpp/server.h>", 1, "grpc"),
    ("worker/main.cc", '#include "lckv/v1/inference.grpc.pb.h"', 1, "grpc"),
    ("worker/engine/a.cc", "#include <cuda_runtime.h>", 1, "cuda"),
    ("router/a.cc", '#include "relay.h"', 1, "include"),
    ("router/a.cc", "//\n" * 401, 401, "file size"),
    ("kernels/a.cc", "//\n" * 601, 601, "file size"),
    ("router/a.cc", "\n//" + "x" * 100, 2, "line size"),
    ("router/a.cc", "\n" + LONG_BODY, 2, "function size"),
    ("router/a.cc", "namespace lckv {\nclass A {\n" + LONG_BODY + "\n};\n}", 3, "function size"),
    ("router/block_manager.cc", "", 1, "word"),
    ("router/string_util.h", "#pragma once", 1, "word"),
    ("router/a.cc", "class SessionManager {};", 1, "word"),
    ("router/a.cc", "struct PageTable {};", 1, "word"),
    ("router/a.cc", "void parse_helper(int x) {\n}", 1, "word"),
    ("router/a.cc", "#ifdef FAST\n#endif", 1, "condition"),
    ("worker/startup.cc", "#ifdef LCKV_CUDA\n#endif\n#ifdef LCKV_CUDA\n#endif", 3, "condition"),
    ("kernels/cuda/a.cu", "#ifdef __CUDACC__\n#endif", 1, "condition"),
    ("kernels/cuda/a.cu", '#include "kernels/cpu/cpu_ops.h"', 1, "layering"),
    ("router/a.h", "int x;", 1, "guard"),
]

CLEAN = [
    ("router/a.cc", '#include "rpc/flags.h"\n#include "lckv/v1/inference.grpc.pb.h"'),
    ("router/api/a.cc", '#include "router/relay.h"\n#include <grpcpp/server_context.h>'),
    ("client/a.cc", '#include "worker/kv/layer_plan.h"\n#include "worker/model/model_config.h"'),
    ("worker/kv/a.cc", '#include "kernels/check.h"\n#include "worker/kv/ids.h"'),
    ("worker/engine/a.cc", '#include "worker/kv/block_pool.h"\n#include "kernels/ops.h"'),
    ("worker/main.cc", '#include "worker/service/engine_service.h"\n#include "rpc/logging.h"'),
    ("kernels/cpu/a.cc", '#include "kernels/ops.h"'),
    ("tests/e2e/a.cc", '#include "worker/kv/block_pool.h"\n#include <grpcpp/server.h>'),
    ("router/a.cc", "// a manager of pages, with a helper\nint32_t max_context_tokens = 0;"),
    ("router/a.cc", 'const char* kText = "class Manager {";'),
    ("kernels/a.cc", LONG_BODY),
    ("kernels/cpu/a-inl.h", "#ifndef LCKV_A_INL_H\n#define LCKV_A_INL_H\n#endif"),
    ("worker/startup.cc", "#ifdef LCKV_CUDA\n#endif"),
    ("kernels/a.cc", "constexpr int kLarge = 1'000'000;  // 'tis fine\nint f() { return 'x'; }"),
]


@pytest.mark.parametrize(
    "path,text,line,rule", VIOLATIONS, ids=[f"{row[3]} in {row[0]}" for row in VIOLATIONS]
)
def test_violation_is_found(path, text, line, rule):
    found = check.check_file(path, text)
    assert any(entry.startswith(f"{path}:{line}: {rule}: ") for entry in found), found


@pytest.mark.parametrize("path,text", CLEAN, ids=[row[0] for row in CLEAN])
def test_clean_code_passes(path, text):
    assert check.check_file(path, text) == []
