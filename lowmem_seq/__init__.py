"""Memory-aware, resumable training of Sequencer2D image classifiers on small laptops."""

__version__ = "0.1.0"
