"""What a model's file may read beside it, wherever in the file a tensor stands."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.errors import ModelError, UnreadableError
from onnxq.export.save import check_output
from onnxq.load.model import load_model
from onnxq.load.read import model_files, read_graph
from onnxq.load.tensors import load_tensor
from onnxq.runtime.session import open_session
from onnxq.verify.opened import open_model

VALUES = np.arange(16, dtype=np.float32).reshape(4, 4)


def outside(location: str, **entries: object) -> onnx.TensorProto:
    """The tensor `w`, whose values are in another file."""
    tensor = onnx.TensorProto(name="w", data_type=1, dims=VALUES.shape, data_location=1)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def model_of(text: str, opset: int = 17) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')


def initializer(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = model_of("g (float[4, 4] x) => (float[4, 4] y) { y = MatMul (x, w) }")
    model.graph.initializer.append(tensor)
    return model


def constant(tensor: onnx.TensorProto) -> onnx.NodeProto:
    return onnx.helper.make_node("Constant", [], ["w"], value=tensor)


def attribute(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = model_of("g (float[4, 4] x) => (float[4, 4] y) { y = MatMul (x, w) }")
    model.graph.node.insert(0, constant(tensor))
    return model


def sub_graph(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = model_of(
        """g (float[4, 4] x, bool c) => (float[4, 4] y) {
            y = If (c) <
                then_branch = t () => (float[4, 4] a) { a = MatMul (x, w) },
                else_branch = e () => (float[4, 4] b) { b = Relu (x) }
            > }"""
    )
    model.graph.node[0].attribute[0].g.initializer.append(tensor)
    return model


def function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[4, 4] x) => (float[4, 4] y) { y = own.f (x) }
        <domain: "own", opset_import: ["" : 17]> f (x) => (y) { y = MatMul (x, w) }"""
    )
    model.functions[0].node.insert(0, constant(tensor))
    return model


def sparse(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = initializer(onnx.numpy_helper.from_array(VALUES, "w"))
    model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    return model


def training(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = initializer(onnx.numpy_helper.from_array(VALUES, "w"))
    model.training_info.add().initialization.initializer.append(tensor)
    return model


PLACES = (initializer, attribute, sub_graph, function)
LOCATIONS = (
    "../secret", "sub/../../secret", "..\\secret", "C:\\secret", "{absolute}", "link", "hard",
    "folder/secret", "", ".", "sub", "\0", "w\0.bin", "pipe", "missing", "*/_ORT_MEM_ADDR_/*",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a model; outside of it lies a pipe: who reads it waits for ever."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "*" / "_ORT_MEM_ADDR_").mkdir(parents=True)
    (folder / "*" / "_ORT_MEM_ADDR_" / "*").write_bytes(VALUES.tobytes())
    os.mkfifo(tmp_path / "secret")
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "folder").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "other").write_bytes(VALUES.tobytes())
    (folder / "hard").hardlink_to(tmp_path / "other")
    return folder


READERS: tuple[Callable[[Path], object], ...] = (load_model, read_graph, open_model, model_files)


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize("place", [*PLACES, sparse, training])
def test_nothing_outside_the_folder_is_read(folder, place, location):
    path = folder / "model.onnx"
    named = location.format(absolute=folder.parent / "secret")
    path.write_bytes(place(outside(named)).SerializeToString())
    for read in READERS:
        with pytest.raises(ModelError, match=r"external data of \"model\.onnx\" can't be read"):
            read(path)
    check_output(folder / "out.onnx", path, force=False)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"offset": -4}, "offset is '-4'"),
        ({"offset": "9" * 30}, "offset is"),
        ({"length": 63}, "length is 63 bytes, where its type and shape take 64"),
        ({"offset": 1}, "ends before the tensor does"),
    ],
)
def test_a_place_that_is_none(folder, entries, reason):
    (folder / "w.bin").write_bytes(VALUES.tobytes())
    path = folder / "model.onnx"
    path.write_bytes(initializer(outside("w.bin", **entries)).SerializeToString())
    with pytest.raises(ModelError, match=reason):
        load_model(path)


