from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from onnxq.data.preprocess import Preprocess, find_preprocess, load_preprocess
from onnxq.errors import DataError

RGB = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def picture(height: int = 6, width: int = 5, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)


def test_normalises_each_channel_in_the_model_layout():
    pixels = picture()
    expected = (pixels / 255 - np.array(RGB.mean)) / np.array(RGB.std)
    found = RGB.apply(Image.fromarray(pixels))
    assert found.dtype == np.float32 and found.shape == (3, 6, 5)
    # Scale and offset are rounded to float32 apart: a few units in the last place.
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1e-6)


def test_nhwc_is_the_same_values_in_another_order():
    image = Image.fromarray(picture())
    nhwc = Preprocess(RGB.mean, RGB.std, layout="nhwc").apply(image)
    np.testing.assert_array_equal(nhwc.transpose(2, 0, 1), RGB.apply(image))


def test_bgr_turns_the_channels_round_with_their_mean_and_std():
    image = Image.fromarray(picture())
    bgr = Preprocess(RGB.mean, RGB.std, bgr=True).apply(image)
    np.testing.assert_array_equal(bgr[::-1], RGB.apply(image))


def test_one_value_makes_a_grey_image_of_a_colour_one():
    found = Preprocess((0.0,), (1.0,)).apply(Image.fromarray(picture()))
    expected = np.asarray(Image.fromarray(picture()).convert("L")) / 255
    np.testing.assert_allclose(found, expected[None], atol=1e-6)


def test_one_value_holds_for_all_channels_of_a_colour_input():
    assert Preprocess((0.5,), (0.25,)).for_channels(3).mean == (0.5, 0.5, 0.5)
    with pytest.raises(DataError, match=r"3 values .* 1 channel.*--mean and --std"):
        RGB.for_channels(1)


def test_resizes_the_shorter_side_then_crops_the_middle():
    ramp = np.tile(np.arange(40, dtype=np.uint8), (20, 1))
    settings = Preprocess((0.0,), (1 / 255,), resize=20, crop=10)
    assert settings.size_after(40, 80) == (10, 10)
    found = settings.apply(Image.fromarray(ramp))
    np.testing.assert_allclose(found[0], np.tile(np.arange(15, 25), (10, 1)), atol=1e-4)


def test_resize_to_height_and_width_ignores_the_shape():
    settings = Preprocess((0.0,), (1.0,), resize=(4, 7))
    assert settings.apply(Image.fromarray(picture(20, 20, 1))).shape == (1, 4, 7)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_takes_every_mode_of_image(mode):
    image = Image.fromarray(picture()).convert(mode)
    assert RGB.apply(image).shape == (3, 6, 5)


def test_16_bit_grey_is_scaled_and_not_clipped():
    image = Image.fromarray(np.full((4, 4), 0x8000, np.uint16))
    found = Preprocess((0.0,), (1 / 255,)).apply(image)
    np.testing.assert_allclose(found, 0x8000 * 255 / 65535, atol=1e-3)


@given(
    mean=st.lists(st.floats(-300, 300), min_size=3, max_size=3),
    resize=st.none() | st.integers(1, 999) | st.tuples(st.integers(1, 9), st.integers(1, 9)),
    layout=st.sampled_from(["nchw", "nhwc"]),
    bgr=st.booleans(),
)
@settings(deadline=None, max_examples=50)
def test_json_round_trip(mean, resize, layout, bgr):
    made = Preprocess(tuple(mean), (1.0, 2.0, 3.0), resize=resize, layout=layout, bgr=bgr)
    assert Preprocess.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": (0.5, 0.5)}, "'mean' is .*1 or 3 finite numbers"),
        ({"mean": (0.5,)}, "'std' is .*expected 1 values"),
        ({"std": (1.0, 0.0, 1.0)}, "'std' is .*above 0"),
        ({"std": (1.0, float("nan"), 1.0)}, "'std' is .*finite"),
        ({"resize": 0}, "'resize' is '0'"),
        ({"crop": 2.5}, "'crop' is '2.5'"),
        ({"layout": "hwc"}, "'layout' is 'hwc'.*'nchw' or 'nhwc'"),
        ({"resample": "sinc"}, "'resample' is 'sinc'"),
        ({"bgr": "yes"}, "'bgr' is 'yes'"),
        ({"layout": ["nchw"]}, "'layout' is"),
        ({"resample": {}}, "'resample' is"),
        ({"resize": 10**12}, "'resize' is .* up to"),
        ({"resize": (8, True)}, "'resize' is"),
        ({"crop": 10**12}, "'crop' is .* up to"),
        ({"mean": (10**400,) * 3}, "'mean' is .* at most"),
        ({"mean": (float("nan"),) * 3}, "'mean' is"),
        ({"std": (1e-300,) * 3}, "'std' is .* at least"),
    ],
)
def test_settings_out_of_range_are_named(change, message):
    fields = {"mean": RGB.mean, "std": RGB.std} | change
    with pytest.raises(DataError, match=message):
        Preprocess(**fields)


