"""Every flag, port, variable and health service that the chart names exists in the programs, asked from them."""

import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest
import yaml

import chart
import programs
import serving
import tcp_ports

# What the chart decides by itself, from values of other names.
OWN_WORKER_FLAGS = {
    "--model", "--served-model-name", "--device", "--tensor-parallel-size", "--drain-timeout", "--start-timeout",
    "--leader", "--local-ranks", "--first-rank", "--rank", "--rank-metrics-port", "--sim-replicas",
    "--allow-shared-device",
    "--rank-tls-ca", "--rank-tls-cert", "--rank-tls-key", "--rank-tls-server-name",
}  # fmt: skip
OWN_ROUTER_FLAGS = {
    "--workers", "--models", "--tokens", "--tenants", "--shutdown-delay", "--shutdown-grace",
    "--worker-tls-ca", "--worker-tls-cert", "--worker-tls-key", "--worker-tls-server-name",
}  # fmt: skip
OWN_FLAGS = {
    "--host", "--port", "--metrics-port", "--health-port", "--tls-cert", "--tls-key", "--tls-client-ca",
    "--allow-plaintext", "--log-level", "--log-format", "--help", "--version", "--check-health",
}  # fmt: skip


@pytest.fixture(scope="module")
def helps():
    return {
        "worker": programs.read_help("lckv-worker"),
        "router": programs.read_help("lckv-router"),
        "test": programs.read_help("lckv", "generate"),
    }


@pytest.fixture(scope="module")
def schema():
    return json.loads((chart.CHART / "values.schema.json").read_text())


def test_every_flag_exists_and_takes_its_value(rendered, helps):
    seen = set()
    for case, documents in rendered.items():
        for name, labels, spec in chart.pods(documents):
            component = labels["app.kubernetes.io/component"]
            known, _ = helps[component]
            for flag, value in chart.flags(spec["containers"][0]).items():
                where = f"{case}: {name}: {flag}={value}"
                assert flag in known, where
                seen.add((component, flag))
                options, bounds = programs.choices(known[flag]), programs.limits(known[flag])
                # A device that images of another version have.
                if options and (flag, value) != ("--device", "cuda"):
                    assert value in options, where
                if bounds:
                    assert bounds[0] <= float(value) <= bounds[1], where
    # The switches leave no flag of the chart's own aside.
    never = {"--sim-replicas", "--leader", "--local-ranks", "--first-rank", "--rank", "--help", "--version"}
    never |= {"--check-health", "--allow-shared-device"}
    assert OWN_WORKER_FLAGS | OWN_FLAGS - never <= {f for c, f in seen if c == "worker"} | never
    assert OWN_ROUTER_FLAGS | OWN_FLAGS - never <= {f for c, f in seen if c == "router"} | {"--workers"}


@pytest.mark.parametrize("program, own", [("worker", OWN_WORKER_FLAGS), ("router", OWN_ROUTER_FLAGS)])
def test_the_schema_has_every_other_flag_as_the_program_takes_it(helps, schema, program, own):
    known, _ = helps[program]
    listed = schema["definitions"][f"{program}Flags"]["properties"]
    others = {flag for flag in known if flag not in own | OWN_FLAGS and not flag.startswith("--no-")}
    assert {f"--{name}" for name in listed} == others
    for name, one in listed.items():
        options, bounds = programs.choices(known[f"--{name}"]), programs.limits(known[f"--{name}"])
        if options:
            assert one["enum"] == options, name
        if bounds and "enum" not in one:
            assert (one["minimum"], one["maximum"]) == bounds, name


def test_devices_are_the_programs(helps, schema):
    names = re.findall("[a-z]+", helps["worker"][0]["--device"].partition("=")[0])
    assert set(schema["definitions"]["model"]["properties"]["device"]["enum"]) == set(names)
    assert schema["properties"]["log"]["properties"]["level"]["enum"] == programs.choices(
        helps["worker"][0]["--log-level"]
    )


def test_ports_are_the_flags(rendered):
    for case, documents in rendered.items():
        for name, _, spec in chart.pods(documents):
            container = spec["containers"][0]
            flags = chart.flags(container)
            ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
            for port, number in ports.items():
                rank = re.fullmatch(r"rank-(\d+)", port)
                if rank:
                    expected = int(flags["--rank-metrics-port"]) + int(rank.group(1))
                else:
                    expected = int(flags[{"grpc": "--port"}.get(port, f"--{port}-port")])
                assert number == expected, (case, name, port)


def test_rank_metrics_meet_no_other_port(rendered):
    for _, _, spec in chart.pods(rendered["eight-gpus"]):
        ports = [port["containerPort"] for port in spec["containers"][0].get("ports", [])]
        assert len(ports) == len(set(ports))


