"""Storage of versions: local directories and S3-compatible servers."""
