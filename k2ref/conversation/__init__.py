"""Messages become ids and ids become a reply: the chat format, and a conversation that goes on.

In the order in which to read it:

    declarations   the tools, as the prompt declares them
    template       the messages as the text of a prompt
    events         what a reply is made of, piece by piece
    reply          the parser: thinking, content and tool calls out of a stream of text
    history        what of the thinking is kept
    chat           one conversation with its cache
    session        a conversation in a file

It may import the hall and checkpoint/.
"""
