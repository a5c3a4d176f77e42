"""Where bundles live: local directories and S3-compatible storage."""
