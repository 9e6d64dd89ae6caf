"""Make ``sample_models/``: three small networks trained with onnxq's own engine, and images.

Run from the root of the repository: ``python -m tools.make_sample_models``. It takes about
a minute on two cores, and the same kind of CPU gives the same bytes on any number of cores.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxq.data.preprocess import METADATA_KEY
from tools.architectures import mlp, mobilenet, resnet
from tools.digits import PREPROCESS, Digits, labelled_and_rest, write_images
from tools.rescale import channel_maxima, spread_ranges
from tools.training import Architecture, accuracy, inference_model, train


@dataclass(frozen=True)
class Sample:
    """One model to make.

    Args:
        name: of the file, without its ending.
        architecture: writes the network.
        epochs: passes over the images that are not kept for measuring.
        spread: whether the channels get very different ranges after training.
    """

    name: str
    architecture: Architecture
    epochs: int
    spread: bool = False


SAMPLES = (
    Sample("digits_mlp", mlp, epochs=60),
    Sample("digits_resnet", resnet, epochs=20),
    Sample("digits_mobilenet", mobilenet, epochs=30, spread=True),
)
RATE = 3e-3


def make(sample: Sample, labelled: Digits, rest: Digits) -> ir.Model:
    """Train one network; only images that are not kept for measuring are learned from."""
    parameters, statistics = train(
        sample.architecture, rest.inputs(), rest.labels, sample.epochs, RATE
    )
    model = inference_model(sample.architecture, parameters, statistics, sample.name)
    if sample.spread:
        # The ranges of all images: what is kept for measuring is then preserved as well.
        maxima = channel_maxima(model, Digits.joined(labelled, rest).inputs())
        spread_ranges(parameters, maxima)
        model = inference_model(sample.architecture, parameters, statistics, sample.name)
    model.metadata_props[METADATA_KEY] = PREPROCESS.to_json()
    return model


def main() -> None:
    """Make everything and print what the models can do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("sample_models"))
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    write_images(folder / "digits")
    labelled, rest = labelled_and_rest()
    for sample in SAMPLES:
        model = make(sample, labelled, rest)
        ir.save(model, folder / f"{sample.name}.onnx")
        right = accuracy(model, labelled.inputs(), labelled.labels)
        print(f"{sample.name}: {100 * right:.2f} % of {len(labelled.labels)} labelled images")


if __name__ == "__main__":
    main()
