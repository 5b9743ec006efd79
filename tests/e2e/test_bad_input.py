"""What can never succeed is refused with its exact status and the field's name, and harms nothing."""

import math
import os
import random

import grpc
import pytest

import api
import serving

BAD = grpc.StatusCode.INVALID_ARGUMENT
UNSERVED = grpc.StatusCode.UNIMPLEMENTED
NAN, INFINITY = math.nan, math.inf
VOCABULARY, CONTEXT = 4096, 512
OK_IDS = [1, 5, 9]
SEED = int(os.environ.get("TEST_SEED") or random.randrange(1 << 32))


def sampling(**fields):
    made = api.request(OK_IDS)
    for name, value in fields.items():
        setattr(made.sampling, name, value)
    return made


def biased(entries):
    made = api.request(OK_IDS)
    for token, bias in entries.items():
        made.sampling.logit_bias[token] = bias
    return made


def resumed(choices, **fields):
    made = api.request(OK_IDS, **fields)
    for number, ids in choices:
        made.resume.choices.add(choice=number, ids=ids)
    return made


def mode(value):
    made = api.request(OK_IDS)
    made.prefill_mode = value
    return made


TABLE = [
    ("temperature below 0", sampling(temperature=-0.1), BAD, "sampling.temperature"),
    ("top_p 0", sampling(top_p=0), BAD, "sampling.top_p"),
    ("top_p above 1", sampling(top_p=1.01), BAD, "sampling.top_p"),
    ("min_p 1", sampling(min_p=1), BAD, "sampling.min_p"),
    ("min_p below 0", sampling(min_p=-0.5), BAD, "sampling.min_p"),
    ("repetition_penalty 0", sampling(repetition_penalty=0), BAD, "sampling.repetition_penalty"),
    ("1025 biases", biased({i: 0.5 for i in range(1025)}), BAD, "sampling.logit_bias"),
    ("bias NaN", biased({3: NAN}), BAD, "sampling.logit_bias"),
    ("bias of an unknown id", biased({VOCABULARY: 1.0}), BAD, "sampling.logit_bias"),
    ("id of the vocabulary's size", api.request([1, VOCABULARY]), BAD, "token_ids.ids"),
    ("id of 2^32 - 1", api.request([(1 << 32) - 1]), BAD, "token_ids.ids"),
    ("no prompt", api.request(), BAD, "prompt"),
    ("empty ids", api.request([]), BAD, "token_ids.ids"),
    ("full context", api.request([5] * CONTEXT), BAD, "token_ids.ids"),
    ("beyond the context", api.request([5] * (CONTEXT + 1)), BAD, "token_ids.ids"),
    ("long text", api.request(text="word " * 4000), BAD, "text"),
    ("129 choices", api.request(OK_IDS, num_choices=129), BAD, "num_choices"),
    ("request_id", api.request(OK_IDS, request_id="x" * 257), BAD, "request_id"),
    ("tenant", api.request(OK_IDS, tenant="x" * 257), BAD, "tenant"),
    ("affinity", api.request(OK_IDS, affinity="x" * 257), BAD, "affinity"),
    ("17 stop strings", api.request(OK_IDS, stopping={"stop_strings": ["x"] * 17}), BAD,
     "stopping.stop_strings"),
    ("empty stop string", api.request(OK_IDS, stopping={"stop_strings": ["a", ""]}), BAD,
     "stopping.stop_strings"),
    ("long stop string", api.request(OK_IDS, stopping={"stop_strings": ["x" * 257]}), BAD,
     "stopping.stop_strings"),
    ("65 stop ids", api.request(OK_IDS, stopping={"stop_token_ids": [7] * 65}), BAD,
     "stopping.stop_token_ids"),
    ("unknown stop id", api.request(OK_IDS, stopping={"stop_token_ids": [VOCABULARY]}), BAD,
     "stopping.stop_token_ids"),
    ("min above max", api.request(OK_IDS, stopping={"max_new_tokens": 3, "min_new_tokens": 4}), BAD,
     "stopping.min_new_tokens"),
    ("logprobs", api.request(OK_IDS, output={"num_logprobs": 21}), BAD, "output.num_logprobs"),
    ("prompt logprobs", api.request(OK_IDS, output={"num_prompt_logprobs": 21}), BAD,
     "output.num_prompt_logprobs"),
    ("unknown mode", mode(17), BAD, "prefill_mode"),
    ("resumed choice", resumed([(1, [5])], sampling={"seed": 1}), BAD, "resume.choices"),
    ("resumed twice", resumed([(0, [5]), (0, [6])], sampling={"seed": 1}), BAD, "resume.choices"),
    ("resumed id", resumed([(0, [VOCABULARY])], sampling={"seed": 1}), BAD, "resume.choices"),
    ("resume without seed", resumed([(0, [5])], sampling={"temperature": 1}), BAD, "sampling.seed"),
    ("resume beyond the limit",
     resumed([(0, [5, 6])], sampling={"seed": 1}, stopping={"max_new_tokens": 1}), BAD,
     "resume.choices"),
    ("chat", api.request(chat={"messages": [{"role": "user", "content": "hi"}]}), UNSERVED, "chat"),
]
TABLE += [
    (f"{field} {value}", sampling(**{field: value}), BAD, f"sampling.{field}")
    for field in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty",
                  "frequency_penalty")
    for value in (NAN, INFINITY, -INFINITY)
]


