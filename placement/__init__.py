"""The command `placement`: train, serve, roll out and query a model."""
