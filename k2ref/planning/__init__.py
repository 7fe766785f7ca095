"""What a machine will give: tokens a second before a checkpoint of 594 GB is loaded.

In the order in which to read it:

    disk    how fast the disk is, read as the streamer reads it
    rates   how fast the memory and the kernels are
    plan    bytes and times of a token, from these rates

It may import the hall, checkpoint/ and streaming/.
"""
