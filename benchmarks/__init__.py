"""Every number that the docs claim, each reproducible with one command."""
