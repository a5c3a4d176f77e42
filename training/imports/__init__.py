"""Import of models that others have fitted: from a pickle to a bundle."""
