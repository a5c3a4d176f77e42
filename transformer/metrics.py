"""Prometheus metrics of the transformer, besides KServe's own histograms."""

from prometheus_client import Counter, Gauge, Histogram

CONNECTIONS = Gauge(
    "transformer_predictor_connections",
    "Connections to the predictor, by state and by the version behind them",
    ["version", "state"],
    multiprocess_mode="livesum",
)
VERIFICATIONS = Counter(
    "transformer_verifications",
    "Verifications of the version behind the predictor, by outcome",
    ["outcome"],
)
REQUESTS = Counter("transformer_requests", "Answered requests, by the version that answered", ["version"])
RETRIES = Counter("transformer_predictor_retries", "Retried calls to the predictor, by reason", ["reason"])
BATCHES = Histogram(
    "transformer_batch_candidates",
    "Candidates per call to the predictor",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
)
CLIENTS_TURNED_AWAY = Counter(
    "transformer_clients_turned_away",
    "REST connections closed at the limit of connections: idle ones, and new ones that were refused",
    ["connection"],
)
