"""The doors of k2ref: what comes in, what goes out, and how the program ends.

    intake    one door for every small file and every text of JSON that others wrote
    atomic    one writer: a file is replaced whole, or stays as it was
    screen    one door to the terminal, where what others wrote is shown and never obeyed
    endings   Ctrl-C, a request to terminate, a terminal that was closed

Every part of k2ref may import these modules; they import nothing of k2ref.
"""
