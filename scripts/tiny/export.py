"""Write trained weights in the layout of the official checkpoint, to the bit."""

import json

import numpy as np

from k2ref import quant
from scripts.tiny import weights as tiny_model

SHARD = "model-00001-of-000001.safetensors"
# The last norm is written twice as large, a power of two and so to the bit: the most likely token
# stays the same, and sampling at temperature 1 is what sampling at 0.5 would be. With the factor
# of the loss (`tiny_net.FLATTER`) that is 0.25: in a trail of 300 pages, where one unlikely digit
# ends all, 3 of 5 runs came through without it.
SHARPER = {"model.norm.weight": 2.0}


def tensors_of(weights):
    """Return the checkpoint's tensors: name -> (dtype name, array), experts packed one by one."""
    out = {}
    for name, w in weights.items():
        w = w * SHARPER.get(name, 1.0)
        if name.endswith(tiny_model.ROUTER_BIAS):
            out[name] = ("F32", w.numpy())
        elif not tiny_model.is_expert(name):
            out[name] = ("BF16", quant.f32_to_bf16(w.numpy()))
        else:
            prefix, part = name.rsplit(".", 1)
            trained = tiny_model.int4(w).numpy()
            for e, matrix in enumerate(w.numpy()):
                packed = quant.quantize_int4(matrix)
                assert np.array_equal(packed.dequantize(), trained[e]), f"{name} {e}"
                full = f"{prefix}.{e}.{part}"
                out[f"{full}.weight_packed"] = ("I32", packed.packed)
                out[f"{full}.weight_scale"] = ("BF16", packed.scale)
                out[f"{full}.weight_shape"] = ("I32", np.array(packed.shape, np.int32))
    return out


def export(weights, directory):
    """Write the shard and its index; the name has five digits, then six, as K2's shards have."""
    tensors = tensors_of(weights)
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape),
                        "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(array.tobytes() for _, array in tensors.values())
    (directory / SHARD).write_bytes(len(text).to_bytes(8, "little") + text + body)
    index = {"metadata": {"total_size": at}, "weight_map": dict.fromkeys(tensors, SHARD)}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    print(f"wrote {len(tensors)} tensors, {at} bytes; INT4 -> float equals the trained weights")
