"""Names of the metrics in bundles, of all kinds of question, and their values as text."""

from collections.abc import Mapping

#: All metrics, in the order in which people read them; see `training.evaluation.metrics_of`.
METRICS = (
    "accuracy", "roc_auc", "brier", "f1", "precision", "recall", "log_loss", "macro_f1", "mae", "rmse", "r2",
)  # fmt: skip


def metric_text(value: float) -> str:
    """Return a metric's value with four decimals, or with one if it is large, as the error of a price."""
    return f"{value:.{4 if abs(value) < 100 else 1}f}"


def metrics_text(metrics: Mapping[str, float]) -> str:
    """Return names and values in the order of `METRICS`: ``accuracy 0.9378, brier 0.0460``."""
    return ", ".join(f"{name} {metric_text(metrics[name])}" for name in METRICS if name in metrics)
