"""What a user would take instead of lowmem-seq, each as its project's documentation writes it."""
