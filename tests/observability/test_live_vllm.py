"""Boards made for vLLM, on workers under a load: what they ask for is there, or is said not to be."""

import re

import pytest

import expressions
import live
import monitoring

# The boards of vLLM's own examples, by what they ask for. {name: labels beside model_name and engine}.
VLLM_GAUGES = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"]
VLLM_COUNTERS = {
    "vllm:prompt_tokens_total": "",
    "vllm:generation_tokens_total": "",
    "vllm:request_success_total": "finished_reason",
    "vllm:num_preemptions_total": "",
    "vllm:prefix_cache_queries_total": "",
    "vllm:prefix_cache_hits_total": "",
    "vllm:prompt_tokens_by_source_total": "source",
}
VLLM_HISTOGRAMS = [
    "vllm:e2e_request_latency_seconds",
    "vllm:request_time_per_output_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:time_to_first_token_seconds",
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
    "vllm:request_queue_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
    "vllm:request_inference_time_seconds",
    "vllm:request_max_num_generation_tokens",
    "vllm:request_params_max_tokens",
    "vllm:iteration_tokens_total",
]
# What those boards also ask for and we cannot give, and why.
VLLM_ABSENT = {
    "vllm:time_per_output_token_seconds": "older name of vllm:inter_token_latency_seconds",
    "vllm:gpu_cache_usage_perc": "older name of vllm:kv_cache_usage_perc",
    "vllm:cpu_cache_usage_perc": "the host tier holds preempted sequences only: lckv_host_blocks",
    "vllm:num_requests_swapped": "a preempted sequence waits: vllm:num_requests_waiting",
    "vllm:num_requests_waiting_by_reason": "nothing is deferred here: all wait for room",
    "vllm:request_params_n": "a worker sees sequences; how many a request had is the router's to know",
    "vllm:request_prefill_kv_computed_tokens": "vllm:prompt_tokens_by_source_total tells the same",
    "vllm:prompt_tokens_cached_total": "vllm:prompt_tokens_by_source_total tells the same",
    "vllm:external_prefix_cache_queries_total": "no cache outside the replica",
    "vllm:external_prefix_cache_hits_total": "no cache outside the replica",
    "vllm:spec_decode_num_draft_tokens_total": "no speculative decoding",
    "vllm:spec_decode_num_accepted_tokens_total": "no speculative decoding",
    "vllm:lora_requests_info": "no adapters",
    "vllm:mm_cache_queries_total": "text only",
    "vllm:mm_cache_hits_total": "text only",
    "vllm:engine_sleep_state": "a replica does not sleep: it drains and ends",
    "vllm:corrupted_requests_total": "a result that is not a number ends the replica",
}


def vllm_expressions():
    of = '{model_name="demo",engine="0"}'
    window = f"[{monitoring.RATE_INTERVAL}]"
    for name in VLLM_GAUGES:
        yield name + of
    for name, label in VLLM_COUNTERS.items():
        yield f"sum by (model_name{',' * bool(label)}{label}) (rate({name}{of}{window}))"
    for name in VLLM_HISTOGRAMS:
        yield f"histogram_quantile(0.95, sum by (le) (rate({name}_bucket{of}{window})))"
        yield f"sum by (le) (increase({name}_bucket{of}{window}))"
        yield f"rate({name}_sum{of}{window}) / rate({name}_count{of}{window})"
    yield 'vllm:cache_config_info{model_name="demo",block_size!="",num_gpu_blocks!=""}'


@pytest.mark.parametrize("expr", vllm_expressions())
def test_a_board_made_for_vllm_has_data(served, expr):
    found = served.prometheus.history(expr, served.begin, served.end)
    assert any(live.has_value(points) for _, points in found)
    if "finished_reason" in expr:
        assert {labels["finished_reason"] for labels, _ in found} >= {"stop", "length", "abort"}


def test_what_vllm_has_and_we_do_not_is_documented(served):
    operations = (expressions.ROOT / "deploy/OPERATIONS.md").read_text()
    there = served.exported()
    for name, reason in VLLM_ABSENT.items():
        assert name not in there and f"{name}_bucket" not in there, name
        assert re.search(rf"^\|.*`{name}`.*\| {re.escape(reason)} \|$", operations, re.M), f"{name}: {reason}"
