"""Whether this machine is fit to train on, and how it is mended where it is not."""
