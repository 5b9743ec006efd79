"""Where the time of a step goes."""

from panels import board, lines
from queries import R, WORKER, quantiles, worker_variables


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
