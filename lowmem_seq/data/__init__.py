"""Images, from wherever they are to the arrays that a training step reads.

A source (a catalogue name, a folder, a zip) is brought once into a pack of raw uint8 pixels, from which a run
reads by position. Nothing in this room knows a model.
"""
