"""Names of the metrics in bundles, of all kinds of question."""

#: All metrics, in the order in which people read them; see `training.evaluation.metrics_of`.
METRICS = (
    "accuracy", "roc_auc", "brier", "f1", "precision", "recall", "log_loss", "macro_f1", "mae", "rmse", "r2",
)  # fmt: skip
