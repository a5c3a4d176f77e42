"""Names of the metrics in bundles, of all kinds of question, and their values as text."""

#: All metrics, in the order in which people read them; see `training.evaluation.metrics_of`.
METRICS = (
    "accuracy", "roc_auc", "brier", "f1", "precision", "recall", "log_loss", "macro_f1", "mae", "rmse", "r2",
)  # fmt: skip


def metric_text(value: float) -> str:
    """Return a metric's value with four decimals, or with one if it is large, as the error of a price."""
    return f"{value:.{4 if abs(value) < 100 else 1}f}"
