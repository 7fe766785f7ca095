"""The files of a checkpoint become weights: what is in a directory, and whether it is whole.

In the order in which to read it:

    fields         checks of values that come from JSON
    quantization   what config.json says of the stored formats
    layout         the name, shape and format of every tensor
    config         config.json
    shards         the safetensors files
    weights        the tensors of the model, found by name
    styles         which member of the family it is, and how that one converses
    companions     the tokenizer and generation_config.json
    inspection     a report of a directory, sound or not

It may import the doors, and the ground floor of the hall: `quant`, `ops`, `tokenizer`, `sampling`.
"""
