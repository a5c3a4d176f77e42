"""One InferenceService in a cluster, through the Kubernetes API."""
