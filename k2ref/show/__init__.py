"""A run as one page of HTML that explains itself.

In the order in which to read it:

    recording   what is kept of a run
    readings    what it says: attention, experts, guesses of every layer
    page        the page; its code and style are in assets/

It may import the hall and streaming/.
"""