def test_a_location_that_is_given_twice(folder):
    tensor = outside("w.bin")
    tensor.external_data.add(key="location", value="../secret")
    (folder / "model.onnx").write_bytes(initializer(tensor).SerializeToString())
    with pytest.raises(ModelError, match="location twice"):
        load_model(folder / "model.onnx")


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_values_beside_the_model_are_read(folder, place, large, monkeypatch):
    if large:
        for name in ("runtime.weight_files.LARGE", "load.read.LARGE", "load.tensors.LARGE"):
            monkeypatch.setattr(f"onnxq.{name}", 1)
    (folder / "sub" / "w.bin").write_bytes(b"1234" + VALUES.tobytes())
    path = folder / "model.onnx"
    tensor = outside("./sub/w.bin", offset=4, length=64, checksum="unknown to all")
    path.write_bytes(place(tensor).SerializeToString())
    assert model_files(path) == [path, folder / "sub" / "w.bin"]
    assert open_model(path).size == path.stat().st_size + 68
    feeds = {"x": np.eye(4, dtype=np.float32)}
    if place is sub_graph:
        feeds["c"] = np.array(True)
    for source in (load_model(path), open_model(path).runnable):
        (found,) = open_session(source).run(None, feeds)
        np.testing.assert_array_equal(found, VALUES)


def test_a_sample_names_no_other_file(folder):
    (folder / "w.bin").write_bytes(VALUES.tobytes())
    for location in ("w.bin", "../secret"):
        path = folder / "input_0.pb"
        path.write_bytes(outside(location).SerializeToString())
        with pytest.raises(UnreadableError, match="values in another file"):
            load_tensor(path)


DAMAGED = {
    "a byte more": (lambda t: setattr(t, "raw_data", t.raw_data + b"?"), "65 bytes, where float"),
    "a byte less": (lambda t: setattr(t, "raw_data", t.raw_data[1:]), "63 bytes, where float"),
    "none": (lambda t: t.ClearField("raw_data"), "0 values"),
    "too few": (lambda t: (t.ClearField("raw_data"), t.float_data.append(1)), "1 values"),
    "terabytes": (lambda t: t.dims.append(2**45), "takes 2251799813685248"),
    "negative": (lambda t: t.dims.__setitem__(0, -4), r"shape is \(-4, 4\)"),
    "type": (lambda t: setattr(t, "data_type", 99), "element type is 99"),
    "no type": (lambda t: setattr(t, "data_type", 0), "element type is 0"),
    "wider": (lambda t: setattr(t, "data_type", 11), "64 bytes, where double"),
    "strings": (lambda t: setattr(t, "data_type", 8), "0 values, where string"),
    "segment": (lambda t: setattr(t.segment, "begin", 0), "segment"),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("place", [*PLACES, sparse, training])
def test_data_that_do_not_fit_the_shape(tmp_path, place, damage):
    tensor, (spoil, reason) = onnx.numpy_helper.from_array(VALUES, "w"), DAMAGED[damage]
    spoil(tensor)
    path = tmp_path / "model.onnx"
    path.write_bytes(place(tensor).SerializeToString())
    for read in READERS:
        with pytest.raises(ModelError, match=rf'tensor "w" of "model.onnx" is damaged.*{reason}'):
            read(path)
    (tmp_path / "w.pb").write_bytes(tensor.SerializeToString())
    with pytest.raises(UnreadableError, match=reason):
        load_tensor(tmp_path / "w.pb")


def test_every_type_has_its_length(tmp_path):
    """As onnx writes them: packed in bytes, and in the field of the type."""
    skipped = {"UNDEFINED", "STRING"}
    kinds = {k: v for k, v in onnx.TensorProto.DataType.items() if k not in skipped}
    proto = initializer(onnx.numpy_helper.from_array(VALUES, "w"))
    for name, kind in kinds.items():
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        for shape in ((), (3, 3), (0, 2)):
            values = np.ones(shape, dtype)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
            flat = values.ravel().tolist()
            proto.graph.initializer.append(onnx.helper.make_tensor(name, kind, shape, flat))
    proto.graph.initializer.append(onnx.helper.make_tensor("s", 8, [2], [b"a", b"b"]))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    assert model_files(tmp_path / "m.onnx") == [tmp_path / "m.onnx"]
