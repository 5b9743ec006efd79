#!/usr/bin/env python3
"""Writes the dashboards; the JSON beside it is what Grafana reads.

    build/tools/dashboards/bin/python deploy/grafana/dashboards.py [FOLDER]

FOLDER is deploy/grafana/dashboards unless another is given. deploy/install-deps.sh brings the SDK.
"""

import pathlib
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from panels import board, lines, number, states

ROUTER = 'model_name=~"$model_name"'
WORKER = 'model_name=~"$model_name",instance=~"$instance"'
R = "[$__rate_interval]"


def quantiles(metric, selector, by=""):
    """p50, p90 and p99 of a histogram over all series."""
    labels = f"le,{by}" if by else "le"
    return {
        f"p{share * 100:.0f}" + (f" {{{{{by}}}}}" if by else ""): (
            f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket{{{selector}}}{R})))"
        )
        for share in (0.5, 0.9, 0.99)
    }


def fleet():
    generate = f'lckv_router_requests_total{{method="Generate",{ROUTER}}}'
    replicas = 'worker=~"$replica"'
    return board(
        "lckv-fleet",
        "LCKV / Fleet",
        "Traffic, latency, errors, queues and replicas as the routers see them.",
        {
            "model_name": ("Model", 'label_values(lckv_router_queue_depth{model_name!=""}, model_name)'),
            "replica": ("Replica", "label_values(lckv_router_worker_up, worker)"),
        },
        {
            "Now": [
                number(
                    "Ready replicas",
                    "Replicas that at least one router can give work to.",
                    "short",
                    f'sum(max by (model_name) (lckv_router_replicas{{state="ready",{ROUTER}}}))',
                ),
                number(
                    "Demand",
                    "Calls that wait at routers, and sequences that wait or run at replicas: what autoscalers read.",
                    "short",
                    f"sum(model_name:lckv_demand:sum{{{ROUTER}}})",
                ),
                number("Calls per second", "Ended Generate calls.", "reqps", f"sum(rate({generate}{R}))"),
                number(
                    "Tokens per second",
                    "Tokens generated at all replicas.",
                    "suffix: tok/s",
                    f"sum(rate(vllm:generation_tokens_total{{{ROUTER}}}{R}))",
                ),
                number(
                    "Errors",
                    "Share of calls in the last 5 minutes that failed through no fault of the caller, of the worst model.",
                    "percentunit",
                    f"max(model_name:lckv_router_errors:ratio_rate5m{{{ROUTER}}})",
                    {"warning": 0.01, "critical": 0.05},
                ),
                number(
                    "Slow first tokens",
                    "Share of first tokens in the last hour that took over 2 s, of the worst model; the objective is 1 %.",
                    "percentunit",
                    f"max(model_name:lckv_router_ttft_over_2s:ratio_rate1h{{{ROUTER}}})",
                    {"warning": 0.01, "critical": 0.144},
                ),
            ],
            "Traffic": [
                lines(
                    "Calls by code",
                    "Ended Generate calls by their gRPC code; codes that did not occur are left out.",
                    "reqps",
                    {"{{code}}": f"sum by (code) (rate({generate}{R})) > 0"},
                    stacked=True,
                ),
                lines(
                    "Tokens",
                    "Prompt tokens of sequences that got their first token, those of them found in shared blocks, "
                    "and tokens generated.",
                    "suffix: tok/s",
                    {
                        "prompt": f"sum(rate(vllm:prompt_tokens_total{{{ROUTER}}}{R}))",
                        "prompt, shared": f'sum(rate(vllm:prompt_tokens_by_source_total{{source="local_cache_hit",{ROUTER}}}{R}))',
                        "generated": f"sum(rate(vllm:generation_tokens_total{{{ROUTER}}}{R}))",
                    },
                ),
                lines(
                    "Calls in flight",
                    "Generate calls that have not ended, by model.",
                    "short",
                    {"{{model_name}}": f'sum by (model_name) (lckv_router_inflight{{model_name!="",{ROUTER}}})'},
                ),
            ],
            "Latency": [
                lines(
                    "Time to first token",
                    "From a call's arrival at the router to the first token of each choice. Above the line a first "
                    "token is slow.",
                    "s",
                    quantiles("lckv_router_ttft_seconds", ROUTER),
                    {"critical": 2},
                ),
                lines(
                    "Time between tokens",
                    "Between successive deliveries of tokens of one choice.",
                    "s",
                    quantiles("lckv_router_itl_seconds", ROUTER),
                ),
                lines(
                    "Whole calls",
                    "From arrival to the end of a call.",
                    "s",
                    quantiles("lckv_router_e2e_seconds", ROUTER),
                ),
                lines(
                    "Wait for a replica",
                    "From arrival until a replica took the call.",
                    "s",
                    quantiles("lckv_router_queue_wait_seconds", ROUTER),
                ),
                lines(
                    "The router's own work",
                    "The 99th percentile of the router's own work: parse, tokenize and route once a call, detokenize "
                    "once a step of a choice.",
                    "s",
                    {
                        "{{stage}}": "histogram_quantile(0.99, sum by (le,stage) "
                        f"(rate(lckv_router_overhead_seconds_bucket{R})))"
                    },
                ),
                lines(
                    "Slow first tokens",
                    "Share of first tokens that took over 2 s. Lines: where the long and the fast alert begin.",
                    "percentunit",
                    {
                        "{{model_name}} 5m": f"model_name:lckv_router_ttft_over_2s:ratio_rate5m{{{ROUTER}}}",
                        "{{model_name}} 1h": f"model_name:lckv_router_ttft_over_2s:ratio_rate1h{{{ROUTER}}}",
                    },
                    {"warning": 0.06, "critical": 0.144},
                ),
            ],
            "Errors": [
                lines(
                    "Errors",
                    "Share of calls that ended with INTERNAL, UNAVAILABLE, UNKNOWN or DATA_LOSS in 5 minutes.",
                    "percentunit",
                    {"{{model_name}}": f"model_name:lckv_router_errors:ratio_rate5m{{{ROUTER}}}"},
                    {"critical": 0.05},
                ),
                lines(
                    "Refusals",
                    "Share of calls that ended with RESOURCE_EXHAUSTED or DEADLINE_EXCEEDED in 5 minutes.",
                    "percentunit",
                    {"{{model_name}}": f"model_name:lckv_router_refusals:ratio_rate5m{{{ROUTER}}}"},
                    {"warning": 0.05},
                ),
                lines(
                    "Calls that did not end well",
                    "Generate calls that ended with an error, by its kind, and calls ended by clients or deadlines, of "
                    "all models; what did not occur is left out.",
                    "reqps",
                    {
                        "{{reason}}": f"sum by (reason) (rate(lckv_router_rejected_total{R})) > 0",
                        "ended by {{by}}": f"sum by (by) (rate(lckv_router_cancelled_total{R})) > 0",
                    },
                    stacked=True,
                ),
            ],
            "Queue": [
                lines(
                    "Calls that wait at routers",
                    "Because no replica takes them. A queue that stands for 10 minutes is an alert.",
                    "short",
                    {"{{model_name}}": f'sum by (model_name) (lckv_router_queue_depth{{model_name!="",{ROUTER}}})'},
                    width=6,
                ),
                lines(
                    "Fill of a router's queue",
                    "Calls of all models that wait there, of the most it keeps. At 1 it refuses what comes.",
                    "percentunit",
                    {
                        "{{instance}}": "sum by (job,instance) (lckv_router_queue_depth) "
                        '/ on (job,instance) sum by (job,instance) (lckv_router_limit{of="queue"})'
                    },
                    {"warning": 0.8},
                    top=1,
                    width=6,
                ),
                lines(
                    "Sequences at replicas",
                    "Sequences that take part in steps, and that wait to be admitted.",
                    "short",
                    {
                        "{{model_name}} running": f"sum by (model_name) (vllm:num_requests_running{{{ROUTER}}})",
                        "{{model_name}} waiting": f"sum by (model_name) (vllm:num_requests_waiting{{{ROUTER}}})",
                    },
                    width=6,
                ),
                lines(
                    "Demand",
                    "What autoscalers read: waiting at routers, waiting and running at replicas.",
                    "short",
                    {"{{model_name}}": f"model_name:lckv_demand:sum{{{ROUTER}}}"},
                    width=6,
                ),
            ],
            "Replicas": [
                states(
                    "Ready",
                    "Whether at least one router can give work to the replica.",
                    f"max by (worker) (lckv_router_worker_up{{{replicas}}})",
                    "{{worker}}",
                    {0: ("not ready", "red"), 1: ("ready", "green")},
                ),
                lines(
                    "Replicas by state",
                    "As the routers see them; a replica that routers see in two states counts in both.",
                    "short",
                    {"{{state}}": f"sum by (state) (max by (model_name,state) (lckv_router_replicas{{{ROUTER}}}))"},
                    stacked=True,
                ),
                lines(
                    "Streams that moved",
                    "Choices that went on at another replica, and choices placed again before their first token.",
                    "cps",
                    {
                        f"{{{{model_name}}}} {name}": "sum by (model_name) "
                        f'(rate(lckv_router_{metric}_total{{model_name!="",{ROUTER}}}{R}))'
                        for name, metric in (("resumed", "resumes"), ("retried", "retries"))
                    },
                    width=6,
                ),
                lines(
                    "Pause of a moved stream",
                    "From the last token before a choice moved to the first one after: what its reader notices.",
                    "s",
                    quantiles("lckv_router_resume_gap_seconds", ROUTER),
                    width=6,
                ),
                lines(
                    "Frames",
                    "Between routers and replicas: about one a step of a replica to each router it works for, never "
                    "one a token.",
                    "cps",
                    {"{{dir}}": f"sum by (dir) (rate(lckv_router_frames_total{R}))"},
                    width=6,
                ),
                lines(
                    "Versions",
                    "Routers and workers by version; two during an upgrade.",
                    "short",
                    {"{{job}} {{version}}": "count by (job,version) (lckv_build_info)"},
                    stacked=True,
                    width=6,
                ),
            ],
        },
    )


