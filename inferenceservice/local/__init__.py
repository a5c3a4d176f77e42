"""One InferenceService on this machine, with the real stock servers."""
