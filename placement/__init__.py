"""The command `placement`, and the storage that training and the local InferenceService share."""
