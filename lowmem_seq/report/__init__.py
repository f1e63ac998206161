"""Reports: run folders to tables."""
