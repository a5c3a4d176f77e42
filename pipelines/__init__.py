"""The life cycle as a Kubeflow pipeline: validate, train, evaluate, gate, publish, roll out, check."""
