"""The built images, run by tests/images/run.sh in a network namespace of their own."""

import json
import pathlib
import re
import shutil
import subprocess

import pytest

from container import IMAGES, Container, configuration

ROOT = pathlib.Path(__file__).parents[2]
DEMO = ROOT / "deploy/models/demo"
WORKERS = ["worker-cpu", "worker-cuda"]
ALL = ["router", "client", *WORKERS]
ROUTER_HEALTH, WORKER_HEALTH = "127.0.0.1:50052", "127.0.0.1:50062"
DRAIN_SECONDS = 20  # of worker and router alike


def worker(*flags, image="worker-cpu", model=DEMO):
    return Container(
        image,
        *["--model=/mnt", "--served-model-name=demo", "--kv-cache-memory=64MiB", "--swap-space=16MiB"],
        *["--allow-plaintext", "--threads=1", f"--drain-timeout={DRAIN_SECONDS}s"],
        *flags,
        mounts={"/mnt": model},
    )


def router(*flags):
    return Container(
        "router", "--workers=127.0.0.1:50061", "--allow-plaintext",
        f"--shutdown-grace={DRAIN_SECONDS}s", *flags,
    )


def generate(count, *flags):
    return Container("client", "generate", "--max-new-tokens", count, "--ignore-eos", *flags, "Once")


