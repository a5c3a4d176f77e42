"""The inference protocols: V1, V2 and gRPC messages to candidates, and predictions to answers."""
