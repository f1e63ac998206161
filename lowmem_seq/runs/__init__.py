"""The run folder: its names, its lock, its events and their words, and what it was made with."""
