"""Known shapes with exact depth from cameras around them."""

import numpy as np

from scene_distill.core.cameras import Camera, look_at
from scene_distill.export.depth_views import DepthView
from scene_distill.export.mesh_texture import mesh_depth
from scene_distill.export.open3d_library import ray_scene
from scene_distill.representations.meshes import TriangleMesh

UP = np.array([0.0, 0.0, 1.0])


def cube(half=1.0, center=(0.0, 0.0, 0.0)):
    """A closed cube of 12 faces."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float) * half + center
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [triangle for a, b, c, d in quads for triangle in ((a, b, c), (a, c, d))]
    return TriangleMesh(corners, np.array(faces, np.int64))


def sphere(radius=1.0, center=(0.0, 0.0, 0.0), subdivisions=3):
    """A closed icosphere."""
    from scene_distill.data.city_mesh import icosphere

    points, faces = icosphere(subdivisions)
    return TriangleMesh(points * radius + center, faces.astype(np.int64))


def ring_of_cameras(count=14, distance=4.0, size=(160, 140), focal=150.0, center=(0.0, 0.0, 0.0)):
    """Cameras spread over a sphere, looking at its middle; the principal point is off the middle."""
    turns = np.arange(count) * np.pi * (3 - 5**0.5)
    heights = 1 - 2 * (np.arange(count) + 0.5) / count
    flat = np.sqrt(1 - heights**2)
    places = np.stack([flat * np.cos(turns), flat * np.sin(turns), heights], axis=1) * distance + center
    middle = (size[0] / 2 + 1.25, size[1] / 2 - 0.75)
    return [Camera(*size, focal, focal, *middle, look_at(place, np.array(center, float), UP)) for place in places]


def stripes(points):
    """A colour [..., 3] for every place, in [0, 1]."""
    return 0.5 + 0.4 * np.sin(np.asarray(points) * [2.0, 3.0, 2.5] + [0.0, 1.0, 2.0])


class ExactViews:
    """Depth of a mesh by ray casting, coloured with `stripes`."""

    def __init__(self, mesh, cameras):
        self.cameras = cameras
        self._scene = ray_scene(mesh)

    def __len__(self):
        return len(self.cameras)

    def __getitem__(self, index):
        camera = self.cameras[index]
        depth = mesh_depth(self._scene, camera)
        view = DepthView(camera, depth.astype(np.float32), np.zeros((1, 1, 3), np.float32))
        return DepthView(camera, view.depth_m, stripes(view.points()).astype(np.float32))


class ExactPictures(ExactViews):
    """The colours of the views."""

    def __getitem__(self, index):
        view = super().__getitem__(index)
        return view.camera, view.color
