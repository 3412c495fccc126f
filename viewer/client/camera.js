// The camera that the user moves: orbiting a target in a world with an up axis, or exactly at a photo until it is moved.
// Poses are cam_from_world in row order, OpenCV camera (x right, y down, z forward).

export const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
export const add = (a, b, s = 1) => [a[0] + s * b[0], a[1] + s * b[1], a[2] + s * b[2]];
export const scaled = (a, s) => [a[0] * s, a[1] * s, a[2] * s];
export const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
export const norm = (a) => Math.sqrt(dot(a, a));
export const unit = (a) => scaled(a, 1 / (norm(a) || 1));

const STEEPEST = Math.PI / 2 - 1e-3;

export class Camera {
  constructor() {
    this.fov = 50 * Math.PI / 180;
    this.target = [0, 0, 0];
    this.distance = 1;
    this.yaw = 0;
    this.pitch = -0.6;
    this.exact = null;
    this.setUp([0, 0, 1]);
  }

  setUp(up) {
    this.up = unit(up);
    const other = Math.abs(this.up[0]) < 0.9 ? [1, 0, 0] : [0, 1, 0];
    this.e1 = unit(add(other, this.up, -dot(other, this.up)));
    this.e2 = cross(this.up, this.e1);
  }

  axes() {
    const ground = add(scaled(this.e1, Math.cos(this.yaw)), this.e2, Math.sin(this.yaw));
    const forward = add(scaled(ground, Math.cos(this.pitch)), this.up, Math.sin(this.pitch));
    const right = unit(cross(forward, this.up));
    return { forward, right, down: cross(forward, right) };
  }

  get position() {
    return this.exact ? center(this.exact) : add(this.target, this.axes().forward, -this.distance);
  }

  pose() {
    if (this.exact) return this.exact;
    const { forward, right, down } = this.axes(), at = this.position;
    return [...right, -dot(right, at), ...down, -dot(down, at), ...forward, -dot(forward, at), 0, 0, 0, 1];
  }

  // Look the way a pose does; the exact pose is kept until the camera is moved.
  stand(pose, distance, fov = this.fov) {
    const forward = pose.slice(8, 11), above = scaled(pose.slice(4, 7), -1), at = center(pose);
    const sine = Math.max(-1, Math.min(1, dot(forward, this.up)));
    const flat = Math.abs(sine) > 0.99 ? scaled(above, sine > 0 ? -1 : 1) : forward;
    this.yaw = Math.atan2(dot(flat, this.e2), dot(flat, this.e1));
    this.pitch = Math.max(-STEEPEST, Math.min(STEEPEST, Math.asin(sine)));
    this.distance = distance;
    this.target = add(at, this.axes().forward, distance);
    this.fov = fov;
    this.exact = pose.slice();
  }

  // The nearest camera of this direction that sees all eight corners of a box in a picture of this aspect (width / height).
  // A corner at (r, d, f) along right, down, forward lies inside, for a camera at p along right and t behind, while
  // |r - p| <= slope (t + f); both ends of that are linear, so t and p have closed forms.
  home(low, high, aspect = 1) {
    this.fov = 50 * Math.PI / 180;
    this.exact = null;
    this.yaw = 0.85;
    this.pitch = -0.7;
    const axes = this.axes(), middle = scaled(add(low, high), 0.5), slope = Math.tan(this.fov / 2);
    const corners = [0, 1, 2, 3, 4, 5, 6, 7].map((bits) => add([0, 1, 2].map((axis) => (bits >> axis & 1 ? high : low)[axis]), middle, -1));
    const fit = (side, slope) => {
      const most = Math.max(...corners.map((corner) => dot(corner, side) - slope * dot(corner, axes.forward)));
      const least = Math.min(...corners.map((corner) => dot(corner, side) + slope * dot(corner, axes.forward)));
      return { away: (most - least) / (2 * slope), shift: (most + least) / 2 };
    };
    const across = fit(axes.right, slope * aspect), along = fit(axes.down, slope);
    this.target = add(add(middle, axes.right, across.shift), axes.down, along.shift);
    this.distance = Math.max(1.05 * Math.max(across.away, along.away), 1e-3);
  }

  orbit(dx, dy) {
    this.exact = null;
    this.yaw -= dx;
    this.pitch = Math.max(-STEEPEST, Math.min(STEEPEST, this.pitch - dy));
  }

  pan(dx, dy) {
    this.exact = null;
    const { right, down } = this.axes();
    this.target = add(add(this.target, right, -dx * this.distance), down, -dy * this.distance);
  }

  zoom(factor) {
    this.exact = null;
    this.distance = Math.max(1e-3, this.distance * factor);
  }

  fly(right, up, forward) {
    this.exact = null;
    const axes = this.axes();
    this.target = add(add(add(this.target, axes.right, right), this.up, up), axes.forward, forward);
  }

  turnAbout(point) {
    const at = this.position;
    if (this.exact) this.stand(this.exact, this.distance);
    this.exact = null;
    const depth = dot(add(point, at, -1), this.axes().forward);
    this.distance = Math.max(depth, 1e-3);
    this.target = add(at, this.axes().forward, this.distance);
  }
}

export function center(pose) {
  const t = [pose[3], pose[7], pose[11]];
  return [0, 1, 2].map((axis) => -(pose[axis] * t[0] + pose[4 + axis] * t[1] + pose[8 + axis] * t[2]));
}

// A world point in a picture's pixels [x, y, depth]; `camera` is what the server says of a picture.
export function project(camera, point) {
  const m = camera.pose;
  const [x, y, z] = [0, 4, 8].map((row) => m[row] * point[0] + m[row + 1] * point[1] + m[row + 2] * point[2] + m[row + 3]);
  return [camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy, z];
}

export function toCamera(camera, point) {
  const m = camera.pose;
  return [0, 4, 8].map((row) => m[row] * point[0] + m[row + 1] * point[1] + m[row + 2] * point[2] + m[row + 3]);
}