def worker_variables():
    return {
        "model_name": ("Model", "label_values(vllm:num_requests_running, model_name)"),
        "instance": ("Replica", 'label_values(vllm:num_requests_running{model_name=~"$model_name"}, instance)'),
    }


def model_memory():
    def of(metric, more=""):
        return f"{metric}{{{WORKER}{',' + more if more else ''}}}"

    tokens = f"{of('vllm:kv_cache_usage_perc')} * {of('lckv_kv_capacity_tokens')}"
    held = f"{tokens} * {of('lckv_kv_bytes_per_token')}"
    pool = f"{of('lckv_kv_capacity_tokens')} * {of('lckv_kv_bytes_per_token')}"
    all_layers, cached_layers = (of("lckv_kv_layers", f'kind="{kind}"') for kind in ("all", "cached"))
    used, free = (of("lckv_kv_blocks", f'state="{state}"') for state in ("used", "free"))
    seats = 'of="running"'
    ordinary = f"{held} * ignoring (kind) {all_layers} / ignoring (kind) {cached_layers}"
    return board(
        "lckv-model-memory",
        "LCKV / Model memory",
        "What keys and values take, and what that allows. Of a replica of several ranks, rank 0 is shown; the others "
        "hold as much.",
        worker_variables(),
        {
            "Geometry": [
                number(
                    "KV of a token",
                    "Bytes that one token takes in all cached layers of a rank.",
                    "bytes",
                    f"max({of('lckv_kv_bytes_per_token')})",
                ),
                number(
                    "Cached layers",
                    "Layers that own keys and values.",
                    "short",
                    f"max({cached_layers})",
                ),
                number("Layers", "Layers of the model.", "short", f"max({all_layers})"),
                number(
                    "Tokens for the same bytes",
                    "How many times the tokens of the same model with ordinary keys and values the pool holds.",
                    "suffix: ×",
                    f"max({all_layers} / ignoring (kind) {cached_layers})",
                    decimals=2,
                ),
                number(
                    "Capacity",
                    "Tokens that the KV pools of all replicas hold.",
                    "short",
                    f"sum({of('lckv_kv_capacity_tokens')})",
                ),
                number(
                    "Blocks in use",
                    "Share of the KV blocks in use at the fullest replica.",
                    "percentunit",
                    f"max({of('vllm:kv_cache_usage_perc')})",
                    {"warning": 0.8, "critical": 0.95},
                ),
            ],
            "Blocks": [
                lines(
                    "Blocks by state",
                    "Used: by running sequences. Shared: free, but still holding the beginning of a text. Empty: free.",
                    "short",
                    {
                        "used": f"sum({used})",
                        "shared": f"sum({of('lckv_kv_cached_blocks')})",
                        "empty": f"sum({free}) - sum({of('lckv_kv_cached_blocks')})",
                    },
                    stacked=True,
                ),
                lines(
                    "Blocks in use",
                    "Share of a replica's KV blocks. Above the line sequences are about to be preempted.",
                    "percentunit",
                    {"{{instance}}": of("vllm:kv_cache_usage_perc")},
                    {"critical": 0.95},
                    top=1,
                ),
                lines(
                    "Tokens held",
                    "Tokens of running sequences in KV blocks, and how many fit.",
                    "short",
                    {"held": f"sum({tokens})", "capacity": f"sum({of('lckv_kv_capacity_tokens')})"},
                ),
                lines(
                    "The same load with ordinary KV",
                    "What the tokens held take here, what they would take if every layer owned keys and values, and "
                    "what there is.",
                    "bytes",
                    {"here": f"sum({held})", "ordinary": f"sum({ordinary})", "pool": f"sum({pool})"},
                ),
                lines(
                    "Preemptions",
                    "Sequences that lost their seat because blocks ran out, and those of them copied to the host tier "
                    "instead of computed again.",
                    "cps",
                    {
                        "preempted": f"sum(rate({of('vllm:num_preemptions_total')}{R}))",
                        "copied to the host": f"sum(rate({of('lckv_swapped_out_total')}{R}))",
                    },
                ),
                lines(
                    "Host tier",
                    "Blocks of the host tier, where preempted sequences wait.",
                    "short",
                    {"{{state}}": f"sum by (state) ({of('lckv_host_blocks')})"},
                    stacked=True,
                ),
            ],
            "Batch": [
                lines(
                    "Sequences",
                    "That take part in steps, how many may at once (--max-num-seqs), and that wait to be admitted.",
                    "short",
                    {
                        "running": f"sum({of('vllm:num_requests_running')})",
                        "waiting": f"sum({of('vllm:num_requests_waiting')})",
                        "seats": f"sum({of('lckv_limit', seats)})",
                    },
                ),
                lines(
                    "Batch",
                    "Tokens sampled in a step.",
                    "short",
                    quantiles("lckv_batch_size", WORKER),
                ),
                lines(
                    "Wait for a seat",
                    "From a sequence's arrival at the leader to its first step.",
                    "s",
                    quantiles("vllm:request_queue_time_seconds", WORKER),
                ),
                lines(
                    "Prompt tokens found in shared blocks",
                    "Share of the prompt tokens looked for that were found.",
                    "percentunit",
                    {
                        "{{model_name}}": f"sum by (model_name) (rate({of('vllm:prefix_cache_hits_total')}{R}))"
                        f" / sum by (model_name) (rate({of('vllm:prefix_cache_queries_total')}{R}))"
                    },
                    top=1,
                ),
                lines(
                    "Lengths",
                    "The median and the 99th percentile of prompts and of continuations.",
                    "suffix: tok",
                    {
                        f"{kind} {name}": query
                        for kind, metric in (
                            ("prompt", "vllm:request_prompt_tokens"),
                            ("generated", "vllm:request_generation_tokens"),
                        )
                        for name, query in quantiles(metric, WORKER).items()
                        if name != "p90"
                    },
                ),
                lines(
                    "Staging rows left",
                    "Of the fullest cyclic group; at 0 no new prompt begins.",
                    "short",
                    {"{{instance}}": of("lckv_staging_rows_free")},
                ),
            ],
            "Process": [
                lines(
                    "Memory of the process",
                    "Resident memory of leaders and ranks on their hosts; a device's memory is not in it.",
                    "bytes",
                    {"{{instance}}": 'process_resident_memory_bytes{job="lckv-worker",instance=~"$instance"}'},
                    width=12,
                ),
                lines(
                    "Processor time",
                    "Cores that the process keeps busy.",
                    "short",
                    {"{{instance}}": f'rate(process_cpu_seconds_total{{job="lckv-worker",instance=~"$instance"}}{R})'},
                    width=12,
                ),
            ],
        },
    )


