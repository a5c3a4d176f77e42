"""Local replacement for kserve/sklearnserver and kserve/predictiveserver, which are on no package index.

It runs in its own environment, started by its path, so it imports no other package of this project.
"""
