"""Functions that the model may call, and the loop that calls them.

In the order in which to read it:

    schema          a Python function as JSON Schema, and the check of arguments
    demonstration   the tools that are built in
    results         what a tool returned, as text
    child           the process in which the functions of a file run
    process         that process, as the program sees it
    toolbox         tools by name
    agent           the loop: a reply, its calls, their results, the next reply

It may import conversation/ and what that may import.
"""
