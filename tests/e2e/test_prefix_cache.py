"""Prompts that begin alike: what a client, a tenant and an operator see of the blocks they share."""

import pytest

import api
import serving

FLAGS = ["--dtype", "float32", "--prefill-lookahead", 16]
PROMPT = [3 + 7 * i % 4000 for i in range(100)]
SHARED = 96  # whole blocks of 16 below the last prompt token


@pytest.fixture(scope="module")
def system():
    with serving.System(serving.DEMO, *FLAGS) as made:
        yield made


def generate(system, ids, **fields):
    asked = api.request(ids, sampling={"temperature": 0}, stopping={"max_new_tokens": 8, "ignore_eos": True}, **fields)
    return system.client.generate(asked)


def num_cached(choice):
    assert choice.started.num_cached_tokens == choice.finished.usage.num_cached_tokens
    return choice.started.num_cached_tokens


def test_a_repeated_prompt_is_taken_from_shared_blocks(system):
    worker = system.workers[0].metrics_address
    before = {
        name: serving.metric(worker, f"vllm:prefix_cache_{name}_total") for name in ("queries", "hits")
    }
    first = generate(system, PROMPT, tenant="repeated")[0]
    second = generate(system, PROMPT, tenant="repeated")[0]
    assert (num_cached(first), num_cached(second)) == (0, SHARED)
    assert second.ids == first.ids
    assert second.finished.usage.num_prompt_tokens == len(PROMPT)
    assert second.finished.usage.num_prefill_walks < first.finished.usage.num_prefill_walks
    assert serving.metric(worker, "vllm:prefix_cache_queries_total") == before["queries"] + 2 * len(PROMPT)
    assert serving.metric(worker, "vllm:prefix_cache_hits_total") == before["hits"] + SHARED
    assert serving.metric(worker, "vllm:kv_cache_usage_perc") == 0
    assert serving.metric(worker, "lckv_kv_cached_blocks") > 0
    assert serving.metric(worker, "lckv_kv_blocks", state="used") == 0


def test_choices_of_one_request_agree(system):
    choices = generate(system, PROMPT, tenant="choices", num_choices=4)
    assert len({tuple(choice.ids) for choice in choices.values()}) == 1


def test_tenants_and_salts_share_nothing(system):
    ids = generate(system, PROMPT, tenant="one")[0].ids
    for fields in (
        {"tenant": "two"},
        {"tenant": "one", "prefix_cache": {"salt": "pepper"}},
        {"tenant": "one", "prefix_cache": {"skip": True}},
    ):
        alone = generate(system, PROMPT, **fields)[0]
        assert num_cached(alone) == 0 and alone.ids == ids
    assert num_cached(generate(system, PROMPT, tenant="one", prefix_cache={"salt": "pepper"})[0]) == SHARED


def test_scored_prompts_are_run(system):
    generate(system, PROMPT, tenant="scored")
    scored = generate(system, PROMPT, tenant="scored", output={"num_prompt_logprobs": 0})[0]
    assert num_cached(scored) == 0


def test_it_can_be_switched_off():
    with serving.System(serving.DEMO, *FLAGS, "--no-enable-prefix-caching") as system:
        for _ in range(2):
            assert num_cached(generate(system, PROMPT)[0]) == 0
        assert serving.metric(system.workers[0].metrics_address, "lckv_kv_cached_blocks") == 0
