"""The routers' view."""

from panels import board, lines, number, states
from queries import R, ROUTER, quantiles


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
                    needed=1,
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
                    "As the routers see them; a replica that routers see in two states counts in both. States that no replica "
                    "is in are left out.",
                    "short",
                    {"{{state}}": f"sum by (state) (max by (model_name,state) (lckv_router_replicas{{{ROUTER}}})) > 0"},
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
            "Tenants": [
                lines(
                    "Calls in flight by tenant",
                    "With --tenants: Generate calls that have not ended, of all models; tenants that the file does not list are one.",
                    "short",
                    {"{{tenant}}": "sum by (tenant) (lckv_router_tenant_running)"},
                    stacked=True,
                ),
                lines(
                    "Tokens by tenant",
                    "With --tenants: prompt tokens when a call is let in and generated ones when it ends, as limits are charged.",
                    "suffix: tok/s",
                    {"{{tenant}}": f"sum by (tenant) (rate(lckv_router_tenant_tokens_total{R}))"},
                    stacked=True,
                ),
                lines(
                    "Calls over a limit",
                    "With --tenants: Generate calls refused because their tenant was over a limit; what did not occur is left out.",
                    "reqps",
                    {
                        "{{tenant}} {{limit}}": "sum by (tenant,limit) "
                        f"(rate(lckv_router_tenant_rejected_total{R})) > 0"
                    },
                    stacked=True,
                ),
            ],
        },
    )
