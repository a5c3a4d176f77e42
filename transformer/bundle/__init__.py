"""A version's bundle: signature, candidates, validation and encoding, without KServe or the network."""
