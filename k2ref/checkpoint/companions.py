"""The small files beside the weights: the tokenizer, and generation_config.json.

Chapter 03.
"""

import os
import warnings

from k2ref.checkpoint import styles
from k2ref.checkpoint.config import ConfigError
from k2ref.checkpoint.fields import check_token_ids
from k2ref.doors import intake
from k2ref.sampling import Settings, not_done
from k2ref.tokenizer import Tokenizer


def read_small_files(path, config, style=None):
    """Read what is beside config.json and the shards: the tokenizer, and generation_config.json.

    Path, Config, str -> Tokenizer or None, dict

    Raises: ConfigError, TokenizerError
    """
    tokenizer = Tokenizer.from_dir(path) if os.path.lexists(path / "tiktoken.model") else None
    if tokenizer is not None:
        if tokenizer.n_vocab > config.vocab_size:
            raise ConfigError(f"{path}: vocab_size is {config.vocab_size} in config.json, but the "
                              f"tokenizer has {tokenizer.n_vocab} ids; use files of one checkpoint")
        tokenizer.style = (styles.style_of(config, tokenizer, path) if style is None
                           else styles.style_for(tokenizer, style).name)
    file = path / "generation_config.json"
    if not os.path.lexists(file):
        return tokenizer, {}
    values = intake.read_json(file, intake.MOST_CONFIG, ConfigError)
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected a JSON object, found {type(values).__name__}")
    try:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            check_token_ids(name, values.get(name), config.vocab_size, name == "eos_token_id")
        Settings(**{name: values[name] for name in Settings.__dataclass_fields__
                    if values.get(name) is not None})
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from None
    if left_out := not_done(values):
        warnings.warn(f"generation_config.json: k2ref does nothing about {', '.join(left_out)}; "
                      "it writes as if they were not there", stacklevel=3)
    return tokenizer, values
