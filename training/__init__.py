"""Offline training: from candidates to a fitted classifier, its evaluation, a bundle and a report."""
