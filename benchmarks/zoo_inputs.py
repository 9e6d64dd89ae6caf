"""Inputs of each zoo model's own kind: photographs, audio, states of a stream, bytes, rows.

A feed is one run of the model, as it is given to a session. Every feed is a pure function of
the model's name, the feed's number and the seed: fresh ones are the numbers that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits, load_iris, load_wine

from onnxq.runtime.session import Arrays, open_session

Colour = Literal["rgb", "bgr", "luma"]


@dataclass(frozen=True)
class Photographs:
    """Photographs resized to the model's input: (x - mean) / std of values from 0 to 255."""

    name: str
    height: int
    width: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    colour: Colour = "rgb"
    text: bool = False

    def feed(self, files: list[Path], index: int, random: np.random.Generator) -> Arrays:
        """One image (1, channels, height, width)."""
        with Image.open(files[index % len(files)]) as opened:
            image = opened.convert("L" if self.colour == "luma" else "RGB")
        image = image.resize((self.width, self.height), Image.Resampling.BICUBIC)
        if self.text:
            _draw_text(image, random)
        pixels = np.asarray(image, np.float32).reshape(self.height, self.width, -1)
        if self.colour == "bgr":
            pixels = pixels[..., ::-1]
        scaled = (pixels - np.float32(self.mean)) / np.float32(self.std)
        return {self.name: np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])}


IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

PHOTOGRAPHS = {
    "light_densenet121": Photographs("data_0", 224, 224, IMAGENET_MEAN, IMAGENET_STD),
    "light_shufflenet": Photographs("gpu_0/data_0", 224, 224, IMAGENET_MEAN, IMAGENET_STD),
    "ppocr_mobile_det": Photographs("image", 640, 640, IMAGENET_MEAN, IMAGENET_STD, text=True),
    "super_resolution": Photographs("input", 224, 224, (0.0,), (255.0,), "luma"),
    "ultraface_masked640": Photographs("input", 480, 640, (127.0,), (128.0,)),
    "ultraface_rfb320": Photographs("input", 240, 320, (127.0,), (128.0,)),
    "yolox_nano_facemask": Photographs("images", 416, 416, colour="bgr"),
    "yunet_n_dynamic": Photographs("input", 320, 320, colour="bgr"),
}


