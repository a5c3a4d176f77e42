"""The stock scikit-learn runtimes of KServe: a table of them, their installation and their processes."""
