"""Offline: candidates -> DictVectorizer and classifier -> evaluation -> a bundle and its report."""
