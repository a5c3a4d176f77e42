"""KServe's server around the transformer: REST, gRPC, and limits on clients."""
