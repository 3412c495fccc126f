import base64
import json
import struct

import numpy as np
import pygltflib
import pytest
import torch
import trimesh
from hypothesis import example, given, settings
from hypothesis import strategies as st
from splat_scenes import assert_close, likely_splats

from scene_distill.core import spherical_harmonics
from scene_distill.core.conventions import SH_C0
from scene_distill.core.errors import UserError
from scene_distill.core.geometry import covariances, rotmats_from_quats
from scene_distill.export import read_splats
from scene_distill.export.gltf import gltf_from_world, write_glb, write_gltf
from scene_distill.export.gltf_reader import read_gltf
from scene_distill.export.metadata import SplatMetadata

EXACT = {"means": 0.0, "log_scales": 1e-6, "opacities": 1e-6, "colors": 0.0, "sh": 0.0, "turn": 2e-3}
unit_vectors = st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: sum(x * x for x in v) > 0.01)


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 40), bases=st.sampled_from([1, 4, 9, 16]), seed=st.integers(0, 1000),
    up=st.none() | unit_vectors, binary=st.booleans(),
)  # fmt: skip
def test_round_trip_keeps_every_number_and_the_metadata(tmp_path_factory, count, bases, seed, up, binary):
    path = tmp_path_factory.mktemp("gltf") / ("scene.glb" if binary else "scene.gltf")
    splats = likely_splats(count, bases, seed)
    metadata = SplatMetadata(unit="metre", up=up, source="town", antialiased=True)
    (write_glb if binary else write_gltf)(splats, path, metadata)
    found, found_metadata = read_splats(path)
    assert found_metadata == metadata
    assert_close(found, splats, **EXACT)


@given(unit_vectors)
@example((0.0, 1.0, 0.0))
@example((0.0, -1.0, 0.0))
@example((1e-5, -1.0, 0.0))
def test_the_worlds_up_becomes_y(up):
    x, y, z, w = gltf_from_world(up)
    rotation = rotmats_from_quats(torch.tensor([w, x, y, z], dtype=torch.float64)).numpy()
    np.testing.assert_allclose(rotation @ (np.array(up) / np.linalg.norm(up)), [0, 1, 0], atol=1e-9)


def test_others_find_the_attributes_that_khronos_wants(tmp_path):
    splats = likely_splats(30, 9)
    write_glb(splats, tmp_path / "scene.glb", SplatMetadata(up=(0.0, 0.0, 1.0)))
    document = pygltflib.GLTF2().load(str(tmp_path / "scene.glb"))
    assert document.extensionsUsed == ["KHR_gaussian_splatting"]
    primitive = document.meshes[0].primitives[0]
    assert primitive.mode == 0
    assert primitive.extensions["KHR_gaussian_splatting"] == {
        "kernel": "ellipse", "colorSpace": "srgb_rec709_display", "projection": "perspective",
        "sortingMethod": "cameraDistance",
    }  # fmt: skip
    attributes = vars(primitive.attributes)

    def values(name, columns, kind="<f4"):
        accessor = document.accessors[attributes[name]]
        view = document.bufferViews[accessor.bufferView]
        data = document.binary_blob()[view.byteOffset : view.byteOffset + view.byteLength]
        return np.frombuffer(data, kind).reshape(accessor.count, columns)

    np.testing.assert_array_equal(values("POSITION", 3), splats.means)
    np.testing.assert_allclose(values("KHR_gaussian_splatting:SCALE", 3), splats.log_scales.exp(), rtol=1e-6)
    np.testing.assert_allclose(values("KHR_gaussian_splatting:OPACITY", 1)[:, 0], splats.opacity_logits.sigmoid())
    unit = torch.nn.functional.normalize(splats.quats, dim=1)[:, [1, 2, 3, 0]]
    np.testing.assert_allclose(values("KHR_gaussian_splatting:ROTATION", 4), unit, atol=1e-6)
    np.testing.assert_array_equal(values("KHR_gaussian_splatting:SH_DEGREE_0_COEF_0", 3), splats.sh[:, 0])
    np.testing.assert_array_equal(values("KHR_gaussian_splatting:SH_DEGREE_2_COEF_4", 3), splats.sh[:, 8])
    assert "KHR_gaussian_splatting:SH_DEGREE_3_COEF_0" not in attributes
    colors = values("COLOR_0", 4, "u1")
    np.testing.assert_allclose(colors[:, :3] / 255, (0.5 + SH_C0 * splats.sh[:, 0]).clamp(0, 1), atol=0.51 / 255)
    position = document.accessors[attributes["POSITION"]]
    np.testing.assert_allclose(position.max, splats.means.amax(0).tolist())


