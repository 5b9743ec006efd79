"""What keys and values take."""

from panels import board, lines, number
from queries import R, WORKER, quantiles, worker_variables


def model_memory():
    def of(metric, more=""):
        return f"{metric}{{{WORKER}{',' + more if more else ''}}}"

    tokens = f"{of('vllm:kv_cache_usage_perc')} * {of('lckv_kv_capacity_tokens')}"
    held = f"{tokens} * {of('lckv_kv_bytes_per_token')}"
    pool = f"{of('lckv_kv_capacity_tokens')} * {of('lckv_kv_bytes_per_token')}"
    all_layers, cached_layers = (of("lckv_kv_layers", f'kind="{kind}"') for kind in ("all", "cached"))
    used, free = (of("lckv_kv_blocks", f'state="{state}"') for state in ("used", "free"))
    host_used, host_free = (of("lckv_host_blocks", f'state="{state}"') for state in ("used", "free"))
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
                    {"used": f"sum({host_used})", "free": f"sum({host_free})"},
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
