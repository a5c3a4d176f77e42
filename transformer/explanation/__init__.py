"""Explanations of predictions: contributions of the raw fields, and changes that turn a negative answer."""
