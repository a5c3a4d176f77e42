"""Benchmark of this service beside other systems: throughput, latency, start time and memory."""
