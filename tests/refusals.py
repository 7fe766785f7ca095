"""Open a checkpoint directory, and hold what refuses it to what an error must say."""

import pytest

from k2ref.checkpoint.config import Config
from k2ref.checkpoint.weights import Checkpoint, CheckpointError


def open_dir(path) -> Checkpoint:
    """Open a directory as the checkpoint that its config.json describes."""
    return Checkpoint.open(path, Config.from_dir(path))


def refused(path, *words):
    """Open a directory that must be refused, and hold the one sentence to what it must say."""
    with pytest.raises(CheckpointError) as error:
        open_dir(path)
    message = str(error.value)
    for word in ("expected", "found", *words):
        assert str(word) in message
    assert "\n" not in message
