"""The oracle: transformers' own DeepseekV3 on the dequantised weights of a checkpoint directory.

Nothing here is k2ref's: safetensors reads the files, compressed-tensors and PyTorch decode the
weights, transformers computes, in float32 with its plain ("eager") attention. `golden.py`
stores what it says; `tests/test_oracle.py` asks it live. Needs the `oracle` extra.
"""

import json
import re
from pathlib import Path

import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from safetensors.torch import load_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

torch.set_num_threads(1)  # tiny matrices gain nothing by more, and sums keep their order
BLOCK = 128
# Not of the language model, or only about how the weights are stored.
NOT_PASSED_ON = {"architectures", "auto_map", "model_type", "quantization_config", "torch_dtype",
                 "dtype", "num_nextn_predict_layers"}  # fmt: skip


def reference_model(directory):
    """Build transformers' model of a checkpoint in any of the official layouts."""
    values = json.loads((Path(directory) / "config.json").read_text())
    values = values.get("text_config", values)
    config = DeepseekV3Config(
        **{name: value for name, value in values.items() if name not in NOT_PASSED_ON},
        num_nextn_predict_layers=0, attn_implementation="eager", experts_implementation="eager",
    )  # fmt: skip
    model = DeepseekV3ForCausalLM(config).to(torch.float32).eval()
    model.load_state_dict(_state_dict(read_weights(directory), config))
    return model


def read_weights(directory):
    """Read and dequantise a checkpoint: `{name without the language_model. prefix: float32}`."""
    stored = {}
    for file in sorted(Path(directory).glob("*.safetensors")):
        stored.update(load_file(file))
    weights = {}
    for name, tensor in stored.items():
        base = name.removesuffix("_packed").removesuffix("_scale_inv")
        if name.endswith((".weight_scale", ".weight_shape", ".weight_scale_inv")):
            continue
        if name.endswith(".weight_packed"):
            shape = torch.Size(stored[base + "_shape"].tolist())
            q = unpack_from_int32(tensor, 4, shape).to(torch.float32)
            scale = stored[base + "_scale"].to(torch.float32)
            tensor = q * scale.repeat_interleave(q.shape[1] // scale.shape[1], dim=1)
        elif name + "_scale_inv" in stored:
            scale = stored[name + "_scale_inv"]
            scale = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
            tensor = tensor.to(torch.float32) * scale[: tensor.shape[0], : tensor.shape[1]]
        weights[base.removeprefix("language_model.")] = tensor.to(torch.float32)
    return weights


def _state_dict(weights, config):
    """Stack each layer's experts as transformers has them, and drop what it does not know."""
    experts = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.0\.gate_proj\.weight")
    n_layers = config.num_hidden_layers
    state = {}
    for name, weight in weights.items():
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        if layer and int(layer[1]) >= n_layers or name.endswith("rotary_emb.inv_freq"):
            continue
        if name.startswith(("vision_tower.", "mm_projector.")):
            continue
        if ".experts." not in name:
            state[name] = weight
        elif first := experts.fullmatch(name):
            all_of = [
                [weights[f"{first[1]}.{e}.{part}_proj.weight"] for part in ("gate", "up", "down")]
                for e in range(config.n_routed_experts)
            ]
            gate_up = [torch.cat([gate, up]) for gate, up, _ in all_of]
            state[first[1] + ".gate_up_proj"] = torch.stack(gate_up)
            state[first[1] + ".down_proj"] = torch.stack([down for _, _, down in all_of])
    return state


@torch.no_grad()
def run(model, ids):
    """Run the model on one prompt; return logits, hidden states and the layers' router logits.

    (T,) -> (T, W), (L+1, T, D), [(T, E), ...]

    NumPy float32. hidden[0] are the embeddings and hidden[i] the residual after layer i, but for
    the last one, which is after the final norm.
    """
    out = model(torch.tensor(ids)[None], output_hidden_states=True, output_router_logits=True)
    hidden = torch.cat(out.hidden_states)
    return out.logits[0].numpy(), hidden.numpy(), [router.numpy() for router in out.router_logits]


@torch.no_grad()
def continue_greedily(model, ids, n):
    """Append the n likeliest next tokens; return all ids and the smallest lead of a winner."""
    ids, lead = list(ids), float("inf")
    for _ in range(n):
        best = model(torch.tensor(ids)[None]).logits[0, -1].topk(2)
        lead = min(lead, (best.values[0] - best.values[1]).item())
        ids.append(best.indices[0].item())
    return ids, lead
