"""The other systems: programs in the shape that their documentation gives them.

Each is run as a file in an environment of its own, without this project beside it. ``MODEL`` names a pickle
of vectorizer and classifier.
"""
