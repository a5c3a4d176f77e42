"""Traces of requests and predictor calls with OpenTelemetry, off unless the environment asks for them.

Only `spans` needs OpenTelemetry, which may not be installed.
"""
