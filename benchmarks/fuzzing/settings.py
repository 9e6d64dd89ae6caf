"""Recipes and preprocessing: valid ones, and what a hand or another tool makes of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tomli_w

from fuzzing.byte_mutations import mutate_bytes

Fields = dict[str, Any]

ODD: tuple[Any, ...] = (
    0, -1, 1, 9, 300, 2**63, 0.5, -0.5, float("nan"), float("inf"), "", "auto", "none", "\x1b[2J",
    "x\ny", "a" * 5000, True, False, [], [1], ["x"], [None], [[1]], {}, {"a": 1},
    {"height": 8}, None,
    [0.5, 0.5], [0.0, 0.0, 0.0], ["0.5"], [1e300] * 3, {"shortest_edge": 0}, [True], "8", 10**12,
)  # fmt: skip

CHOICES: Fields = {
    "samples": [1, 16, 512], "weight_bits": [2, 4, 7, 8], "first_last_bits": [8],
    "activation_bits": [4, 8], "granularity": ["per-channel", "per-tensor"],
    "symmetric": [True, False], "calibration": ["max", "mse", "aciq", "kl", "percentile"],
    "bias_centroids": [1, 16, 256], "equalize": [True, False], "bias_correction": [True, False],
    "fallback": [True, False], "epochs": [1, 3], "max_minutes": [0.5, 3], "lr": [0.1],
    "optimizer": ["adam", "sgd"], "seed": [0, 7], "target": ["cpu", "cpu-avx2"],
    "codebook": [16, 256, "off"],
}  # fmt: skip
"""Of each option of a recipe values that go with any others."""

SMALL_IMAGES: Fields = {"mean": [0.5], "std": [0.25], "resize": 8, "crop": 8, "layout": "nchw"}
OF_A_PROCESSOR: Fields = {
    "do_normalize": True, "image_mean": [0.5], "image_std": [0.25], "do_rescale": True,
    "rescale_factor": 1 / 255, "do_resize": True, "size": {"height": 8, "width": 8}, "resample": 2,
    "do_center_crop": True, "crop_size": 8,
}  # fmt: skip


def valid_recipe(rng: np.random.Generator) -> Fields:
    """Some options of a recipe, of which none contradict each other."""
    fields = {
        name: values[rng.integers(len(values))]
        for name, values in CHOICES.items()
        if rng.random() < 0.3
    }
    if rng.random() < 0.3:
        fields["layers"] = [{"pattern": "*", "weight_bits": int(rng.integers(2, 9))}]
    return fields


def mutate_table(fields: Fields, rng: np.random.Generator) -> Fields:
    """The fields with one to three of them gone, renamed, or of odd values."""
    fields = json.loads(json.dumps(fields))
    for _ in range(int(rng.integers(1, 4))):
        _mutate(fields, rng)
    return fields


def _mutate(fields: Fields, rng: np.random.Generator) -> None:
    name = str(rng.choice([*fields, "unheard", *CHOICES, "layers", "learn", "exclude"]))
    how = int(rng.integers(4))
    if how == 0:
        fields.pop(name, None)
    elif how == 1:
        fields[str(rng.choice(["", "x\x1b", "mean ", name.upper()]))] = fields.pop(name, 1)
    elif isinstance(fields.get(name), dict) and fields[name] and rng.random() < 0.7:
        _mutate(fields[name], rng)
    else:
        fields[name] = ODD[rng.integers(len(ODD))]


def as_toml(fields: Fields, rng: np.random.Generator, damage: bool) -> bytes:
    """The fields as TOML, which has no null; damaged, or nested out of reason, on demand."""
    text = tomli_w.dumps(_without_none(fields)).encode()
    return _damaged(text, rng, b"x = " + b"[" * 3000) if damage else text


def as_json(fields: Fields, rng: np.random.Generator, damage: bool) -> bytes:
    """The fields as JSON."""
    text = json.dumps(fields).encode()
    return _damaged(text, rng, b"[" * 100_000) if damage else text


def _damaged(text: bytes, rng: np.random.Generator, deep: bytes) -> bytes:
    return deep if rng.random() < 0.05 else mutate_bytes(text, rng)[0]


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_none(each) for each in value if each is not None]
    return value
