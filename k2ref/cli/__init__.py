"""The command: `python -m k2ref "prompt"`.

In the order in which to read it:

    main       the order of the work
    options    what may be asked for
    dialogue   a conversation at a terminal
    terminal   what is printed, and how

It may import everything.
"""
