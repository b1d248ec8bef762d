"""What `transformers` computes from a model folder, written in numpy, family by family.

It reads `config.json` and `model.safetensors` alone and knows nothing of keras-hub, so that a
value that keras-hub's converter does not pass on shows as a difference of logits. Gemma 3n and
Gemma 4 are not among the families.
"""

import json

import numpy as np
from safetensors.numpy import load_file


def logits(folder, ids, **changes):
    """Logits `(batch, length, vocab)` of a folder's model for rows without padding.

    Args:
        folder: path of the folder.
        ids: int `(batch, length)`.
        **changes: to `config.json`, for values that it writes in a way that is not read here.
    """
    config = json.loads((folder / "config.json").read_text())
    config = config.get("text_config", config) | changes
    tensors = {
        name.replace("language_model.", ""): value.astype("float64")
        for name, value in load_file(folder / "model.safetensors").items()
    }
    compute = _gpt2 if config["model_type"] == "gpt2" else _decoder
    return np.stack([compute(config, tensors, row) for row in np.asarray(ids)])


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {"silu": silu, "gelu_pytorch_tanh": gelu, "gelu_new": gelu}


def cap(x, limit):
    return limit * np.tanh(x / limit) if limit else x


def frequencies(config, size, theta):
    """Inverse wavelengths of the rotary embedding, and what its cosines are multiplied with."""
    scaling = config.get("rope_scaling") or {}
    inverse = theta ** -(np.arange(0, size, 2) / size)
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "linear":
        inverse = inverse / scaling["factor"]
    elif kind == "llama3":
        length = scaling["original_max_position_embeddings"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        waves = 2 * np.pi / inverse
        smooth = np.clip((length / waves - low) / (high - low), 0, 1)
        inverse = (1 - smooth) * inverse / scaling["factor"] + smooth * inverse
    elif kind == "yarn":
        length = scaling["original_max_position_embeddings"]

        def dimension(rotations):
            return size * np.log(length / (rotations * 2 * np.pi)) / (2 * np.log(theta))

        low, high = dimension(scaling["beta_fast"]), dimension(scaling["beta_slow"])
        low, high = max(low, 0), min(high, size - 1)
        ramp = np.clip((np.arange(size // 2) - low) / (high - low), 0, 1)
        inverse = inverse / scaling["factor"] * ramp + inverse * (1 - ramp)
        return inverse, 0.1 * np.log(scaling["factor"]) + 1
    return inverse, 1.0


def rotate(x, inverse, factor):
    """Rotates `(length, heads, size)` to positions."""
    angles = np.outer(np.arange(len(x)), inverse)[:, None]
    angles = np.concatenate([angles, angles], -1)
    first, second = np.split(x, 2, -1)
    turned = np.concatenate([-second, first], -1)
    return factor * (x * np.cos(angles) + turned * np.sin(angles))


def slides(config, layer):
    """Whether a layer has a sliding window."""
    kind = config["model_type"]
    if config.get("layer_types"):
        return config["layer_types"][layer] == "sliding_attention"
    if kind in ("qwen2", "qwen3"):
        return config["use_sliding_window"] and layer >= config["max_window_layers"]
    if kind in ("qwen2_moe", "qwen3_moe"):
        return config["use_sliding_window"]
    return layer % 2 == 0 if kind == "gemma2" else bool(config.get("sliding_window"))


def mask(length, window=None):
    distance = np.arange(length)[:, None] - np.arange(length)
    return (distance >= 0) & (distance < (window or length))


def attend(query, key, value, seen, scale, soft_cap=None, sinks=None):
    """Grouped attention: `(length, heads, size)` on `(length, groups, size)`."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (np.repeat(x, repeats, axis=1) for x in (key, value))
    scores = cap(np.einsum("qhd,khd->hqk", query, key) * scale, soft_cap)
    scores = np.where(seen, scores, -np.inf)
    if sinks is not None:
        column = np.broadcast_to(sinks[:, None, None], (*scores.shape[:2], 1))
        scores = np.concatenate([scores, column], -1)
    shares = softmax(scores)[..., : len(key)]
    return np.einsum("hqk,khd->qhd", shares, value)


def experts_of(config, scores):
    """The weight of each expert for each token, 0 for those that are not chosen."""
    count = config["num_experts_per_tok"]
    kind = config["model_type"]
    chosen = np.argsort(-scores, -1)[:, :count]
    picked = np.zeros_like(scores)
    shares = softmax(scores)
    for row, places in enumerate(chosen):
        if kind == "gpt_oss":
            picked[row, places] = softmax(scores[row, places])
        else:
            part = shares[row, places]
            whole = part.sum() if config.get("norm_topk_prob", True) else 1.0
            picked[row, places] = part / whole
    return picked


def delta_rule(config, mixed, write, decay):
    """Gated linear attention: keys and values are written into a state that decays."""
    groups, size = config["linear_num_key_heads"], config["linear_key_head_dim"]
    heads, depth = config["linear_num_value_heads"], config["linear_value_head_dim"]
    query, key, value = np.split(mixed, [groups * size, 2 * groups * size], -1)
    query, key = (x.reshape(-1, groups, size).repeat(heads // groups, 1) for x in (query, key))
    query, key = (x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6) for x in (query, key))
    value = value.reshape(-1, heads, depth)
    state = np.zeros((heads, size, depth))
    read = []
    for i in range(len(mixed)):
        state = state * decay[i][:, None, None]
        error = value[i] - np.einsum("hkv,hk->hv", state, key[i])
        state = state + np.einsum("hk,hv->hkv", key[i], write[i][:, None] * error)
        read.append(np.einsum("hkv,hk->hv", state, query[i]) / np.sqrt(size))
    return np.stack(read)


def unpacked(blocks, scales):
    """MXFP4 as numbers: two of 4 bits in each byte, the low half first."""
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values = np.concatenate([values, -values])
    blocks = blocks.astype("int64")
    pairs = np.stack([values[blocks & 15], values[blocks >> 4]], -1)
    numbers = pairs.reshape(*blocks.shape[:-1], 32) * 2.0 ** (scales[..., None] - 127)
    return numbers.reshape(*blocks.shape[:2], -1)


def _decoder(config, tensors, ids):
    kind = config["model_type"]
    width, heads = config["hidden_size"], config["num_attention_heads"]
    size = config.get("head_dim") or width // heads
    is_gemma, is_3_5 = kind.startswith("gemma"), kind.startswith("qwen3_5")
    activation = ACTIVATIONS[config.get("hidden_activation") or config["hidden_act"]]

    def norm(x, name):
        scaled = x / np.sqrt((x**2).mean(-1, keepdims=True) + config["rms_norm_eps"])
        from_1 = is_gemma or (is_3_5 and "linear_attn" not in name)
        return scaled * (tensors[f"{name}.weight"] + from_1)

    def linear(x, name):
        return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0.0)

    def gated(x, name, names=("gate_proj", "up_proj", "down_proj")):
        gate, up, down = (f"{name}.{part}" for part in names)
        return linear(activation(linear(x, gate)) * linear(x, up), down)

    def feed_forward(x, start):
        if kind == "mixtral":
            start += "block_sparse_moe"
            shares = experts_of(config, linear(x, f"{start}.gate"))
            parts = (gated(x, f"{start}.experts.{i}", ("w1", "w3", "w2")) for i in range(99))
        elif kind == "gpt_oss":
            start += "mlp"
            shares = experts_of(config, linear(x, f"{start}.router"))
            parts = (clamped(x, f"{start}.experts.", i) for i in range(99))
        elif f"{start}mlp.gate.weight" in tensors:
            start += "mlp"
            shares = experts_of(config, linear(x, f"{start}.gate"))
            one = fused if is_3_5 else gated
            parts = (one(x, f"{start}.experts.{i}") for i in range(99))
        else:
            return gated(x, f"{start}mlp")
        total = sum(s[:, None] * part for s, part in zip(shares.T, parts, strict=False))
        if f"{start}.shared_expert_gate.weight" in tensors:
            shared = gated(x, f"{start}.shared_expert")
            total = total + sigmoid(linear(x, f"{start}.shared_expert_gate")) * shared
        return total

    def fused(x, name):
        start, _, i = name.rpartition(".")
        gate, up = np.split(x @ tensors[f"{start}.gate_up_proj"][int(i)].T, 2, -1)
        return (activation(gate) * up) @ tensors[f"{start}.down_proj"][int(i)].T

    def clamped(x, start, i):
        parts = []
        for name in ("gate_up_proj", "down_proj"):
            weights = unpacked(tensors[f"{start}{name}_blocks"], tensors[f"{start}{name}_scales"])
            parts += [weights[i], tensors[f"{start}{name}_bias"][i]]
        x = x @ parts[0].T + parts[1]
        limit = config["swiglu_limit"]
        gate, up = np.minimum(x[:, ::2], limit), np.clip(x[:, 1::2], -limit, limit)
        return (gate * sigmoid(1.702 * gate) * (up + 1)) @ parts[2].T + parts[3]

    def attention(x, start, layer):
        name = f"{start}self_attn."
        parts = [linear(x, f"{name}{p}_proj").reshape(len(x), -1, size) for p in "qkv"]
        if is_3_5:
            query, gates = np.split(parts[0].reshape(len(x), heads, 2 * size), 2, -1)
            parts[0] = query
        if f"{name}q_norm.weight" in tensors:
            parts[:2] = norm(parts[0], f"{name}q_norm"), norm(parts[1], f"{name}k_norm")
        window = config["sliding_window"] if slides(config, layer) else None
        theta, scaling = config["rope_theta"], config
        if kind == "gemma3_text" and window:
            theta, scaling = config["rope_local_base_freq"], {}
        if config.get("no_rope_layers", [1] * 99)[layer]:
            rope = config.get("rope_parameters") or {}
            turned = int(size * rope.get("partial_rotary_factor", 1))
            turn = frequencies(scaling, turned, theta)
            for i in (0, 1):
                part = rotate(parts[i][..., :turned], *turn)
                parts[i] = np.concatenate([part, parts[i][..., turned:]], -1)
        scale = (config.get("query_pre_attn_scalar") or size) ** -0.5
        soft_cap, sinks = config.get("attn_logit_softcapping"), tensors.get(f"{name}sinks")
        mixed = attend(*parts, mask(len(x), window), scale, soft_cap, sinks)
        if is_3_5:
            mixed = mixed * sigmoid(gates)
        return linear(mixed.reshape(len(x), -1), f"{name}o_proj")

    def linear_attention(x, start, layer):
        name = f"{start}linear_attn."
        mixed = linear(x, f"{name}in_proj_qkv")
        kernel = tensors[f"{name}conv1d.weight"][:, 0]
        padded = np.pad(mixed, ((kernel.shape[1] - 1, 0), (0, 0)))
        taps = range(kernel.shape[1])
        mixed = silu(sum(padded[i : i + len(x)] * kernel[:, i] for i in taps))
        steps = np.log1p(np.exp(linear(x, f"{name}in_proj_a") + tensors[f"{name}dt_bias"]))
        decay = np.exp(-np.exp(tensors[f"{name}A_log"]) * steps)
        read = delta_rule(config, mixed, sigmoid(linear(x, f"{name}in_proj_b")), decay)
        gates = linear(x, f"{name}in_proj_z").reshape(read.shape)
        read = norm(read, f"{name}norm") * silu(gates)
        return linear(read.reshape(len(x), -1), f"{name}out_proj")

    x = tensors["model.embed_tokens.weight"][ids] * (np.sqrt(width) if is_gemma else 1)
    for layer in range(config["num_hidden_layers"]):
        start = f"model.layers.{layer}."
        is_linear = f"{start}linear_attn.A_log" in tensors
        mix = linear_attention if is_linear else attention
        update = mix(norm(x, f"{start}input_layernorm"), start, layer)
        if f"{start}pre_feedforward_layernorm.weight" in tensors:
            x = x + norm(update, f"{start}post_attention_layernorm")
            update = feed_forward(norm(x, f"{start}pre_feedforward_layernorm"), start)
            x = x + norm(update, f"{start}post_feedforward_layernorm")
        else:
            x = x + update
            x = x + feed_forward(norm(x, f"{start}post_attention_layernorm"), start)
    output = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return cap(linear(norm(x, "model.norm"), output), config.get("final_logit_softcapping"))


def _gpt2(config, tensors, ids):
    size = config["n_embd"] // config["n_head"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        scaled = x / np.sqrt((x**2).mean(-1, keepdims=True) + config["layer_norm_epsilon"])
        return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    def linear(x, name):
        return x @ tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    x = tensors["wte.weight"][ids] + tensors["wpe.weight"][: len(ids)]
    for layer in range(config["n_layer"]):
        start = f"h.{layer}."
        parts = np.split(linear(norm(x, f"{start}ln_1"), f"{start}attn.c_attn"), 3, -1)
        parts = [part.reshape(len(x), -1, size) for part in parts]
        mixed = attend(*parts, mask(len(x)), size**-0.5).reshape(len(x), -1)
        x = x + linear(mixed, f"{start}attn.c_proj")
        inner = ACTIVATIONS[config["activation_function"]](
            linear(norm(x, f"{start}ln_2"), f"{start}mlp.c_fc")
        )
        x = x + linear(inner, f"{start}mlp.c_proj")
    return norm(x, "ln_f") @ tensors["wte.weight"].T
