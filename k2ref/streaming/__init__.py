"""Which bytes of the weights are in memory, when not all of them fit.

In the order in which to read it:

    memory      how much memory there is, and what a budget means
    pages       the files as the system maps them, and what happens if one is cut off
    meter       what a pass read, waited for and kept
    residency   which units are in memory: asked for, read, put out
    stream      the units of a model, in the order in which a pass needs them

It may import the doors, checkpoint/, and the ground floor of the hall.
"""