def test_trimesh_shows_the_points_with_y_up(tmp_path):
    splats = likely_splats(30)
    write_glb(splats, tmp_path / "scene.glb", SplatMetadata(up=(0.0, 0.0, 1.0)))
    scene = trimesh.load(tmp_path / "scene.glb")
    low, high = scene.bounds
    assert low[1] == pytest.approx(float(splats.means[:, 2].min()), abs=1e-5)
    assert high[1] == pytest.approx(float(splats.means[:, 2].max()), abs=1e-5)


def document_of(path):
    return json.loads(path.read_text())


def test_anothers_node_transform_moves_means_sizes_rotations_and_colours(tmp_path):
    splats = likely_splats(50)
    path = tmp_path / "scene.gltf"
    write_gltf(splats, path, SplatMetadata())
    document = document_of(path)
    del document["asset"]["extras"]
    quaternion = torch.nn.functional.normalize(torch.tensor([0.9, 0.2, -0.3, 0.4], dtype=torch.float64), dim=0)
    document["nodes"] = [
        {"children": [1], "translation": [1.0, 2.0, 3.0], "scale": [2.0, 2.0, 2.0]},
        {"mesh": 0, "rotation": quaternion[[1, 2, 3, 0]].tolist()},
    ]
    path.write_text(json.dumps(document))
    found, metadata = read_gltf(path)
    assert metadata.up == (0.0, 1.0, 0.0) and metadata.unit == "metre"
    rotation = rotmats_from_quats(quaternion).float()
    torch.testing.assert_close(
        found.means, 2 * splats.means @ rotation.T + torch.tensor([1.0, 2.0, 3.0]), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        covariances(found.quats, found.log_scales.exp()),
        4 * rotation @ covariances(splats.quats, splats.log_scales.exp()) @ rotation.T, atol=1e-5, rtol=1e-4,
    )  # fmt: skip
    directions = torch.nn.functional.normalize(torch.randn(50, 3), dim=1)
    torch.testing.assert_close(
        spherical_harmonics.evaluate(found.sh, directions @ rotation.T),
        spherical_harmonics.evaluate(splats.sh, directions), atol=1e-5, rtol=0,
    )  # fmt: skip


def test_interleaved_quantised_and_embedded_files_are_read(tmp_path):
    """What our writer never makes: strides, bytes and shorts, a data URI, two primitives."""
    rows = np.zeros(
        3, [("p", "<f4", 3), ("r", "i1", 4), ("s", "<f4", 3), ("o", "u1"), ("pad", "u1", 3), ("c", "<f4", 3)]
    )
    rows["p"], rows["r"], rows["s"], rows["o"] = np.arange(9).reshape(3, 3), [0, 0, 0, 127], 0.5, [0, 51, 255]
    data = rows.tobytes()
    offsets = {"POSITION": (0, "VEC3", 5126), "KHR_gaussian_splatting:ROTATION": (12, "VEC4", 5120),
               "KHR_gaussian_splatting:SCALE": (16, "VEC3", 5126),
               "KHR_gaussian_splatting:OPACITY": (28, "SCALAR", 5121),
               "KHR_gaussian_splatting:SH_DEGREE_0_COEF_0": (32, "VEC3", 5126)}  # fmt: skip
    accessors = [
        {"bufferView": 0, "byteOffset": offset, "type": kind, "componentType": component, "count": 3,
         "normalized": component != 5126}
        for offset, kind, component in offsets.values()
    ]  # fmt: skip
    primitive = {"mode": 0, "attributes": {name: i for i, name in enumerate(offsets)},
                 "extensions": {"KHR_gaussian_splatting": {"kernel": "ellipse"}}}  # fmt: skip
    document = {
        "asset": {"version": "2.0"}, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive, {"attributes": {"POSITION": 0}}, primitive]}], "accessors": accessors,
        "bufferViews": [{"buffer": 0, "byteLength": len(data), "byteStride": 44}],
        "buffers": [{"byteLength": len(data), "uri": "data:x;base64," + base64.b64encode(data).decode()}],
    }  # fmt: skip
    (tmp_path / "other.gltf").write_text(json.dumps(document))
    found, _ = read_gltf(tmp_path / "other.gltf")
    assert len(found) == 6
    np.testing.assert_array_equal(found.means[3:], rows["p"])
    np.testing.assert_allclose(found.opacity_logits[:3].sigmoid(), [0, 0.2, 1], atol=1e-6)
    np.testing.assert_array_equal(found.quats[0], [1, 0, 0, 0])
    np.testing.assert_allclose(found.log_scales.exp(), 0.5)


