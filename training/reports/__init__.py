"""The report of a version: an HTML page with charts."""