def health(address, service):
    """Its status, or none where nothing answers."""
    ran = subprocess.run(
        ["grpcurl", "-plaintext", "-max-time", "5", "-d", json.dumps({"service": service}), address]
        + ["grpc.health.v1.Health/Check"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return json.loads(ran.stdout)["status"] if ran.returncode == 0 else None


def wait_ready(container, address):
    container.wait_until(lambda: health(address, "readiness") == "SERVING", "readiness")


@pytest.fixture(params=WORKERS)
def serving(request):
    with worker("--device=cpu", image=request.param) as first, router() as second:
        wait_ready(first, WORKER_HEALTH)
        wait_ready(second, ROUTER_HEALTH)
        yield first, second


@pytest.mark.parametrize("image", ALL)
def test_labels_say_what_it_is(image):
    labels = configuration(image)["Labels"]
    for name in ("title", "description", "version", "revision", "licenses"):
        assert labels[f"org.opencontainers.image.{name}"], name
    assert re.fullmatch(r"\d+\.\d+\.\d+", labels["org.opencontainers.image.version"])


@pytest.mark.parametrize("image", ALL)
def test_there_is_no_compiler_and_no_library_of_another_image(image):
    root = IMAGES / image
    assert not list((root / "usr/bin").glob("*g++*")) and not list((root / "usr/bin").glob("cmake"))
    files = [path for path in (root / "usr").rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".a", ".h", ".cuh") or path.name in ("nvcc", "ptxas", "cicc")]
    stems = {path.name.partition(".so")[0] for path in files if ".so" in path.name}
    # Of those that one image alone needs, and of CUDA's all.
    found = {stem for stem in stems if re.match("lib(dnnl|gloo|sentencepiece|cu(blas|da)|nv|nccl)", stem)}
    of_cpu, of_cuda = {"libdnnl", "libgloo"}, {"libcublasLt", "libnccl", "libnvrtc", "libnvrtc-builtins"}
    of_router = {"libsentencepiece", "libsentencepiece_train"}  # of one package
    of_image = {"router": of_router, "client": set(), "worker-cpu": of_cpu, "worker-cuda": of_cpu | of_cuda}
    assert found == of_image[image]


def test_the_loader_finds_what_the_worker_loads_by_name():
    stems = ("libcublasLt", "libnccl", "libnvrtc")
    names = [path.name for stem in stems for path in (IMAGES / "worker-cuda/usr/lib").glob(f"{stem}.so.*")]
    assert len(names) == len(stems)
    # The loader complains of what it does not find, or cannot bind, and goes on.
    loading = ["/usr/bin/env", f"LD_PRELOAD={' '.join(names)}", "LD_BIND_NOW=1", "/usr/bin/true"]
    with Container("worker-cuda", entrypoint=loading) as container:
        assert container.wait() == 0 and container.log() == "", container.log()


@pytest.mark.parametrize("image", ALL)
@pytest.mark.parametrize("folder", ["/tmp", "/var/tmp"])
def test_nothing_can_be_written(image, folder):
    # Folders in which anybody might write.
    with Container(image, f"{folder}/file", entrypoint=["/usr/bin/touch"]) as touch:
        assert touch.wait() == 1
        assert "Read-only file system" in touch.last_line()


def test_health(serving):
    for address in (WORKER_HEALTH, ROUTER_HEALTH):
        for service in ("", "liveness", "readiness"):
            assert health(address, service) == "SERVING", (address, service)
    for container in serving:
        with Container(container.name, "--check-health") as check:
            assert check.wait() == 0, check.log()


def test_the_program_is_the_first_process_and_has_no_rights(serving):
    for container in serving:
        assert container.status("NSpid")[-1] == "1"
        assert container.status("Uid") == container.status("Gid") == ["65532"] * 4
        assert container.status("CapEff") == ["0" * 16] and container.status("NoNewPrivs") == ["1"]


def test_generation(serving):
    with generate(32, "--json") as client:
        assert client.wait() == 0, client.log()
        assert '"text"' in client.log(), client.log()


def test_a_worker_ends_within_its_drain_time_and_its_streams_first(serving):
    with generate(400) as client:
        client.wait_until(client.log, "text")
        code, seconds = serving[0].terminate()
        assert code == 0 and seconds < DRAIN_SECONDS, serving[0].log()
        assert client.wait() == 0, client.log()


def test_a_router_ends_within_its_grace_time_and_its_streams_first(serving):
    with generate(400) as client:
        client.wait_until(client.log, "text")
        code, seconds = serving[1].terminate()
        assert code == 0 and seconds < DRAIN_SECONDS, serving[1].log()
        assert client.wait() == 0, client.log()


def test_a_launcher_ends_its_ranks():
    with worker("--tensor-parallel-size=2") as launcher:
        wait_ready(launcher, WORKER_HEALTH)
        assert launcher.status("NSpid")[-1] == "1"
        code, seconds = launcher.terminate()
        assert code == 0 and seconds < DRAIN_SECONDS, launcher.log()


def test_without_a_driver_the_last_line_says_so():
    with worker("--device=cuda:0", image="worker-cuda") as container:
        assert container.wait() == 1
        assert container.last_line().endswith(" error no CUDA driver on this machine"), container.log()
        assert container.log().count(" error ") == 1, container.log()
    assert health(WORKER_HEALTH, "readiness") is None


def test_sigterm_ends_a_client_at_once(serving):
    with Container("client", "replicas", "--watch") as client:
        client.wait_until(client.log, "a list")
        code, seconds = client.terminate()
        assert code == 128 + 15 and seconds < DRAIN_SECONDS


def test_a_router_without_replicas_lives_and_is_not_ready():
    with router() as container:
        container.wait_until(lambda: health(ROUTER_HEALTH, "liveness") == "SERVING", "liveness")
        assert health(ROUTER_HEALTH, "readiness") == "NOT_SERVING"


def unreadable(folder):
    # As of a volume that belongs to root.
    for file in folder.iterdir():
        file.chmod(0o600)


def truncated(folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(5_000_000)


def without_weights(folder):
    (folder / "model.safetensors").unlink()


BAD_MODELS = [
    (unreadable, r"/mnt/config\.json: .*Permission denied"),
    (truncated, r"/mnt/model\.safetensors: .*truncated"),
    (without_weights, r"/mnt/model\.safetensors: No such file"),
]


@pytest.mark.parametrize("spoil, line", BAD_MODELS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_last_line_names_what_is_wrong_with_a_model(tmp_path, spoil, line, ranks):
    folder = tmp_path / "model"
    shutil.copytree(DEMO, folder)
    for path in [folder, *tmp_path.parents[:2], tmp_path]:
        path.chmod(0o755)
    spoil(folder)
    with worker(f"--tensor-parallel-size={ranks}", model=folder) as container:
        assert container.wait() == 1
        assert re.search(line, container.last_line()), container.log()
    assert health(WORKER_HEALTH, "readiness") is None


TLS = ["--tls-cert=/srv/tls.crt", "--tls-key=/srv/tls.key"]
BAD_FLAGS = [
    ("worker-cpu", ["--model=/srv/none", "--allow-plaintext"], r"/srv/none: no such folder"),
    ("worker-cpu", [], r"--model is required"),
    ("worker-cpu", ["--model=/mnt"], r"0\.0\.0\.0 .* or --allow-plaintext"),
    ("worker-cpu", ["--model=/mnt", "--max-sequences=3"], r"--max-sequences"),
    ("worker-cpu", ["--model=/mnt", "--device=abacus"], r"--device: abacus .*cpu"),
    ("worker-cpu", ["--model=/mnt", "--device=cuda:0", "--kv-cache-memory=64MiB", "--allow-plaintext"],
     r"--device cuda: this lckv-worker was built without CUDA"),
    ("worker-cpu", ["--model=/mnt", "--allow-plaintext", "--kv-cache-memory=1KiB"],
     r"--kv-cache-memory: 1024 bytes are too few"),
    ("worker-cpu", ["--model=/mnt", *TLS], r"--tls-cert: /srv/tls\.crt: cannot be opened"),
    ("router", ["--allow-plaintext"], r"--workers is required"),
    ("router", ["--models=/srv/models.json", "--allow-plaintext"], r"/srv/models\.json: cannot be opened"),
    ("router", ["--workers=worker"], r"--workers: .*worker"),
    ("router", ["--workers=worker:1", *TLS], r"--tls-cert: /srv/tls\.crt: cannot be opened"),
    ("router", ["--workers=worker:1", "--allow-plaintext", "--tokens=/srv/tokens.json"],
     r"/srv/tokens\.json: cannot be opened"),
    ("router", ["--workers=worker:1", "--max-queues=3"], r"--max-queues"),
    ("client", ["models", "--allow-plaintext", "--router=127.0.0.1:1", "--timeout=5s"], r"UNAVAILABLE"),
]


@pytest.mark.parametrize("image, flags, line", BAD_FLAGS)
def test_the_last_line_names_what_is_wrong_with_a_flag(image, flags, line):
    with Container(image, *flags, mounts={"/mnt": DEMO}) as container:
        assert container.wait() in (1, 2)
        assert re.search(line, container.last_line()), container.log()
