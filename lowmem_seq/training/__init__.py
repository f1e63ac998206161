"""Training: the loop and its parts. Run as a process of its own: `python -m lowmem_seq.training RUN_DIR`."""
