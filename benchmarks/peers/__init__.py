"""The other systems, each written as its documentation suggests.

Each program runs as a file in a separate environment, without this project. The variable ``MODEL`` names a
pickle of the vectorizer and the classifier.
"""
