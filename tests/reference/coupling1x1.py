"""The 1×1-coupling flow in float64 NumPy from a state dict, one image at a time."""

import math

import numpy as np

from tests.reference.glow import convolve as padded_convolution
from tests.reference.glow import squeeze


def log_prob(state, image_shape, steps, limits, images):
    """Return (latent canvas, log_det, log density) of `images` (B, C, H, W)."""
    state = {name: value.detach().double().numpy() for name, value in state.items()}
    results = [_one(state, image_shape, steps, limits, image) for image in images]
    return tuple(np.stack(column) for column in zip(*results, strict=True))


def _one(state, image_shape, steps, limits, image):
    h, index = np.asarray(image, dtype=np.float64), np.arange(math.prod(image_shape))
    index = index.reshape(image_shape)
    canvas, log_det = np.full(math.prod(image_shape), np.nan), 0.0
    for level, count in enumerate(steps):
        h, index = squeeze(h), squeeze(index)
        for step in range(count):
            h, term = _step(state, level, step, limits, h)
            log_det += term
        if level < len(steps) - 1 and h.shape[1] <= 4 and h.shape[2] <= 4:
            half = len(h) // 2
            canvas[index[:half]] = h[:half]
            h, index = h[half:], index[half:]
    canvas[index] = h
    log_density = np.sum(-0.5 * canvas**2 - 0.5 * math.log(2 * math.pi)) + log_det
    return canvas.reshape(image_shape), log_det, log_density


def _step(state, level, step, limits, h):
    channels, height, width = h.shape
    half = channels // 2
    h, log_scale = _act_norm(state, f"levels.{level}.norms.{step}", h)
    log_det = height * width * log_scale.sum()
    first, second = h[:half], h[half:]
    kept, moved = (second, first) if step % 2 == 0 else (first, second)
    out = _net(state, f"levels.{level}.nets.{step}", kept)
    limit, shift_limit = limits
    raw, shift = out[:half], out[half:]
    shift = shift if shift_limit is None else shift_limit * np.tanh(shift / shift_limit)
    log_scale = -np.log1p(np.exp(-raw - 2)) if limit is None else limit * np.tanh(raw / limit)
    moved = moved * np.exp(log_scale) + shift
    pair = [moved, kept] if step % 2 == 0 else [kept, moved]
    return np.concatenate(pair), log_det + log_scale.sum()


def _net(state, name, h):
    height, width = h.shape[1:]
    small = height == width and height in (1, 2, 4)
    convolve = _valid_convolution if small else padded_convolution
    first, second = state[f"{name}.conv1.weight"], state[f"{name}.conv2.weight"]
    h, _ = _act_norm(state, f"{name}.norm", convolve(h, first, np.zeros(len(first))))
    h = np.maximum(h, 0)
    h = _unsqueeze(h) if small and height > 1 else h
    h = convolve(h, second, state[f"{name}.conv2.bias"])
    h = h * np.exp(3 * state[f"{name}.log_gain"])
    return _unsqueeze(h) if small and height > 1 else h


def _act_norm(state, name, h):
    log_scale = 12 * np.tanh(state[f"{name}.log_scale"] / 12)
    bias = state[f"{name}.bias"]
    return (h + bias[:, None, None]) * np.exp(log_scale)[:, None, None], log_scale


def _valid_convolution(h, weight, bias):
    side = weight.shape[-1]
    height, width = h.shape[1] - side + 1, h.shape[2] - side + 1
    out = np.zeros((len(weight), height, width)) + bias[:, None, None]
    for row in range(height):
        for column in range(width):
            window = h[:, row : row + side, column : column + side]
            out[:, row, column] += np.einsum("dcij,cij->d", weight, window)
    return out


def _unsqueeze(h):
    channels, height, width = h.shape
    out = np.empty((channels // 4, 2 * height, 2 * width))
    for channel in range(channels // 4):
        for row in range(2):
            for column in range(2):
                out[channel, row::2, column::2] = h[4 * channel + 2 * row + column]
    return out
