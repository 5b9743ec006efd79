"""safetensors files, as far as the golden cases need them."""

import array
import json
import math
import pathlib
import struct

_CODES = {"F32": "f", "I64": "q"}


def read(path):
    """{name: (shape, flat values)} of float32 and int64 tensors."""
    data = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] not in _CODES:
            continue
        begin, end = entry["data_offsets"]
        values = array.array(_CODES[entry["dtype"]])
        values.frombytes(data[8 + length + begin : 8 + length + end])
        tensors[name] = (entry["shape"], values)
    return tensors


def rows(tensor):
    (_, width), values = tensor
    return [values[begin : begin + width] for begin in range(0, len(values), width)]


def log_softmax(logits):
    highest = max(logits)
    total = highest + math.log(sum(math.exp(value - highest) for value in logits))
    return [value - total for value in logits]
