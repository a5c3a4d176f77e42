"""The stock scikit-learn runtimes of KServe: what they are, installing one, starting one here."""
