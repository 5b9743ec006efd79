"""The public API as an outside client sees it: messages from the .proto files, calls over plain grpcio."""

import os
import pathlib
import subprocess
import tempfile

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

ROOT = pathlib.Path(__file__).parents[2]
PROTO = ROOT / "proto"
PRESET = os.environ.get("LCKV_PRESET", "release")
# Sanitizers make everything slower; deadlines are there to end what hangs, not to measure.
SLOWNESS = {"release": 1, "asan": 4, "tsan": 10}[PRESET]
DEADLINE = 60 * SLOWNESS  # seconds; of every call that does not say otherwise


def _load_pool():
    with tempfile.NamedTemporaryFile(suffix=".pb") as out:
        subprocess.run(
            ["protoc", f"--proto_path={PROTO}", "--include_imports", f"--descriptor_set_out={out.name}"]
            + ["lckv/v1/inference.proto", "lckv/v1/models.proto", "lckv/v1/admin.proto"]
            + ["google/rpc/status.proto", "google/rpc/error_details.proto"]
            + ["grpc/health/v1/health.proto"],
            check=True,
            timeout=60,
        )
        files = descriptor_pb2.FileDescriptorSet.FromString(pathlib.Path(out.name).read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return pool


_POOL = _load_pool()
_FACTORY = message_factory.MessageFactory(_POOL)


def message(name):
    return _FACTORY.GetPrototype(_POOL.FindMessageTypeByName(name))


GenerateRequest = message("lckv.v1.GenerateRequest")
Interrupted = message("lckv.v1.Interrupted")
RpcStatus = message("google.rpc.Status")
BadRequest = message("google.rpc.BadRequest")
RetryInfo = message("google.rpc.RetryInfo")
EXACT, ITERATED = 1, 2
SERVING, NOT_SERVING = 1, 2  # of grpc.health.v1
REASONS = {"EOS": 1, "STOP_TOKEN": 2, "STOP_STRING": 3, "MAX_NEW_TOKENS": 4, "CONTEXT_FULL": 5}


def request(ids=None, text=None, **fields):
    """A GenerateRequest; nested messages are given as dicts."""
    made = json_format.ParseDict(fields, GenerateRequest())
    if ids is not None:
        made.token_ids.SetInParent()
        made.token_ids.ids.extend(ids)
    if text is not None:
        made.text = text
    return made


class Client:
    """One channel, with TLS where credentials are given; `token` goes with every call. Any thread."""

    def __init__(self, address, credentials=None, token=None, server_name=None):
        options = [
            ("grpc.max_receive_message_length", 64 << 20),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if server_name is not None:
            options.append(("grpc.ssl_target_name_override", server_name))
        if credentials is None:
            self.channel = grpc.insecure_channel(address, options=options)
        else:
            self.channel = grpc.secure_channel(address, credentials, options=options)
        self.headers = [] if token is None else [("authorization", f"Bearer {token}")]

    def close(self):
        self.channel.close()

    def _unary(self, method, asked, answer, timeout):
        call = self.channel.unary_unary(
            method,
            request_serializer=lambda made: made.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return call(asked, timeout=timeout, metadata=self.headers)

    def stream(self, made, timeout=DEADLINE):
        """The call itself: an iterator of GenerateEvent."""
        call = self.channel.unary_stream(
            "/lckv.v1.Inference/Generate",
            request_serializer=lambda made: made.SerializeToString(),
            response_deserializer=message("lckv.v1.GenerateEvent").FromString,
        )
        return call(made, timeout=timeout, metadata=self.headers)

    def generate(self, made, timeout=DEADLINE):
        """All choices of a finished call, by number."""
        return collect(self.stream(made, timeout))

    def tokenize(self, text, model="", timeout=DEADLINE):
        asked = message("lckv.v1.TokenizeRequest")(text=text, model=model)
        answer = message("lckv.v1.TokenizeResponse")
        return list(self._unary("/lckv.v1.Inference/Tokenize", asked, answer, timeout).ids)

    def detokenize(self, ids, timeout=DEADLINE):
        asked = message("lckv.v1.DetokenizeRequest")(ids=ids)
        answer = message("lckv.v1.DetokenizeResponse")
        return self._unary("/lckv.v1.Inference/Detokenize", asked, answer, timeout).text

    def models(self, timeout=DEADLINE):
        asked = message("lckv.v1.ListModelsRequest")()
        answer = message("lckv.v1.ListModelsResponse")
        return self._unary("/lckv.v1.Models/ListModels", asked, answer, timeout).models

    def model(self, name, timeout=DEADLINE):
        asked = message("lckv.v1.GetModelRequest")(name=name)
        return self._unary("/lckv.v1.Models/GetModel", asked, message("lckv.v1.Model"), timeout)

    def replicas(self, timeout=DEADLINE):
        asked = message("lckv.v1.ListReplicasRequest")()
        answer = message("lckv.v1.ListReplicasResponse")
        return self._unary("/lckv.v1.Admin/ListReplicas", asked, answer, timeout).replicas

    def drain(self, replica_id, move=False, timeout=DEADLINE):
        asked = message("lckv.v1.DrainReplicaRequest")(replica_id=replica_id, move=move)
        answer = message("lckv.v1.Replica")
        return self._unary("/lckv.v1.Admin/DrainReplica", asked, answer, timeout)

    def undrain(self, replica_id, timeout=DEADLINE):
        asked = message("lckv.v1.UndrainReplicaRequest")(replica_id=replica_id)
        answer = message("lckv.v1.Replica")
        return self._unary("/lckv.v1.Admin/UndrainReplica", asked, answer, timeout)

    def health(self, service, timeout=5):
        asked = message("grpc.health.v1.HealthCheckRequest")(service=service)
        answer = message("grpc.health.v1.HealthCheckResponse")
        return self._unary("/grpc.health.v1.Health/Check", asked, answer, timeout).status


class Choice:
    """What one choice of a call delivered; adding events checks their order."""

    def __init__(self):
        self.started = None
        self.finished = None
        self.ids = []
        self.text = ""
        self.logprobs = []
        self.prompt_logprobs = []
        self.first_position = None

    def add(self, event):
        kind = event.WhichOneof("event")
        assert self.finished is None, "an event after the last one"
        if kind == "started":
            assert self.started is None, "started twice"
            self.started = event.started
            return
        assert self.started is not None, f"{kind} before started"
        if kind == "tokens":
            if self.first_position is None:
                self.first_position = event.tokens.position
            expected = self.first_position + len(self.ids)
            assert event.tokens.position == expected, "a gap or a repeat"
            self.ids += event.tokens.ids
            self.text += event.tokens.text
            self.logprobs += event.tokens.logprobs
        elif kind == "prompt_logprobs":
            assert not self.ids, "prompt logprobs after a token"
            assert event.prompt_logprobs.position == len(self.prompt_logprobs)
            self.prompt_logprobs += event.prompt_logprobs.logprobs
        else:
            self.finished = event.finished


def collect(events):
    choices = {}
    for event in events:
        choices.setdefault(event.choice, Choice()).add(event)
    for number, choice in choices.items():
        assert choice.finished is not None, f"choice {number} never finished"
    return choices


def details(error, kind):
    """The detail message of that type in an error's status; None where there is none."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for packed in RpcStatus.FromString(value).details:
                if packed.type_url.rpartition("/")[2] == kind.DESCRIPTOR.full_name:
                    return kind.FromString(packed.value)
    return None
