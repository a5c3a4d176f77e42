"""The custom transformer of one KServe InferenceService: raw candidates in, predictions out."""