def refusal(client, made):
    with pytest.raises(grpc.RpcError) as caught:
        client.generate(made)
    return caught.value


@pytest.mark.parametrize("made,code,field", [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_refused_by_name(demo, made, code, field):
    error = refusal(demo.client, made)
    assert error.code() == code, error.details()
    assert field in error.details()
    violations = api.details(error, api.BadRequest).field_violations
    assert any(violation.field.startswith(field) for violation in violations), violations


def test_unknown_model(demo):
    error = refusal(demo.client, api.request(OK_IDS, model="nobody"))
    assert error.code() == grpc.StatusCode.NOT_FOUND and "nobody" in error.details()
    with pytest.raises(grpc.RpcError) as caught:
        demo.client.model("nobody")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_detokenize_of_an_unknown_id(demo):
    with pytest.raises(grpc.RpcError) as caught:
        demo.client.detokenize([1, VOCABULARY])
    assert caught.value.code() == BAD and "ids" in caught.value.details()


def test_draining_an_unknown_replica(demo):
    with pytest.raises(grpc.RpcError) as caught:
        demo.client.drain("any")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert "replica_id" in caught.value.details()


def test_what_the_limits_allow_is_served(demo):
    made = api.request(
        OK_IDS,
        request_id="x" * 256,
        tenant="y" * 256,
        stopping={"max_new_tokens": 1, "stop_strings": ["z" * 256] * 16, "stop_token_ids": [7] * 64},
        output={"num_logprobs": 20, "num_prompt_logprobs": 20},
    )
    for token in range(1024):
        made.sampling.logit_bias[token] = 0.5
    choice = demo.client.generate(made)[0]
    assert len(choice.logprobs[0].top) == 20 and len(choice.prompt_logprobs[1].top) == 20
    longest = api.request([5] * CONTEXT, stopping={"max_new_tokens": 0})
    assert demo.client.generate(longest)[0].ids == []


def test_text_to_a_model_without_tokenizer():
    with serving.System(serving.ROOT / "tests/golden/cases/llama", "--dtype", "float32") as system:
        error = refusal(system.client, api.request(text="hello"))
        assert error.code() == BAD and "tokenizer" in error.details()
        made = api.request([3], stopping={"max_new_tokens": 2, "ignore_eos": True})
        assert len(system.client.generate(made)[0].ids) == 2


def test_a_request_that_can_never_fit():
    # 256 KiB hold some hundred tokens; the context is longer.
    flags = ["--kv-cache-memory", "256KiB", "--dtype", "float32"]
    with serving.System(serving.DEMO, *flags) as system:
        error = refusal(system.client, api.request([5] * 500, stopping={"max_new_tokens": 10}))
        assert error.code() == BAD, error.details()
        made = api.request(OK_IDS, stopping={"max_new_tokens": 2, "ignore_eos": True})
        assert len(system.client.generate(made)[0].ids) == 2


GOOD_FLOATS, BAD_FLOATS = [0.5, 0.9], [0.0, -0.0, 1.5, -1.0, 1e30, -1e30, 1e-40, NAN, INFINITY, -INFINITY]
GOOD_COUNTS, BAD_COUNTS = [0, 1, 2], [21, 511, 513, 4096, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]


class Variants:
    """Requests whose every field may be sensible or not; short enough to be run where they are valid."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.oddness = 0.0  # how likely a value is an odd one; another in each request

    def pick(self, good, odd):
        return self.rng.choice(odd if self.rng.random() < self.oddness else good)

    def some(self, chance):
        return self.rng.random() < chance

    def next(self):
        self.oddness = self.rng.choice([0.0, 0.0, 0.05, 0.3])
        made = api.request()
        self.prompt(made)
        self.sampling(made.sampling)
        self.stopping(made.stopping)
        for field in ("num_logprobs", "num_prompt_logprobs"):
            if self.some(0.2):
                setattr(made.output, field, self.pick(GOOD_COUNTS + [20], BAD_COUNTS))
        if self.some(0.2):
            made.num_choices = self.pick([0, 1, 2, 5], [129, (1 << 32) - 1])
        if self.some(0.2):
            made.prefill_mode = self.pick([0, 1, 2], [3, -1, (1 << 31) - 1])
        if self.some(0.2):
            made.priority = self.rng.choice([-(1 << 31), -1, 5, (1 << 31) - 1])
        if self.some(0.15):
            made.resume.choices.add(
                choice=self.pick([0], [1, 200]),
                ids=[self.pick([0, 9], [VOCABULARY]) for _ in range(self.pick([0, 1], [9]))],
                num_text_bytes=self.pick([0], [3, (1 << 64) - 1]),
                finished=self.some(0.3),
            )
        return made

    def prompt(self, made):
        if self.some(0.6):
            length = self.pick([1, 3, 30], [0, 600])
            made.token_ids.SetInParent()
            made.token_ids.ids.extend(
                self.pick([0, 1, 5, 4095], [VOCABULARY, (1 << 32) - 1]) if i == 0 else 7
                for i in range(length)
            )
        else:
            texts = ["", "x", "\0\x01", "é日本語🙂", "a b " * 40, "<s></s>", "\ufffd" * 9]
            made.text = self.pick(texts, ["word " * 4000])

    def sampling(self, sampling):
        for field in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty",
                      "frequency_penalty"):
            if self.some(0.25):
                setattr(sampling, field, self.pick(GOOD_FLOATS, BAD_FLOATS))
        if self.some(0.3):
            sampling.top_k = self.rng.choice(GOOD_COUNTS + BAD_COUNTS)
        if self.some(0.6):
            sampling.seed = self.rng.getrandbits(64)
        for _ in range(self.rng.choice([0, 0, 1, 5])):
            sampling.logit_bias[self.pick([0, 7, 4095], [VOCABULARY])] = self.pick(
                GOOD_FLOATS, BAD_FLOATS
            )

    def stopping(self, stopping):
        stopping.max_new_tokens = self.rng.choice([0, 1, 2, 8])
        if self.some(0.2):
            stopping.min_new_tokens = self.pick([0], BAD_COUNTS)
        if self.some(0.2):
            count = self.pick([1, 2], [17])
            stopping.stop_strings.extend(self.pick(["e", "\ufffd"], ["", "x" * 300]) for _ in range(count))
        if self.some(0.2):
            count = self.pick([1, 64], [65])
            stopping.stop_token_ids.extend(self.pick([0, 2], [VOCABULARY]) for _ in range(count))


def test_generated_variants_are_served_or_refused(demo):
    print(f"seed {SEED} (TEST_SEED repeats it)")
    variants = Variants(SEED)
    gauges = [("lckv_kv_blocks", {"state": "free"}), ("lckv_staging_rows_free", {})]

    def state():
        return [
            serving.metric(worker.metrics_address, name, **labels)
            for worker in demo.workers
            for name, labels in gauges
        ]

    before = state()
    served = 0
    for number in range(500):
        made = variants.next()
        try:
            demo.client.generate(made)
            served += 1
        except grpc.RpcError as error:
            assert error.code() in (BAD, UNSERVED), f"{number}: {error.code()} {error.details()}\n{made}"
            assert api.details(error, api.BadRequest) is not None, f"{number}: {error.details()}"
    assert 100 < served < 400, f"{served} of 500 were valid: the generator is one-sided"
    assert all(process.alive() for process in [demo.router, *demo.workers])
    serving.wait_until(lambda: state() == before, "blocks and staging as at the start")
