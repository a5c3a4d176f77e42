"""The command `placement`."""