def test_no_variable_is_named_that_no_program_reads(helps):
    known = set().union(*(variables for _, variables in helps.values()))
    for file in chart.CHART.rglob("*"):
        if file.is_file():
            named = set(re.findall(r"\bLCKV_[A-Z_]+\b", file.read_text()))
            assert named <= known, file


def test_links_of_services_would_be_flags():
    """Why enableServiceLinks is off: a Service called lckv gives this variable."""
    done = subprocess.run(
        [serving.BIN / "lckv-worker", "--model", serving.DEMO],
        env={**os.environ, "LCKV_PORT": "tcp://10.0.0.1:50051"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2 and "--port: Value tcp://10.0.0.1:50051" in done.stderr


def on_this_machine(spec, replaced):
    """The arguments of a pod's program, with the values that only a cluster has replaced."""
    arguments = []
    for argument in spec["containers"][0]["args"]:
        flag = argument.partition("=")[0]
        arguments.append(f"{flag}={replaced[flag]}" if flag in replaced else argument)
    return arguments


def test_the_laptop_chart_serves(rendered, tmp_path):
    """The programs with the arguments of the chart's pods: health services, a generation, an orderly end."""
    documents = rendered["ci-laptop"]
    pods = {labels["app.kubernetes.io/component"]: spec for _, labels, spec in chart.pods(documents)}
    ports = {(program, flag): tcp_ports.free_port() for program in ("worker", "router")
             for flag in ("--port", "--metrics-port", "--health-port")}  # fmt: skip

    def start(program, **replaced):
        own = {flag: port for (name, flag), port in ports.items() if name == program}
        own |= {"--host": "127.0.0.1"} | {f"--{flag}": value for flag, value in replaced.items()}
        return serving.Process(f"lckv-{program}", on_this_machine(pods[program], own))

    (config,) = [d for d in chart.of_kind(documents, "ConfigMap") if "models.json" in d["data"]]
    models = json.loads(config["data"]["models.json"])
    models["models"][0]["workers"] = [f'127.0.0.1:{ports["worker", "--port"]}']
    (tmp_path / "models.json").write_text(json.dumps(models))
    running = {}
    try:
        running["worker"] = start("worker", model=serving.DEMO)
        running["router"] = start("router", models=tmp_path / "models.json")
        for name, process in running.items():
            for probe in ("startup", "liveness", "readiness"):
                asked = pods[name]["containers"][0][f"{probe}Probe"]["grpc"]
                programs.wait_until_serving(process, ports[name, "--health-port"], asked["service"])
        assert programs.health(ports["router", "--health-port"], "no-such-service") == "NOT_FOUND"
        client = pods["test"]["containers"][0]
        arguments = on_this_machine(pods["test"], {"--router": f'127.0.0.1:{ports["router", "--port"]}'})
        done = serving.run(client["command"][0], *arguments)
        assert done.returncode == 0 and done.stdout.strip(), done
        assert {name: process.stop() for name, process in reversed(running.items())} == {"worker": 0, "router": 0}
    finally:
        for process in running.values():
            process.close()


def test_tenants_are_what_the_router_reads(rendered, tmp_path):
    (config,) = [d for d in chart.of_kind(rendered["tenants"], "ConfigMap") if "tenants.json" in d["data"]]
    for name, text in config["data"].items():
        (tmp_path / name).write_text(text)
    assert yaml.safe_load(config["data"]["tenants.json"])["tenants"]["a b"] == {"tokens_per_minute": 123456789}
    router = serving.Router([], "--models", tmp_path / "models.json", "--tenants", tmp_path / "tenants.json")
    try:
        programs.wait_until_serving(router, router.health_address.rpartition(":")[2], "readiness")
        assert router.stop() == 0, router.log()
    finally:
        router.close()


def table(text, heading):
    """The rows below this heading, as lists of cells."""
    lines = text[text.index(heading) :].splitlines()[2:]
    ends = next(number for number, line in enumerate(lines) if not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:ends]]


def spans(cell):
    return re.findall("`([^`]+)`", cell)


def fits(pattern, line):
    """`...` stands for anything; a program of the same kind may say more of it behind."""
    return re.search(".*".join(re.escape(part) for part in pattern.split("...")), line) is not None


OPERATIONS = (chart.ROOT / "deploy/OPERATIONS.md").read_text()
BY_CONTAINERS = {
    pattern: row[1] for row in table(OPERATIONS, "| last line | exit code |") for pattern in spans(row[0])
}
BY_PODS = {
    pattern
    for row in table(OPERATIONS, "| `kubectl get pods` shows | last lines")
    if row[0].startswith("CrashLoopBackOff")
    for pattern in spans(row[1])
}
NOTES = (chart.CHART / "templates" / "NOTES.txt").read_text()
BY_NOTES = set(re.findall(r'^  CrashLoopBackOff, "([^"]+)"', NOTES, re.M))

# What each kind of bad input makes a container say last: programs and their flags. {empty} is a folder without files,
# {cut} a model whose weights end too early.
BAD_INPUT = {
    "folder": ["lckv-worker", "--model", "/nonexistent"],
    "files": ["lckv-worker", "--model", "{empty}"],
    "cut": ["lckv-worker", "--model", "{cut}"],
    "memory": ["lckv-worker", "--model", serving.DEMO, "--kv-cache-memory", "16KiB"],
    "device": ["lckv-worker", "--model", serving.DEMO, "--device", "cuda"],
    "flag": ["lckv-worker", "--model", serving.DEMO, "--no-such-flag"],
    "value": ["lckv-worker", "--model", serving.DEMO, "--log-level", "loud"],
    "beyond": ["lckv-worker", "--model", serving.DEMO, "--host", "0.0.0.0"],
    "certificate": ["lckv-worker", "--model", serving.DEMO, "--tls-cert", "/nonexistent", "--tls-key", "/nonexistent"],
    "models": ["lckv-router", "--models", "/nonexistent/models.json"],
    "workers": ["lckv-router"],
}
# What is not to be brought about here, and the source that says it.
IN_SOURCES = {
    "...: Permission denied": None,  # the system's own words, which root does not hear
    "no CUDA driver on this machine": "kernels/cuda/device_check.cc",
    "no CUDA device to be seen": "kernels/cuda/device_check.cc",
    "the CUDA driver is too old: ...": "kernels/cuda/device_check.cc",
    "... this program was built for ...": "kernels/cuda/device_check.cc",
    "... have the same device, ...": "kernels/cuda/rank_devices.cc",
    'replica ended rank=... why="..."': "worker/group/rank_watch.cc",  # tests/e2e/test_tensor_parallel.py
}


@pytest.fixture(scope="module")
def last_lines(tmp_path_factory):
    """[(last line, exit code)] of each bad input."""
    empty, cut = (tmp_path_factory.mktemp(name) for name in ("empty", "cut"))
    for file in pathlib.Path(serving.DEMO).iterdir():
        shutil.copy(file, cut)
    weights = cut / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    found = []
    for program, *arguments in BAD_INPUT.values():
        given = [str(one).format(empty=empty, cut=cut) for one in arguments]
        done = serving.run(program, *given, "--port=0", "--metrics-port=0", "--health-port=0")
        found.append(((done.stdout + done.stderr).strip().splitlines()[-1], done.returncode))
    return found


@pytest.mark.parametrize("pattern", BY_CONTAINERS)
def test_operations_tells_last_lines_as_containers_say_them(last_lines, pattern):
    if pattern not in IN_SOURCES:
        codes = {code for line, code in last_lines if fits(pattern, line)}
        assert codes == {int(BY_CONTAINERS[pattern])}, last_lines
    elif IN_SOURCES[pattern]:
        said = (chart.ROOT / IN_SOURCES[pattern]).read_text()
        longest = max(re.split(r"\.\.\.| rank=", pattern), key=len).strip(" :")
        assert longest in said, longest


def test_every_bad_input_is_told(last_lines):
    for line, _ in last_lines:
        assert any(fits(pattern, line) for pattern in BY_CONTAINERS), line


def test_the_notes_and_the_table_of_pods_tell_the_same_lines(last_lines):
    assert len(BY_PODS) >= 5 and len(BY_NOTES) >= 4
    for pattern in BY_PODS | BY_NOTES:
        said = any(fits(pattern.replace("/model/", ""), line) for line, _ in last_lines)
        assert said or pattern in IN_SOURCES, (pattern, last_lines)


def test_a_router_has_the_memory_for_every_buffer_at_once(helps):
    """With as many calls as it takes, whose clients have all stopped reading."""
    known, _ = helps["router"]
    calls = int(re.search(r"=(\d+) ", known["--max-concurrent-requests"])[1])
    kibibytes = int(re.search(r"=(\d+)KiB ", known["--stream-buffer"])[1])
    resources = yaml.safe_load((chart.CHART / "values.yaml").read_text())["router"]["resources"]
    requested = int(resources["requests"]["memory"].removesuffix("Mi"))
    limit = int(resources["limits"]["memory"].removesuffix("Gi")) * 1024
    assert calls * kibibytes / 1024 + requested <= limit