def step():
    def rate(metric, more=""):
        return f"rate({metric}{{{WORKER}{',' + more if more else ''}}}{R})"

    seconds = "lckv_step_duration_seconds"
    return board(
        "lckv-step",
        "LCKV / Step",
        "Where the time of a step goes, what prompts cost, and how ranks wait for each other.",
        worker_variables(),
        {
            "Time": [
                lines(
                    "Time of a step by phase",
                    "Mean over all steps. Walks: the cyclic groups; ordinary: all other layers; copies: blocks moved "
                    "to and from the host.",
                    "s",
                    {
                        "{{phase}}": f"sum by (phase) ({rate(seconds + '_sum')}) / on () group_left () "
                        f"sum({rate('lckv_step_total')})"
                    },
                    stacked=True,
                ),
                lines(
                    "Slow phases",
                    "The 99th percentile of each phase.",
                    "s",
                    {
                        "{{phase}}": "histogram_quantile(0.99, sum by (le,phase) "
                        f"({rate(seconds + '_bucket')}))"
                    },
                ),
                lines(
                    "Time in steps",
                    "Share of the time that a replica spends in steps; 1: it never waits for work.",
                    "percentunit",
                    {"{{instance}}": f"sum by (instance) ({rate(seconds + '_sum')})"},
                ),
                lines(
                    "Steps",
                    "Steps a second.",
                    "ops",
                    {"{{instance}}": f"sum by (instance) ({rate('lckv_step_total')})"},
                ),
                lines(
                    "Work without a step",
                    "How long work has waited without a step or a layer run. Above the line it is an alert.",
                    "s",
                    {"{{instance}}": f"lckv_step_age_seconds{{{WORKER}}}"},
                    {"critical": 15},
                ),
                lines(
                    "Time between tokens of a sequence",
                    "At the leader, without the way to the client.",
                    "s",
                    quantiles("vllm:inter_token_latency_seconds", WORKER),
                ),
            ],
            "Prompts": [
                lines(
                    "Walks per prompt token",
                    "Rows times walks spent on prompts in cyclic groups, by prompt rows settled: 1 is the least.",
                    "short",
                    {
                        "{{model_name}}": f"sum by (model_name) ({rate('lckv_prefill_row_walks_total')})"
                        f" / sum by (model_name) ({rate('lckv_prefill_rows_settled_total')})"
                    },
                ),
                lines(
                    "Walks of a prompt",
                    "Walks over cyclic groups that a sequence's prompt took part in.",
                    "short",
                    quantiles("lckv_prefill_walks", WORKER),
                ),
                lines(
                    "Time of a prompt",
                    "From a sequence's first step to its first token.",
                    "s",
                    quantiles("vllm:request_prefill_time_seconds", WORKER),
                ),
            ],
            "Token budget": [
                lines(
                    "Use of the token budget",
                    "Rows times the layers they ran, of the most that steps could have taken (--max-num-batched-tokens "
                    "times the layers). Near 1 prompts wait for each other.",
                    "percentunit",
                    {
                        "{{instance}}": f"sum by (instance) ({rate('lckv_step_row_layers_total')}) / on (instance) "
                        f"(sum by (instance) ({rate('lckv_step_total')}) * on (instance) "
                        f"sum by (instance) (lckv_step_budget_row_layers{{{WORKER}}}))"
                    },
                ),
                lines(
                    "Rows in a step",
                    "Prompt and generated tokens that a step takes; its most is set by --max-num-batched-tokens.",
                    "suffix: rows",
                    {
                        "mean": f"sum({rate('vllm:iteration_tokens_total_sum')})"
                        f" / sum({rate('vllm:iteration_tokens_total_count')})",
                        **quantiles("vllm:iteration_tokens_total", WORKER),
                    },
                ),
                lines(
                    "Rows by what they are for",
                    "Prompt rows settled, and tokens generated.",
                    "suffix: rows/s",
                    {
                        "prompt": f"sum({rate('lckv_prefill_rows_settled_total')})",
                        "generated": f"sum({rate('vllm:generation_tokens_total')})",
                    },
                    stacked=True,
                ),
            ],
            "Ranks": [
                lines(
                    "Time in collectives",
                    "Share of the time that a rank spends in collectives, which includes waiting for other ranks.",
                    "percentunit",
                    {"{{instance}} rank {{rank}}": rate("lckv_rank_collective_seconds_total")},
                    width=12,
                ),
                lines(
                    "Age of a rank's turn",
                    "Since the rank's loop began its turn; idle loops turn too.",
                    "s",
                    {"{{instance}} rank {{rank}}": f"lckv_rank_step_age_seconds{{{WORKER}}}"},
                    width=12,
                ),
            ],
        },
    )


def main():
    here = pathlib.Path(__file__).parent
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here / "dashboards"
    for name, made in (("fleet", fleet()), ("model-memory", model_memory()), ("step", step())):
        text = JSONEncoder(sort_keys=True, indent=1).encode(made)
        (folder / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
