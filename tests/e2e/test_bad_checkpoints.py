"""A broken checkpoint ends the worker with exit code 1 and one line that names the file and what is wrong."""

import json
import shutil
import struct

import pytest

import serving

GOOD = serving.ROOT / "tests/golden/cases/lckv-w2-nodiag"


@pytest.fixture
def folder(tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOOD / name, tmp_path / name)
    return tmp_path


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            config.pop(key)
        else:
            config[key] = value
    path.write_text(json.dumps(config))


def edit_header(folder, change):
    """`change` edits the parsed header in place; the data stays."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # or the data would not be aligned, which is a fault of its own
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def first_tensor(header):
    return next(name for name in sorted(header) if name.endswith("q_proj.weight"))


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def cut_in_the_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def empty_file(folder):
    (folder / "model.safetensors").write_bytes(b"")


def huge_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + path.read_bytes()[8:])


def overlapping(folder):
    def change(header):
        names = sorted(name for name in header if name.endswith("q_proj.weight"))
        header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]

    edit_header(folder, change)


def beyond_the_end(folder):
    def change(header):
        entry = header[first_tensor(header)]
        begin, end = entry["data_offsets"]
        entry["data_offsets"] = [begin + (1 << 40), end + (1 << 40)]

    edit_header(folder, change)


def wrong_shape(folder):
    def change(header):
        entry = header[first_tensor(header)]
        rows, columns = entry["shape"]
        entry["shape"] = [rows * 2, columns // 2]

    edit_header(folder, change)


def wrong_dtype(folder):
    def change(header):
        entry = header[first_tensor(header)]
        entry["dtype"] = "I32"

    edit_header(folder, change)


def missing_tensor(folder):
    edit_header(folder, lambda header: header.pop(first_tensor(header)))


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def no_config(folder):
    (folder / "config.json").unlink()


def config_is_no_json(folder):
    (folder / "config.json").write_text("{")


def unknown_architecture(folder):
    edit_config(folder, architectures=["SomethingElse"], model_type="something-else")


def absent_layer(folder):
    config = json.loads((folder / "config.json").read_text())
    layers = config["num_hidden_layers"]
    edit_config(folder, layer_types="_".join(["0"] * (layers - 1) + [str(layers)]))


def short_map(folder):
    edit_config(folder, layer_types="0_1")


def absurd_size(folder):
    edit_config(folder, hidden_size=1 << 40)


def old_form_without_target(folder):
    config = json.loads((folder / "config.json").read_text())
    edit_config(
        folder,
        model_type="opt-llama",
        architectures=["LlamaForCausalLM"],
        layer_types="_".join(["0"] + ["1"] * (config["num_hidden_layers"] - 2) + ["0"]),
    )


WEIGHTS, CONFIG = "model.safetensors", "config.json"
BREAKS = [
    (truncated, WEIGHTS), (cut_in_the_header, WEIGHTS), (empty_file, WEIGHTS),
    (huge_header, WEIGHTS), (overlapping, WEIGHTS + "|q_proj"), (beyond_the_end, WEIGHTS + "|q_proj"),
    (wrong_shape, WEIGHTS + "|q_proj"), (wrong_dtype, WEIGHTS + "|q_proj"),
    (missing_tensor, "q_proj"), (no_weights, "safetensors"), (no_config, CONFIG),
    (config_is_no_json, CONFIG), (unknown_architecture, CONFIG + "|omething"),
    (absent_layer, "layer_types"), (short_map, "layer_types"), (absurd_size, "hidden_size"),
    (old_form_without_target, "layer_types"),
]


@pytest.mark.parametrize("damage,named", BREAKS, ids=[damage.__name__ for damage, _ in BREAKS])
def test_broken_checkpoint(folder, damage, named):
    damage(folder)
    ran = serving.run(
        *("lckv-worker", "--model", folder, "--port", 0, "--metrics-port", 0, "--health-port", 0),
        *("--kv-cache-memory", "16MiB", "--log-level", "error", "--dtype", "float32"),
        timeout=30,
    )
    assert ran.returncode == 1, ran.stderr
    (line,) = ran.stderr.strip().splitlines()
    for part in named.split("|"):
        assert part in line


def test_the_undamaged_one_loads(folder):
    with serving.System(folder, "--dtype", "float32"):
        pass
