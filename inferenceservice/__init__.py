"""The InferenceService: its spec, running it on this machine, and rolling versions out."""
