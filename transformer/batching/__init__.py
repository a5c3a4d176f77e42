"""Requests on their way to the predictor: the queue, batches, connections and retries."""
