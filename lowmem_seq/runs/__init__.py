"""The run folder: its names, its lock, its events, and what it was made with."""
