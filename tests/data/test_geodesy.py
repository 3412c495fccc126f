import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image
from relief import write_gps
from scipy.spatial.transform import Rotation

from scene_distill.data.geodesy import enu_from_gps, read_gps, similarity


@given(latitude=st.floats(0.01, 80), longitude=st.floats(0.01, 170), altitude=st.floats(0, 3000))
@settings(deadline=None, max_examples=20)
def test_gps_tags_read_back(tmp_path_factory, latitude, longitude, altitude):
    path = tmp_path_factory.mktemp("gps") / "a.jpg"
    image = Image.new("RGB", (4, 4))
    image.save(path, exif=write_gps(image, latitude, longitude, altitude))
    np.testing.assert_allclose(read_gps(path), (latitude, longitude, altitude), atol=2e-6, rtol=1e-5)


def test_photos_without_a_position(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    assert read_gps(tmp_path / "a.jpg") is None


def test_south_and_west_are_negative(tmp_path):
    image = Image.new("RGB", (4, 4))
    exif = write_gps(image, 33.5, 70.25, 10.0)
    exif.get_ifd(0x8825).update({1: "S", 3: "W", 5: b"\x01"})
    image.save(tmp_path / "a.jpg", exif=exif)
    np.testing.assert_allclose(read_gps(tmp_path / "a.jpg"), (-33.5, -70.25, -10.0))


def test_local_metres_are_pycolmaps():
    pycolmap = pytest.importorskip("pycolmap")
    origin = np.array([28.04, -82.69, 12.0])
    positions = origin + np.random.default_rng(0).normal(0, 1, (20, 3)) * [1e-3, 1e-3, 30]
    theirs = pycolmap.GPSTransform(pycolmap.GPSTransformEllipsoid.WGS84).ellipsoid_to_enu(positions, *origin)
    np.testing.assert_allclose(enu_from_gps(positions, origin), theirs, atol=1e-5)


@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100), flat=st.booleans())
@settings(deadline=None, max_examples=40)
def test_a_similarity_is_recovered(seed, scale, flat):
    rng = np.random.default_rng(seed)
    source = rng.normal(size=(12, 3)) * ([1, 1, 0] if flat else [1, 1, 1])
    rotation, translation = Rotation.random(random_state=seed).as_matrix(), rng.normal(0, 10, 3)
    found = similarity(source, scale * source @ rotation.T + translation)
    assert found[0] == pytest.approx(scale)
    np.testing.assert_allclose(found[1], rotation, atol=1e-9)
    np.testing.assert_allclose(found[2], translation, atol=1e-7 * max(scale, 1))
