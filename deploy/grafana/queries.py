"""What the expressions of several dashboards have in common."""

ROUTER = 'model_name=~"$model_name"'
WORKER = 'model_name=~"$model_name",instance=~"$instance"'
R = "[$__rate_interval]"


def quantiles(metric, selector):
    """p50, p90 and p99 of a histogram over all series."""
    return {
        f"p{share * 100:.0f}": f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket{{{selector}}}{R})))"
        for share in (0.5, 0.9, 0.99)
    }


def worker_variables():
    return {
        "model_name": ("Model", "label_values(vllm:num_requests_running, model_name)"),
        "instance": ("Replica", 'label_values(vllm:num_requests_running{model_name=~"$model_name"}, instance)'),
    }