def test_reads_toml(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text("mean = [0.1, 0.2, 0.3]\nstd = [1, 1, 1]\nresize = 256\ncrop = 224\n")
    found = load_preprocess(path)
    assert (found.mean, found.resize, found.crop) == ((0.1, 0.2, 0.3), 256, 224)


HUGGING_FACE = {
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "rescale_factor": 1 / 255,
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, Preprocess(RGB.mean, RGB.std, 256, 224, resample="bicubic")),
        (
            {"size": {"height": 128, "width": 64}, "do_center_crop": False},
            Preprocess(RGB.mean, RGB.std, (128, 64), resample="bicubic"),
        ),
        ({"do_resize": False}, Preprocess(RGB.mean, RGB.std, None, 224)),
        (
            {"do_normalize": False, "do_resize": False, "do_center_crop": False},
            Preprocess((0.0,), (1.0,)),
        ),
        (
            {"do_rescale": False, "do_resize": False, "image_mean": [127.5], "image_std": [127.5]},
            Preprocess((0.5,), (0.5,), None, 224),
        ),
    ],
)
def test_reads_a_hugging_face_configuration(tmp_path, change, expected):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(HUGGING_FACE | change))
    assert load_preprocess(path) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.toml", "mean = [", "Can't read the preprocessing file"),
        ("p.toml", "mean = [0.0]", "'std' is missing"),
        ("p.toml", "mean=[0.0]\nstd=[1.0]\ncropp=3", "Unknown preprocessing setting 'cropp'"),
        ("p.json", "{}", "no 'image_mean'"),
        ("p.json", "[]", "Expected a table"),
        ("p.json", '{"image_mean":[0],"image_std":[1],"size":{"longest_edge":9}}', "longest_edge"),
        (
            "p.json",
            '{"image_mean":[0],"image_std":[1],"do_center_crop":true,'
            '"crop_size":{"height":3,"width":4}}',
            "square 'crop_size'",
        ),
        ("p.json", '{"image_mean":null,"image_std":[1]}', "unexpected type"),
        ("p.json", '{"image_mean":["a"],"image_std":[1]}', "unexpected type"),
        ("p.json", '{"image_mean":[0],"image_std":[1],"rescale_factor":null}', "unexpected type"),
        ("p.json", '{"image_mean":[0],"image_std":[1],"rescale_factor":0}', "unexpected type"),
        ("p.json", '{"image_mean":[0],"image_std":[1],"size":8,"resample":[]}', "unexpected type"),
        ("p.json", "[" * 100_000, "Can't read the preprocessing file"),
        ("p.toml", "x = " + "[" * 3000, "Can't read the preprocessing file"),
    ],
)
def test_bad_files_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_preprocess(tmp_path / name)


def test_missing_file_and_bad_metadata(tmp_path):
    with pytest.raises(DataError, match=r"none\.toml"):
        load_preprocess(tmp_path / "none.toml")
    with pytest.raises(DataError, match="is not JSON"):
        Preprocess.from_json("{mean")
    with pytest.raises(DataError, match="is not JSON"):
        Preprocess.from_json("[" * 100_000)


def test_finds_the_most_specific_settings_first(tmp_path):
    model = tmp_path / "net.onnx"
    assert find_preprocess(model, {}) is None
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HUGGING_FACE))
    assert find_preprocess(model, {}).crop == 224
    (tmp_path / "preprocess.toml").write_text("mean=[0.0]\nstd=[1.0]\ncrop=1")
    assert find_preprocess(model, {}).crop == 1
    metadata = {"onnxq.preprocess": Preprocess((0.0,), (1.0,), crop=2).to_json()}
    assert find_preprocess(model, metadata).crop == 2
    (tmp_path / "net.preprocess.toml").write_text("mean=[0.0]\nstd=[1.0]\ncrop=3")
    assert find_preprocess(model, metadata).crop == 3


def test_one_number_stands_for_all_channels(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text("mean = 0.5\nstd = 1\n")
    assert load_preprocess(path) == Preprocess((0.5,), (1,))


def test_the_configuration_of_an_audio_processor_is_passed_over(tmp_path):
    config = {"do_normalize": True, "feature_size": 1, "sampling_rate": 16000}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    assert find_preprocess(tmp_path / "net.onnx", {}) is None
