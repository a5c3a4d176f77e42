"""Monitoring: counts of requests, candidates and decisions. No candidate is stored."""
