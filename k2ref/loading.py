"""Loading: a directory becomes a Model. This is the only file that names tensors.

Every weight is bound once, as a view of the memory map, and nothing is converted.

Chapter 11.
"""

from pathlib import Path

from k2ref import ops
from k2ref.attention import AttentionWeights
from k2ref.checkpoint.companions import read_small_files
from k2ref.checkpoint.config import Config
from k2ref.checkpoint.weights import Checkpoint
from k2ref.model import Layer, Model
from k2ref.moe import Mlp, Moe
from k2ref.streaming.pages import File
from k2ref.streaming.stream import STREAM_FROM, Stream

EMBEDDED = Path(__file__).parent / "tiny"


def load(path=None, threads=None, memory=None, lock=False, on_progress=None, style=None):
    """Open a checkpoint directory as downloaded from the hub; without a path, the embedded model.

    str or Path, int, int, bool, callable, str -> Model

    `threads` defaults to the physical cores. A directory without `tiktoken.model` gives a model
    whose `tokenizer` is None. A small checkpoint is mapped, not read. Of a large one, or with a
    budget of `memory` bytes, the dense weights are read here, `on_progress(done, total)` counting
    bytes, and experts when they are chosen (stream.py); `lock` asks the system to keep what is
    read here, whatever others need. `style` is that of its conversations, by default what the
    files say (styles.py).
    Raises: ConfigError, CheckpointError, TokenizerError; ValueError for threads, K2REF_KERNELS, or
    a budget that is too small; ChatError for a style that is none.
    """
    path = EMBEDDED if path is None else Path(path)
    threads = ops.n_threads(threads)
    ops.kernels_name()  # refuses a K2REF_KERNELS that this machine cannot run
    config = Config.from_dir(path)
    tokenizer, defaults = read_small_files(path, config, style)
    checkpoint = Checkpoint.open(path, config)
    files = [File(shard) for shard in checkpoint.shards]
    stream = None
    if memory is not None or sum(len(file.bytes) for file in files) >= STREAM_FROM:
        stream = Stream(checkpoint, config, files, memory, lock)
    W, D = config.vocab_size, config.hidden_size
    model = Model(
        config=config,
        tokenizer=tokenizer,
        files=files,
        stream=stream,
        embed_tokens=checkpoint.weight("model.embed_tokens", (W, D)),
        layers=[bind_layer(checkpoint, config, i) for i in range(config.num_hidden_layers)],
        norm=checkpoint.vector("model.norm.weight", (D,)),
        lm_head=checkpoint.weight("lm_head", (W, D)),
        checkpoint=checkpoint,
        threads=threads,
        generation_defaults=defaults,
    )
    if stream:
        stream.read_dense(model.embed_tokens, model.lm_head, on_progress)
    return model


def bind_layer(checkpoint, config, i):
    """Find layer i's weights; views, no copies.

    Raises: CheckpointError
    """
    at, D = f"model.layers.{i}.", (config.hidden_size,)
    if config.is_moe_layer(i):
        mlp = bind_moe(checkpoint, config, at + "mlp.")
    else:
        mlp = bind_mlp(checkpoint, config, at + "mlp.", config.intermediate_size)
    return Layer(checkpoint.vector(at + "input_layernorm.weight", D),
                 bind_attention(checkpoint, config, at + "self_attn."),
                 checkpoint.vector(at + "post_attention_layernorm.weight", D), mlp)


def bind_attention(checkpoint, config, at):
    """Find the weights of the attention whose names begin with `at`; views, no copies.

    Raises: CheckpointError
    """
    D, H, C, Q = (config.hidden_size, config.num_attention_heads, config.kv_lora_rank,
                  config.q_lora_rank)
    N, R, V = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    direct = Q is None
    kv_b = checkpoint.weight(at + "kv_b_proj", (H * (N + V), C))
    starts = range(0, H * (N + V), N + V)
    return AttentionWeights(
        q_proj=checkpoint.weight(at + "q_proj", (H * (N + R), D)) if direct else None,
        q_a_proj=None if direct else checkpoint.weight(at + "q_a_proj", (Q, D)),
        q_a_layernorm=None if direct else checkpoint.vector(at + "q_a_layernorm.weight", (Q,)),
        q_b_proj=None if direct else checkpoint.weight(at + "q_b_proj", (H * (N + R), Q)),
        kv_a_proj_with_mqa=checkpoint.weight(at + "kv_a_proj_with_mqa", (C + R, D)),
        kv_a_layernorm=checkpoint.vector(at + "kv_a_layernorm.weight", (C,)),
        kv_b_proj=kv_b,
        o_proj=checkpoint.weight(at + "o_proj", (D, H * V)),
        W_UK=[kv_b.rows(r, r + N) for r in starts],
        W_UV=[kv_b.rows(r + N, r + N + V) for r in starts],
    )


def bind_mlp(checkpoint, config, at, F):
    """Find the MLP of hidden width F whose names begin with `at`; views, no copies.

    Raises: CheckpointError
    """
    D = config.hidden_size
    return Mlp(checkpoint.weight(at + "gate_proj", (F, D)),
               checkpoint.weight(at + "up_proj", (F, D)),
               checkpoint.weight(at + "down_proj", (D, F)))


def bind_moe(checkpoint, config, at):
    """Find the mixture of experts whose names begin with `at`.

    Raises: CheckpointError
    """
    E, F = config.n_routed_experts, config.moe_intermediate_size
    return Moe(
        gate=checkpoint.weight(at + "gate", (E, config.hidden_size)),
        bias=checkpoint.vector(at + "gate.e_score_correction_bias", (E,)),
        shared=bind_mlp(checkpoint, config, at + "shared_experts.", config.n_shared_experts * F),
        find_expert=lambda e: bind_mlp(checkpoint, config, f"{at}experts.{e}.", F),
    )
