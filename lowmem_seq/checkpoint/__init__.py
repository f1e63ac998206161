"""Checkpoints: tensors to bytes (codec), and folders that exist wholly or not at all (store)."""
