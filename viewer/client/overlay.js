// Lines and labels over the picture: block boxes, photo frusta, crop box, measured distances, keyframes, the picked pixel.
// Everything is drawn with the camera of the picture that is shown, so that lines never run ahead of it.

import { css } from "./dom.js";
import { project, toCamera } from "./camera.js";

const NEAR = 0.02;

export function drawOverlay(context, app, header, place, ratio) {
  const canvas = context.canvas;
  context.clearRect(0, 0, canvas.width, canvas.height);
  const pen = new Pen(context, header.camera, place, ratio);
  if (app.show.boxes) for (const block of app.scene.blocks) {
    const off = app.hidden.has(block.id);
    pen.box(block.low, block.high, css(block.color, off ? 0.25 : 0.9), 1.2);
    if (!off) pen.label(middleTop(block, app), `block ${block.id}`, css(block.color));
  }
  if (app.show.frusta) drawFrusta(pen, app);
  if (app.crop.on) pen.box(app.crop.low, app.crop.high, "#e0b252", 1.5, [5, 4]);
  if (app.show.path || app.keyframes.length) drawPath(pen, app);
  for (const line of app.measures) drawMeasure(pen, line, app);
  if (app.picked) pen.cross(app.picked.point, "#fff");
}

function middleTop(block, app) {
  const top = app.camera.up.map((part, axis) => (part >= 0 ? block.high[axis] : block.low[axis]) * Math.abs(part));
  return [0, 1, 2].map((axis) => top[axis] + (1 - Math.abs(app.camera.up[axis])) * (block.low[axis] + block.high[axis]) / 2);
}

export function frustumCorners(frame, depth) {
  const m = frame.pose;
  const out = (x, y, z) => {
    const local = [x - m[3], y - m[7], z - m[11]];
    return [0, 1, 2].map((axis) => m[axis] * local[0] + m[4 + axis] * local[1] + m[8 + axis] * local[2]);
  };
  const corner = (u, v) => out((u - frame.cx) / frame.fx * depth, (v - frame.cy) / frame.fy * depth, depth);
  return { eye: out(0, 0, 0), corners: [corner(0, 0), corner(frame.width, 0), corner(frame.width, frame.height), corner(0, frame.height)] };
}

function drawFrusta(pen, app) {
  app.frustumHits = [];
  app.scene.frames.forEach((frame, index) => {
    const here = app.standing === index;
    if (here) return;
    const { eye, corners } = frustumCorners(frame, app.frustumSize);
    const color = index === app.hoveredFrame ? "#fff" : frame.test ? "rgb(224 178 82 / .9)" : "rgb(90 169 230 / .75)";
    const image = index === app.hoveredFrame ? app.thumbnail(index) : null;
    if (image) pen.image(image, corners);
    for (let side = 0; side < 4; side++) {
      pen.line(corners[side], corners[(side + 1) % 4], color, 1);
      pen.line(eye, corners[side], color, 0.6);
    }
    const [x, y, z] = pen.at(eye);
    if (z > NEAR) app.frustumHits.push({ index, x: x / pen.ratio, y: y / pen.ratio, z });
  });
}

function drawPath(pen, app) {
  const centers = app.keyframes.map((key) => key.center);
  for (let index = 1; index < centers.length; index++) pen.line(centers[index - 1], centers[index], "#e0b252", 1.2);
  centers.forEach((point, index) => pen.dot(point, "#e0b252", String(index + 1)));
}

function drawMeasure(pen, line, app) {
  line.points.forEach((point) => pen.dot(point, "#fff"));
  if (line.points.length < 2) return;
  pen.line(line.points[0], line.points[1], "#fff", 1.6);
  const middle = line.points[0].map((value, axis) => (value + line.points[1][axis]) / 2);
  pen.label(middle, `${line.length.toFixed(2)} ${app.scene.unit}`, "#fff");
}

class Pen {
  constructor(context, camera, place, ratio) {
    Object.assign(this, { context, camera, place, ratio });
    context.font = `600 ${11 * ratio}px system-ui, sans-serif`;
    context.textBaseline = "middle";
  }

  at(point) {
    const [x, y, z] = project(this.camera, point);
    return [this.place.x + x * this.place.scale, this.place.y + y * this.place.scale, z];
  }

  // A line between two world points, cut at the near plane.
  line(a, b, color, width, dash = []) {
    const ends = [toCamera(this.camera, a), toCamera(this.camera, b)];
    if (ends[0][2] < NEAR && ends[1][2] < NEAR) return;
    for (const [one, other] of [[0, 1], [1, 0]]) {
      if (ends[one][2] >= NEAR) continue;
      const part = (NEAR - ends[one][2]) / (ends[other][2] - ends[one][2]);
      ends[one] = ends[one].map((value, axis) => value + part * (ends[other][axis] - value));
    }
    const { context, camera, place } = this;
    const screen = ends.map(([x, y, z]) => [
      place.x + (camera.fx * x / z + camera.cx) * place.scale, place.y + (camera.fy * y / z + camera.cy) * place.scale]);
    context.strokeStyle = color;
    context.lineWidth = width * this.ratio;
    context.setLineDash(dash.map((part) => part * this.ratio));
    context.beginPath();
    context.moveTo(...screen[0]);
    context.lineTo(...screen[1]);
    context.stroke();
    context.setLineDash([]);
  }

  box(low, high, color, width, dash) {
    const corner = (bits) => [0, 1, 2].map((axis) => (bits >> axis & 1 ? high[axis] : low[axis]));
    for (let bits = 0; bits < 8; bits++) for (const axis of [1, 2, 4]) if (!(bits & axis)) this.line(corner(bits), corner(bits | axis), color, width, dash);
  }

  dot(point, color, text = "") {
    const [x, y, z] = this.at(point);
    if (z < NEAR) return;
    this.context.fillStyle = color;
    this.context.beginPath();
    this.context.arc(x, y, 3.5 * this.ratio, 0, 2 * Math.PI);
    this.context.fill();
    if (text) this.label(point, text, color, 10);
  }

  cross(point, color) {
    if (!point) return;
    const [x, y, z] = this.at(point);
    if (z < NEAR) return;
    const { context } = this, size = 7 * this.ratio;
    context.strokeStyle = color;
    context.lineWidth = 1.5 * this.ratio;
    context.beginPath();
    context.moveTo(x - size, y); context.lineTo(x + size, y);
    context.moveTo(x, y - size); context.lineTo(x, y + size);
    context.stroke();
  }

  label(point, text, color, shift = 0) {
    const [x, y, z] = this.at(point);
    if (z < NEAR) return;
    const { context } = this, width = context.measureText(text).width, left = x + shift * this.ratio - (shift ? 0 : width / 2);
    context.fillStyle = "rgb(15 17 20 / .75)";
    context.fillRect(left - 4 * this.ratio, y - 8 * this.ratio, width + 8 * this.ratio, 16 * this.ratio);
    context.fillStyle = color;
    context.fillText(text, left, y);
  }

  // A thumbnail on a frustum's far side: an affine map of three corners, which is right for small far pictures.
  image(image, corners) {
    const [a, b, , d] = corners.map((point) => this.at(point));
    if ([a, b, d].some((corner) => corner[2] < NEAR)) return;
    const { context } = this;
    context.save();
    context.transform((b[0] - a[0]) / image.width, (b[1] - a[1]) / image.width, (d[0] - a[0]) / image.height, (d[1] - a[1]) / image.height, a[0], a[1]);
    context.globalAlpha = 0.9;
    context.drawImage(image, 0, 0);
    context.restore();
  }
}
