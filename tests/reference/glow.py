"""Glow written step by step in float64 NumPy from a state dict, one image position at a time."""

import math

import numpy as np


def log_prob(state, image_shape, levels, steps, coupling, limits, images):
    """Return (latent canvas, log_det, log density) of `images` (B, C, H, W)."""
    state = {name: value.detach().double().numpy() for name, value in state.items()}
    results = [_one(state, image_shape, levels, steps, coupling, limits, image) for image in images]
    return tuple(np.stack(column) for column in zip(*results, strict=True))


def canvas_positions(image_shape, levels):
    """For each level, where in the flattened canvas its latents lie: they stay at the pixel that
    they would have come from, were every step of the flow the identity."""
    index = np.arange(math.prod(image_shape)).reshape(image_shape)
    leaving = []
    for level in range(levels):
        index = squeeze(index)
        if level < levels - 1:
            half = len(index) // 2
            leaving.append(index[:half])
            index = index[half:]
    return [*leaving, index]


def _one(state, image_shape, levels, steps, coupling, limits, image):
    h = np.asarray(image, dtype=np.float64)
    log_det = 0.0
    canvas = np.full(math.prod(image_shape), np.nan)
    positions = canvas_positions(image_shape, levels)
    for level in range(levels):
        h = squeeze(h)
        for step in range(steps):
            h, term = _step(state, level, step, coupling, limits, h)
            log_det += term
        if level < levels - 1:
            half = len(h) // 2
            leaving, h = h[:half], h[half:]
            name = f"priors.{level}.convolution"
            statistics = convolve(h, state[f"{name}.weight"], state[f"{name}.bias"])
            mean, log_std = statistics[:half], 6 * np.tanh(statistics[half:] / 6)
        else:
            leaving = h
            ones = np.ones_like(h)
            mean = state[f"priors.{level}.mean"][0] * ones
            log_std = 6 * np.tanh(state[f"priors.{level}.log_std"][0] / 6) * ones
        log_det -= log_std.sum()
        canvas[positions[level]] = (leaving - mean) / np.exp(log_std)
    log_density = np.sum(-0.5 * canvas**2 - 0.5 * math.log(2 * math.pi)) + log_det
    return canvas.reshape(image_shape), log_det, log_density


def _step(state, level, step, coupling, limits, h):
    channels, height, width = h.shape
    name = f"levels.{level}.convolutions"
    part = {
        key: state[f"{name}.{key}"][step]
        for key in ("log_scale", "bias", "lower", "upper", "log_diagonal", "permutation", "sign")
    }
    # ActNorm.
    scale = np.exp(12 * np.tanh(part["log_scale"] / 12))
    h = (h + part["bias"][:, None, None]) * scale[:, None, None]
    log_det = height * width * np.log(scale).sum()
    # Invertible convolution P L U, factor by factor.
    diagonal = part["sign"] * np.exp(12 * np.tanh(part["log_diagonal"] / 12))
    upper = np.triu(part["upper"], 1) + np.diag(diagonal)
    lower = np.tril(part["lower"], -1) + np.eye(channels)
    h = _mix(part["permutation"], _mix(lower, _mix(upper, h)))
    log_det += height * width * np.log(np.abs(diagonal)).sum()
    # Coupling.
    half = channels // 2
    kept, moved = h[:half], h[half:]
    net = f"levels.{level}.nets.{step}"
    out = kept
    for layer in ("conv1", "conv2", "conv3"):
        out = convolve(out, state[f"{net}.{layer}.weight"], state[f"{net}.{layer}.bias"])
        if layer != "conv3":
            out = np.maximum(out, 0)
    limit, shift_limit = limits
    shift = out if coupling == "additive" else out[half:]
    shift = shift if shift_limit is None else shift_limit * np.tanh(shift / shift_limit)
    if coupling == "additive":
        moved = moved + shift
    else:
        raw = out[:half]
        one_sided = -np.log1p(np.exp(-raw - 2))
        log_scale = one_sided if limit is None else limit * np.tanh(raw / limit)
        moved = np.exp(log_scale) * moved + shift
        log_det += log_scale.sum()
    return np.concatenate([kept, moved]), log_det


def squeeze(h):
    channels, height, width = h.shape
    out = np.empty((4 * channels, height // 2, width // 2), dtype=h.dtype)
    for channel in range(channels):
        for row in range(2):
            for column in range(2):
                out[4 * channel + 2 * row + column] = h[channel, row::2, column::2]
    return out


def _mix(matrix, h):
    return np.einsum("dc,chw->dhw", matrix, h)


def convolve(h, weight, bias):
    """Cross-correlation with zero padding that keeps the size."""
    _, height, width = h.shape
    side = weight.shape[-1]
    padded = np.pad(h, ((0, 0), (side // 2, side // 2), (side // 2, side // 2)))
    out = np.zeros((len(weight), height, width)) + bias[:, None, None]
    for row in range(height):
        for column in range(width):
            window = padded[:, row : row + side, column : column + side]
            out[:, row, column] += np.einsum("dcij,cij->d", weight, window)
    return out
