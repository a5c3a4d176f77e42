"""The InferenceService: its spec, a runner for this machine, and rollouts of versions."""
