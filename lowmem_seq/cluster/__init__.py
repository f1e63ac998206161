"""Several machines, one run: how they were launched, the wire between them, leases of samples, averaging."""
