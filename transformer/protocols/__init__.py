"""Inference protocols: V1, V2 and gRPC requests to candidates, and predictions to responses."""
