"""The local stand-in for the image kserve/sklearnserver, which no package index carries.

It is started by its path, in an environment of its own, and so imports nothing else of this project.
"""
