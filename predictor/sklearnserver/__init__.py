"""Local replacement for the image kserve/sklearnserver, which is on no package index.

It runs in its own environment, started by its path, so it imports no other package of this project.
"""
