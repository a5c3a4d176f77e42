"""A version's bundle: signature, candidates, validation, encoding. No KServe, no network."""
