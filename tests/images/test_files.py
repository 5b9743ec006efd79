"""What Dockerfile and compose file name exists: sources, ports, flags and variables, the last three in the programs."""

import functools
import os
import pathlib
import re
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
BIN = pathlib.Path(os.environ.get("LCKV_BIN", ROOT / "build/release/bin"))
COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
PROGRAMS = {
    "router": "lckv-router",
    "worker-cpu": "lckv-worker",
    "client": "lckv",
    "worker-cuda": "lckv-worker",
}
# What NVIDIA's container runtime reads.
OF_RUNTIME = {"NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}
OWN = {name: given for name, given in COMPOSE["services"].items() if "build" in given}


@functools.cache
def help_of(program):
    return subprocess.run(
        [BIN / program, "--help"], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def default_ports(program):
    """By flag; those that are off by default are left out."""
    found = re.findall(r"(--[\w-]*port) :PORT in \[0, 65535\]=([1-9]\d*)", help_of(program))
    return {flag: int(port) for flag, port in found}


def stages():
    """Instructions of each stage of the Dockerfile and of the stages it starts from, as (NAME, arguments)."""
    found = {}
    text = (ROOT / "deploy/docker/Dockerfile").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        name, _, arguments = line.partition(" ")
        if name == "FROM":
            parent, _, stage = arguments.split()
            current = found[stage] = list(found.get(parent, []))
        elif found and name and name != "#":
            current.append((name, arguments))
    return found


STAGES = stages()


def values(target, instruction):
    return [arguments for name, arguments in STAGES[target] if name == instruction]


def copied():
    """What every COPY takes out of the repository."""
    for target in STAGES:
        for arguments in values(target, "COPY"):
            if not arguments.startswith("--from="):
                yield from arguments.split()[:-1]


def test_targets_are_those_that_are_built_by_default():
    line = re.search(r"^valid=\((.*)\)$", (ROOT / "deploy/docker/build.sh").read_text(), re.M)
    assert line.group(1).split() == [name for name in STAGES if values(name, "ENTRYPOINT")] == list(PROGRAMS)


def test_only_its_own_image_waits_for_cuda():
    # Some builders build every stage above the target.
    others = [name for name in PROGRAMS if name != "worker-cuda"]
    assert not any("cuda" in name for name in list(STAGES)[: list(STAGES).index(others[-1])])


def test_kernels_of_the_image_are_those_of_a_release():
    text = (ROOT / "kernels/cuda/toolkit.cmake").read_text()
    default = re.search(r'^set\(LCKV_CUDA_ARCHITECTURES ("[^"]+") CACHE', text, re.M).group(1)
    assert f"LCKV_CUDA_ARCHITECTURES={default}" in values("build-cuda", "ARG")


def test_every_copied_file_exists_and_reaches_the_build():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    let_in = {line[1:] for line in lines if line.startswith("!")}
    for source in copied():
        assert (ROOT / source).exists(), source
        parents = [source, *map(str, pathlib.PurePath(source).parents)]
        assert let_in.intersection(parents), f".dockerignore keeps {source} out"
    for path in let_in:
        assert (ROOT / path).exists(), f".dockerignore lets in {path}"


def test_what_an_image_installs_is_copied_to_it():
    # Where a list is only mounted, buildah keeps the layer that an earlier list made.
    for target in PROGRAMS:
        installs = [run for run in values(target, "RUN") if "apt-get install" in run]
        assert installs and not any("--mount" in run for run in installs), target


def test_every_folder_of_the_build_is_copied():
    folders = re.findall(r"^add_subdirectory\((\w+)\)", (ROOT / "CMakeLists.txt").read_text(), re.M)
    assert len(folders) > 3 and set(folders) <= set(copied())


@pytest.mark.parametrize("target", PROGRAMS)
def test_a_program_is_the_first_process_and_not_root(target):
    path = f"/usr/local/bin/{PROGRAMS[target]}"
    assert values(target, "ENTRYPOINT") == [f'["{path}"]']
    stage = "build-cuda" if target == "worker-cuda" else "build"
    copies = [arguments for arguments in values(target, "COPY") if f" {path} " in arguments]
    assert copies[-1].startswith(f"--from={stage} ")
    assert values(target, "USER") == ["65532:65532"]


@pytest.mark.parametrize("target", PROGRAMS)
def test_ports_and_variables_are_the_programs_own(target):
    exposed = " ".join(values(target, "EXPOSE")).split()
    assert sorted(map(int, exposed)) == sorted(default_ports(PROGRAMS[target]).values())
    variables = {given.partition("=")[0] for given in " ".join(values(target, "ENV")).split()}
    assert OF_RUNTIME & variables == (OF_RUNTIME if target == "worker-cuda" else set())
    for variable in variables - OF_RUNTIME:
        assert f"(Env:{variable})" in help_of(PROGRAMS[target])


@pytest.mark.parametrize("service", OWN)
def test_a_service_has_flags_of_its_program(service):
    given = OWN[service]
    target = given["build"]["target"]
    assert given["image"] == f"lckv-{target}"
    assert (ROOT / "deploy" / given["build"]["context"] / given["build"]["dockerfile"]).exists()
    known = set(re.findall(r"--[\w-]+", help_of(PROGRAMS[target])))
    for argument in given["command"]:
        assert argument.partition("=")[0] in known


@pytest.mark.parametrize("service", OWN)
def test_a_service_asks_itself_whether_it_is_ready(service):
    target = OWN[service]["build"]["target"]
    (path,) = values(target, "ENTRYPOINT")
    assert OWN[service]["healthcheck"]["test"] == ["CMD", *yaml.safe_load(path), "--check-health"]
    assert "--check-health" in help_of(PROGRAMS[target])


def port_of(service, flag):
    return default_ports(PROGRAMS[OWN[service]["build"]["target"]])[flag]


def addresses(services, flag):
    return [f"{service}:{port_of(service, flag)}" for service in services]


def test_services_find_each_other():
    workers = ["worker-1", "worker-2"]
    assert f"--workers={','.join(addresses(workers, '--port'))}" in OWN["router"]["command"]
    port = port_of("router", "--port")
    assert OWN["router"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    for job, services in {"routers": ["router"], "workers": workers}.items():
        (group,) = yaml.safe_load(COMPOSE["configs"][job]["content"])
        assert group["targets"] == addresses(services, "--metrics-port")


def mounts(service):
    for mount in COMPOSE["services"][service].get("volumes", []):
        source, target = mount.split(":")[:2]
        if source.startswith("."):
            yield (ROOT / "deploy" / source).resolve(), pathlib.PurePosixPath(target)


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_every_mounted_file_exists(service):
    for source, target in mounts(service):
        assert source.exists(), f"{service}: {source} for {target}"
    for given in COMPOSE["services"][service].get("configs", []):
        assert given["source"] in COMPOSE["configs"]


def test_the_model_is_where_the_workers_look_for_it():
    for service in ("worker-1", "worker-2"):
        ((source, target),) = mounts(service)
        assert (source / "config.json").exists()
        assert f"--model={target}" in OWN[service]["command"]


def test_prometheus_reads_the_files_that_are_mounted():
    folder = pathlib.PurePosixPath("/etc/prometheus")
    mounted = {str(target.relative_to(folder)) for _, target in mounts("prometheus")}
    for given in COMPOSE["services"]["prometheus"]["configs"]:
        mounted.add(str(pathlib.PurePosixPath(given["target"]).relative_to(folder)))
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    named = set(config["rule_files"])
    for job in config["scrape_configs"]:
        for found_by in job["file_sd_configs"]:
            named.update(found_by["files"])
    assert named == mounted - {"prometheus.yml"}


def test_grafana_finds_its_dashboards_and_its_data():
    provisioning = ROOT / "deploy/grafana/provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards/lckv.yaml").read_text())["providers"]
    folders = {str(target): source for source, target in mounts("grafana")}
    assert list(folders[provider["options"]["path"]].glob("*.json"))
    assert folders["/etc/grafana/provisioning"] == provisioning
    (data,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    assert data["url"] == "http://prometheus:9090" and "prometheus" in COMPOSE["services"]