CHANGES = {
    "no splats": (lambda d: d["meshes"][0]["primitives"][0].pop("extensions"), "no primitive"),
    "wrong version": (lambda d: d["asset"].update(version="1.0"), "glTF 2"),
    "compressed": (lambda d: d.update(extensionsRequired=["KHR_gaussian_splatting_compression_spz_2"]), "compression"),
    "kernel": (lambda d: d["meshes"][0]["primitives"][0]["extensions"]["KHR_gaussian_splatting"].update(kernel="box"),
               "kernel"),
    "count": (lambda d: d["accessors"][0].update(count=10**9), "beyond the end"),
    "negative": (lambda d: d["accessors"][0].update(count=-1), "impossible count"),
    "differs": (lambda d: d["accessors"][0].update(count=3), "differ in length"),
    "offset": (lambda d: d["bufferViews"][0].update(byteOffset=10**12), "beyond the end"),
    "huge": (lambda d: d["accessors"][0].update(byteOffset=2**70), "beyond the end"),
    "type": (lambda d: d["accessors"][0].update(componentType=5124), "not read"),
    "list": (lambda d: d["accessors"][0].update(componentType=[5126]), "not read"),
    "sparse": (lambda d: d["accessors"][0].update(sparse={}), "not read"),
    "missing": (lambda d: d["meshes"][0]["primitives"][0]["attributes"].pop("KHR_gaussian_splatting:SCALE"), "SCALE"),
    "index": (lambda d: d["meshes"][0]["primitives"][0]["attributes"].update(POSITION=99), "not there"),
    "circle": (lambda d: d["nodes"][0].update(children=[0]), "circle"),
    "mirror": (lambda d: d["nodes"][0].update(scale=[-1, 1, 1]), "mirrors"),
    "stretch": (lambda d: d["nodes"][0].update(scale=[1, 2, 1]), "mirrors"),
    "not numbers": (lambda d: d["nodes"][0].update(translation=["a", 0, 0]), "numbers"),
    "outside": (lambda d: d["buffers"][0].update(uri="../scene.bin"), "not a file beside it"),
    "url": (lambda d: d["buffers"][0].update(uri="http://x/scene.bin"), "not a file beside it"),
    "base64": (lambda d: d["buffers"][0].update(uri="data:;base64,%%%"), "data URI"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_damaged_documents_get_one_sentence(tmp_path, name):
    change, message = CHANGES[name]
    path = tmp_path / "scene.gltf"
    write_gltf(likely_splats(20, 4), path, SplatMetadata())
    document = document_of(path)
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=message) as told:
        read_gltf(path)
    assert str(path) in str(told.value)


def test_damaged_binaries_get_one_sentence(tmp_path):
    path = tmp_path / "scene.glb"
    write_glb(likely_splats(20, 4), path, SplatMetadata())
    content = path.read_bytes()
    nan = struct.pack("<f", float("nan"))
    for damaged in (
        content[:-1], content[:30], content[:8], b"", content[:4] + b"\1" + content[5:],
        content[:12] + struct.pack("<I", 2**31) + content[16:], content[:20] + b"[" * (len(content) - 20),
        content[: -20 * 16] + nan + content[-20 * 16 + 4 :],
    ):  # fmt: skip
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"scene\.glb"):
            read_gltf(path)
