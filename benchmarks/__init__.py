"""This service beside others that do the same: how fast, how soon, in how much memory."""