def _draw_text(image: Image.Image, random: np.random.Generator) -> None:
    """A few lines of text, as on signs and screens."""
    draw, letters = (
        ImageDraw.Draw(image),
        np.array(list("abcdefghijklmnoprstuvwxyzABCDE 0123456789")),
    )
    for _ in range(random.integers(2, 7)):
        text = "".join(random.choice(letters, random.integers(4, 18)))
        at = (int(random.integers(0, image.width // 2)), int(random.integers(0, image.height - 60)))
        colour = tuple(int(v) for v in random.integers(0, 256, 3))
        draw.text(at, text, fill=colour, font=ImageFont.load_default(int(random.integers(18, 56))))


def speech(random: np.random.Generator, length: int, rate: int) -> np.ndarray:
    """Sound like speech, within ±1: gliding harmonics under syllables, noise, pauses; (length,)."""
    time = np.arange(length) / rate
    pitch = random.uniform(90, 260) * (1 + 0.2 * np.sin(2 * np.pi * random.uniform(0.5, 3) * time))
    phase = 2 * np.pi * np.cumsum(pitch) / rate + random.uniform(0, 2 * np.pi)
    formants = random.uniform((300, 900, 2200), (900, 2200, 3200))
    voice = np.zeros(length)
    for harmonic in range(1, 25):
        frequency = harmonic * pitch.mean()
        if frequency < rate / 2:
            near = np.exp(-(((frequency - formants) / 300) ** 2)).sum()
            voice += (near + 0.1) / harmonic**0.5 * np.sin(harmonic * phase)
    syllables = np.sin(2 * np.pi * random.uniform(2, 5) * time + random.uniform(0, 6)) > -0.3
    envelope = np.convolve(syllables, np.hanning(rate // 40), "same") / (rate // 80)
    hiss = random.standard_normal(length) * random.uniform(0.002, 0.1)
    sound = voice / (np.abs(voice).max() + 1e-9) * envelope + hiss
    return (sound * random.uniform(0.05, 0.8) / np.abs(sound).max()).astype(np.float32)


def chords(random: np.random.Generator, length: int, rate: int) -> np.ndarray:
    """Sound like an instrument: struck notes of the tempered scale with overtones; (length,)."""
    sound = np.zeros(length)
    for _ in range(random.integers(3, 12)):
        start = int(random.integers(0, length - rate // 8))
        time = np.arange(length - start) / rate
        pitch = 440 * 2 ** (random.integers(-24, 24) / 12)
        note = sum(np.sin(2 * np.pi * k * pitch * time) / k**1.5 for k in range(1, 6))
        sound[start:] += note * np.exp(-time * random.uniform(1, 6)) * random.uniform(0.2, 1)
    sound += random.standard_normal(length) * 0.003
    return (sound * random.uniform(0.1, 0.9) / np.abs(sound).max()).astype(np.float32)


def basic_pitch(random: np.random.Generator) -> Arrays:
    """Two seconds of music at 22,050 Hz."""
    return {"serving_default_input_2:0": chords(random, 43844, 22050)[None, :, None]}


def melspectrogram(random: np.random.Generator) -> Arrays:
    """0.8 seconds at 16 kHz, with the values of 16-bit samples, as openWakeWord feeds them."""
    return {"input": np.round(speech(random, 12800, 16000) * 32767)[None]}


def speech_embeddings(random: np.random.Generator) -> Arrays:
    """Sixteen slowly changing embeddings of 96 features each."""
    steps = random.standard_normal((16, 96)) * random.uniform(2, 12)
    smooth = np.zeros_like(steps)
    for i in range(16):
        smooth[i] = steps[i] if i == 0 else 0.8 * smooth[i - 1] + 0.6 * steps[i]
    return {"x.1": smooth[None].astype(np.float32)}


def text_bytes(random: np.random.Generator) -> Arrays:
    """Sixty-four bytes of words, numbers and punctuation."""
    words = (
        "the",
        "a",
        "of",
        "net",
        "price",
        "total",
        "Smith",
        "Main",
        "Street",
        "2019",
        "7.50",
        ",",
    )
    text = " ".join(random.choice(words, 40)).encode()[:64]
    return {"input": np.frombuffer(text, np.uint8)[None].copy()}


def _rows(name: str, table: np.ndarray, count: int) -> Callable[[np.random.Generator], Arrays]:
    def draw(random: np.random.Generator) -> Arrays:
        rows = table[random.integers(0, len(table), count)]
        return {
            name: (rows + 0.05 * table.std(0) * random.standard_normal(rows.shape)).astype("f4")
        }

    return draw


def digit(random: np.random.Generator) -> Arrays:
    """A handwritten digit at 28×28, bright on dark, 0 to 255."""
    images = load_digits().images
    small = Image.fromarray(images[random.integers(len(images))].astype(np.uint8) * 15)
    large = small.resize((20, 20), Image.Resampling.BICUBIC)
    return {"Input3": np.pad(np.asarray(large, np.float32), 4)[None, None]}


DRAWN: dict[str, Callable[[np.random.Generator], Arrays]] = {
    "basic_pitch_nmp": basic_pitch,
    "oww_melspectrogram": melspectrogram,
    "oww_hey_jarvis": speech_embeddings,
    "tract_byte_bidi_lstm": text_bytes,
    "mnist_opt_wonnx": digit,
    "keras_mlp_example": lambda random: {
        "main_input_input": random.random((1, 100), dtype=np.float32)
    },
    "sklearn_treecl": lambda random: {"input": random.standard_normal((1, 20)).astype(np.float32)},
    "lgbm_classifier": _rows("input", load_wine().data, 1),
    "logreg_iris": _rows("float_input", load_iris().data[:, :2], 3),
}


def _gtcrn_stream(model: Path, random: np.random.Generator) -> Iterator[Arrays]:
    """Short-time spectra of speech, each with the states that the frames before it left."""
    session = open_session(model)
    state = {"conv_cache": (2, 1, 16, 16, 33), "tra_cache": (2, 3, 1, 1, 16)}
    state["inter_cache"] = (2, 1, 33, 16)
    caches = {name: np.zeros(shape, np.float32) for name, shape in state.items()}
    while True:
        sound = speech(random, 32000, 16000)
        for start in range(0, len(sound) - 512, 256):
            spectrum = np.fft.rfft(sound[start : start + 512] * np.sqrt(np.hanning(512)))
            mix = np.stack([spectrum.real, spectrum.imag], -1)[None, :, None].astype(np.float32)
            feed = {"mix": mix, **caches}
            yield feed
            _, *after = session.run(None, feed)
            caches = dict(zip(caches, after, strict=True))


def _silero_stream(model: Path, random: np.random.Generator) -> Iterator[Arrays]:
    """Windows of 32 ms with 4 ms before them, each with the state that the last one left."""
    session, state = open_session(model), np.zeros((2, 1, 128), np.float32)
    while True:
        sound = np.concatenate([speech(random, 16000, 16000), np.zeros(1600, np.float32)])
        for start in range(0, len(sound) - 576, 512):
            window = sound[None, start : start + 576]
            feed = {"input": window, "state": state, "sr": np.array(16000, np.int64)}
            yield feed
            state = session.run(["stateN"], feed)[0]


STREAMS = {
    "gtcrn_stream_simple": _gtcrn_stream,
    "silero_vad": _silero_stream,
    "silero_vad_op18_ifless": _silero_stream,
}

LARGE = {"ppocr_mobile_det": 32, "ultraface_masked640": 32, "yolox_nano_facemask": 48}
"""Models whose runs are long, with fewer samples."""


def make_feeds(name: str, assets: Path, count: int, seed: int = 0) -> list[Arrays]:
    """The first `count` feeds of a zoo model, in order.

    Args:
        name: the model's file name without its ending.
        assets: the folder of assets, with `zoo/` and `imagenet/unlabelled/`.
        count: how many.
        seed: of everything that is drawn.
    """
    if name in STREAMS:
        stream = STREAMS[name](assets / "zoo" / f"{name}.onnx", np.random.default_rng(seed))
        # Every third frame of a stream: neighbours are nearly equal.
        return [feed for _, feed in zip(range(3 * count), stream, strict=False)][::3]
    randoms = [np.random.default_rng([seed, index]) for index in range(count)]
    if name in DRAWN:
        return [DRAWN[name](random) for random in randoms]
    files = sorted((assets / "imagenet" / "unlabelled").iterdir())
    files = [files[i] for i in np.random.default_rng(seed).permutation(len(files))]
    return [PHOTOGRAPHS[name].feed(files, i, random) for i, random in enumerate(randoms)]


def save_feeds(feeds: list[Arrays], folder: Path) -> Path:
    """Write feeds as `--data` takes them: one `.npz` of samples, or a folder of whole feeds."""
    folder.mkdir(parents=True, exist_ok=True)
    if len(feeds[0]) == 1:
        ((name, _),) = feeds[0].items()
        path = folder / "samples.npz"
        np.savez(path, **{name: np.concatenate([feed[name] for feed in feeds])})
        return path
    for index, feed in enumerate(feeds):
        np.savez(folder / f"{index:04d}.npz", **feed)
    return folder
