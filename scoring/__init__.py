"""Bulk scoring: candidates of Parquet, CSV or JSON lines files, on one machine or on a cluster."""
