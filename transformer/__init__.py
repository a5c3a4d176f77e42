"""The custom transformer of one KServe InferenceService: raw candidates in, placement probabilities out."""
