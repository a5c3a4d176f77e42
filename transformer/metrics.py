"""What Prometheus is told beside KServe's own histograms."""

from prometheus_client import Counter, Gauge, Histogram

CONNECTIONS = Gauge(
    "transformer_predictor_connections",
    "Connections to the predictor by what is behind them",
    ["version", "state"],
    multiprocess_mode="livesum",
)
VERIFICATIONS = Counter(
    "transformer_verifications", "Checks of which version is behind a connection or a request", ["outcome"]
)
REQUESTS = Counter(
    "transformer_requests", "Answered requests by the version that gave the answer", ["version"]
)
RETRIES = Counter("transformer_predictor_retries", "Calls to the predictor that were sent again", ["reason"])
BATCHES = Histogram(
    "transformer_batch_candidates",
    "Candidates that one call to the predictor carried",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
)
