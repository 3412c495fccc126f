// Gaussian splats in a browser: unpacks an .spz of version 3, sorts in a worker, and draws with WebGL 2. One copy for exported
// pages, which carry it, and for the viewer, which serves it.
// Frame: that of the .spz, which is the world with y and z turned round; cameras look along -z, y is up.

const NEAR = 0.2, BLUR_PX2 = 0.3, ALPHA_MIN = 1 / 255, WIDTH = 4096;
const SH_WORDS = [0, 4, 8, 12];

const VERTEX = `#version 300 es
precision highp float;
precision highp usampler2D;
uniform usampler2D places, shapes, harmonics;
uniform mat4 view;
uniform vec3 eye;
uniform vec2 focal, size;
uniform bool antialiased;
uniform int degree;
layout(location = 0) in vec2 corner;
layout(location = 1) in uint index;
out vec4 color;
out vec2 offset;

ivec2 texel(uint at) { return ivec2(at % ${WIDTH}u, at / ${WIDTH}u); }

mat3 rotation(uint word) {
  uint largest = word >> 30u;
  float q[4];
  float sum = 0.0;
  for (int i = 3; i >= 0; --i) {
    if (uint(i) == largest) continue;
    float value = float(word & 511u) / 511.0 * 0.70710678;
    q[i] = (word & 512u) != 0u ? -value : value;
    sum += value * value;
    word >>= 10u;
  }
  q[largest] = sqrt(max(0.0, 1.0 - sum));
  float x = q[0], y = q[1], z = q[2], w = q[3];
  return mat3(1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y),
              2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x),
              2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y));
}

uvec4 words;
uint held = 0xffffffffu;
vec3 coefficient(int k) {
  vec3 value;
  for (int channel = 0; channel < 3; ++channel) {
    int at = 3 * k + channel;
    uint place = index * uint(degree) + uint(at >> 4);
    if (place != held) { words = texelFetch(harmonics, texel(place), 0); held = place; }
    uint four = words[(at >> 2) & 3];
    value[channel] = (float((four >> uint(8 * (at & 3))) & 255u) - 128.0) / 128.0;
  }
  return value;
}

vec3 seenFrom(vec3 d) {
  vec3 sum = vec3(0.0);
  float x = d.x, y = d.y, z = d.z;
  if (degree > 0) {
    sum += 0.4886025 * (-y * coefficient(0) + z * coefficient(1) - x * coefficient(2));
  }
  if (degree > 1) {
    sum += 1.0925484 * (x * y * coefficient(3) - y * z * coefficient(4) - x * z * coefficient(6))
      + 0.3153916 * (2.0 * z * z - x * x - y * y) * coefficient(5) + 0.5462742 * (x * x - y * y) * coefficient(7);
  }
  if (degree > 2) {
    sum += -0.5900436 * y * (3.0 * x * x - y * y) * coefficient(8) + 2.8906114 * x * y * z * coefficient(9)
      - 0.4570458 * y * (4.0 * z * z - x * x - y * y) * coefficient(10)
      + 0.3731763 * z * (2.0 * z * z - 3.0 * x * x - 3.0 * y * y) * coefficient(11)
      - 0.4570458 * x * (4.0 * z * z - x * x - y * y) * coefficient(12)
      + 1.4453057 * z * (x * x - y * y) * coefficient(13) - 0.5900436 * x * (x * x - 3.0 * y * y) * coefficient(14);
  }
  return sum;
}

void main() {
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0);
  uvec4 place = texelFetch(places, texel(index), 0);
  vec3 world = uintBitsToFloat(place.xyz);
  vec3 p = (view * vec4(world, 1.0)).xyz;
  float depth = -p.z;
  if (depth < ${NEAR}) return;
  vec4 bytes = vec4(place.w & 255u, (place.w >> 8u) & 255u, (place.w >> 16u) & 255u, place.w >> 24u) / 255.0;
  uvec2 shape = texelFetch(shapes, texel(index), 0).xy;
  vec3 scales = exp(vec3(shape.y & 255u, (shape.y >> 8u) & 255u, (shape.y >> 16u) & 255u) / 16.0 - 10.0);
  mat3 turned = mat3(view) * rotation(shape.x);
  mat3 spread = mat3(turned[0] * scales.x, turned[1] * scales.y, turned[2] * scales.z);
  vec2 limit = 1.3 * 0.5 * size / focal;
  vec2 slope = clamp(p.xy / depth, -limit, limit);
  vec3 across = vec3(focal.x / depth, 0.0, focal.x * slope.x / depth);
  vec3 along = vec3(0.0, focal.y / depth, focal.y * slope.y / depth);
  vec3 u = across * spread, v = along * spread;
  float a = dot(u, u), b = dot(u, v), c = dot(v, v);
  float before = max(a * c - b * b, 0.0);
  a += ${BLUR_PX2};
  c += ${BLUR_PX2};
  float after = a * c - b * b;
  float alpha = bytes.a * (antialiased ? sqrt(before / after) : 1.0);
  if (alpha < ${ALPHA_MIN}) return;
  float reach = sqrt(2.0 * log(alpha * 255.0)) + 0.05;
  float middle = 0.5 * (a + c), away = sqrt(max(middle * middle - after, 1e-12));
  float large = middle + away, small = max(middle - away, 1e-6);
  vec2 axis = abs(b) > 1e-9 ? normalize(vec2(b, large - a)) : (a >= c ? vec2(1.0, 0.0) : vec2(0.0, 1.0));
  vec2 pixels = corner.x * reach * sqrt(large) * axis + corner.y * reach * sqrt(small) * vec2(-axis.y, axis.x);
  vec2 centre = focal * p.xy / depth;
  if (any(greaterThan(abs(centre), 0.5 * size + reach * sqrt(large)))) return;
  gl_Position = vec4((centre + pixels) * 2.0 / size, 0.0, 1.0);
  offset = corner * reach;
  vec3 base = 0.5 + 0.28209479 * (bytes.rgb - 0.5) / 0.15;
  color = vec4(max(base + seenFrom(normalize(world - eye)), 0.0), alpha);
}`;

const FRAGMENT = `#version 300 es
precision highp float;
in vec4 color;
in vec2 offset;
out vec4 pixel;
void main() {
  float alpha = min(color.a * exp(-0.5 * dot(offset, offset)), 0.999);
  if (alpha < ${ALPHA_MIN}) discard;
  pixel = vec4(color.rgb * alpha, alpha);
}`;

function sorter() {
  let positions, count;
  self.onmessage = ({ data }) => {
    if (data.positions) { positions = data.positions; count = positions.length / 3; return; }
    const [x, y, z] = data.toward;
    const depths = new Float32Array(count);
    let low = Infinity, high = -Infinity;
    for (let i = 0; i < count; ++i) {
      const depth = x * positions[3 * i] + y * positions[3 * i + 1] + z * positions[3 * i + 2];
      depths[i] = depth;
      if (depth < low) low = depth;
      if (depth > high) high = depth;
    }
    const scale = high > low ? 65535 / (high - low) : 0, keys = new Uint16Array(count), starts = new Uint32Array(65537);
    for (let i = 0; i < count; ++i) ++starts[(keys[i] = Math.floor((depths[i] - low) * scale)) + 1];
    for (let i = 0; i < 65536; ++i) starts[i + 1] += starts[i];
    const order = new Uint32Array(count);
    for (let i = 0; i < count; ++i) order[starts[keys[i]]++] = i;
    self.postMessage(order, [order.buffer]);
  };
}

// Sorts in a worker: `sort(back)` asks for the order seen along a direction, `sorted(order)` hears of it; of several wishes
// during a sort only that one is sorted again, with the newest direction.
export class Sorter {
  constructor(positions, sorted, failed) {
    const address = URL.createObjectURL(new Blob([`(${sorter})()`], { type: "text/javascript" }));
    this.worker = new Worker(address);
    this.busy = false;
    this.next = null;
    this.worker.onmessage = ({ data }) => {
      URL.revokeObjectURL(address);
      this.busy = false;
      sorted(data);
      if (this.next) this.sort(this.next);
    };
    this.worker.onerror = (event) => failed(event.message);
    this.worker.postMessage({ positions }, [positions.buffer]);
  }

  sort(toward) {
    this.next = this.busy ? toward : null;
    if (this.busy) return;
    this.busy = true;
    this.worker.postMessage({ toward });
  }

  stop() { this.worker.terminate(); }
}

// The bytes of a gzip stream whose pieces are given.
export async function inflated(parts) {
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

export function parsed(bytes) {
  const head = new DataView(bytes.buffer, bytes.byteOffset);
  if (head.getUint32(0, true) !== 0x5053474e || head.getUint32(4, true) !== 3) throw new Error("The splats are damaged.");
  const count = head.getUint32(8, true), degree = bytes[12], unit = 2 ** -bytes[13];
  const rest = 3 * ((degree + 1) ** 2 - 1), words = SH_WORDS[degree];
  if (degree > 3 || bytes.length < 16 + count * (20 + rest)) throw new Error("The splats are cut off.");
  const rows = (perRow) => Math.max(1, Math.ceil(count * perRow / WIDTH));
  const at = [9, 1, 3, 3, 4].reduce((ends, width) => [...ends, ends[ends.length - 1] + width * count], [16]);
  const positions = new Float32Array(3 * count);
  const places = new Uint32Array(4 * WIDTH * rows(1)), shapes = new Uint32Array(2 * WIDTH * rows(1));
  const bits = new Float32Array(places.buffer), colors = new Uint8Array(places.buffer), parts = new Uint8Array(shapes.buffer);
  for (let i = 0; i < count; ++i) {
    for (let axis = 0; axis < 3; ++axis) {
      const from = at[0] + 9 * i + 3 * axis;
      const fixed = (bytes[from] << 8 | bytes[from + 1] << 16 | bytes[from + 2] << 24) >> 8;
      positions[3 * i + axis] = bits[4 * i + axis] = fixed * unit;
      colors[16 * i + 12 + axis] = bytes[at[2] + 3 * i + axis];
      parts[8 * i + 4 + axis] = bytes[at[3] + 3 * i + axis];
    }
    colors[16 * i + 15] = bytes[at[1] + i];
    for (let k = 0; k < 4; ++k) parts[8 * i + k] = bytes[at[4] + 4 * i + k];
  }
  const harmonics = new Uint32Array(4 * WIDTH * rows(words / 4 || 1)), coefficients = new Uint8Array(harmonics.buffer);
  for (let i = 0; rest && i < count; ++i) {
    coefficients.set(bytes.subarray(at[5] + rest * i, at[5] + rest * (i + 1)), 4 * words * i);
  }
  return { count, degree, positions, places, shapes, harmonics };
}

export class SplatRenderer {
  constructor(canvas, scene, antialiased) {
    this.canvas = canvas;
    const gl = canvas.getContext("webgl2", { antialias: false, alpha: false, preserveDrawingBuffer: true });
    if (!gl) throw new Error("This browser has no WebGL 2, which the viewer needs.");
    if (Math.ceil(scene.count * 3 / WIDTH) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) throw new Error("The scene is too large for this graphics card.");
    this.gl = gl;
    this.count = scene.count;
    const program = this.program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    gl.useProgram(program);
    this.texture(0, "places", scene.places, gl.RGBA32UI, gl.RGBA_INTEGER, 4);
    this.texture(1, "shapes", scene.shapes, gl.RG32UI, gl.RG_INTEGER, 2);
    this.texture(2, "harmonics", scene.harmonics, gl.RGBA32UI, gl.RGBA_INTEGER, 4);
    gl.uniform1i(this.at("degree"), scene.degree);
    gl.uniform1i(this.at("antialiased"), antialiased ? 1 : 0);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, -1, 1, -1, -1, 1, 1, 1]), gl.STATIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 2, gl.FLOAT, false, 0, 0);
    this.order = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, this.order);
    gl.bufferData(gl.ARRAY_BUFFER, 4 * scene.count, gl.DYNAMIC_DRAW);
    gl.enableVertexAttribArray(1);
    gl.vertexAttribIPointer(1, 1, gl.UNSIGNED_INT, 0, 0);
    gl.vertexAttribDivisor(1, 1);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.clearColor(0, 0, 0, 1);
    this.sorted = false;
  }

  at(name) { return this.gl.getUniformLocation(this.program, name); }

  texture(unit, name, data, inside, format, perTexel) {
    const gl = this.gl;
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    for (const side of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, side, gl.NEAREST);
    gl.texImage2D(gl.TEXTURE_2D, 0, inside, WIDTH, data.length / perTexel / WIDTH, 0, format, gl.UNSIGNED_INT, data);
    gl.uniform1i(this.at(name), unit);
  }

  setOrder(order) {
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.order);
    this.gl.bufferSubData(this.gl.ARRAY_BUFFER, 0, order);
    this.sorted = true;
  }

  draw(camera, ratio = window.devicePixelRatio || 1) {
    const { gl, canvas } = this;
    const width = Math.max(1, Math.round(canvas.clientWidth * ratio)), height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    gl.viewport(0, 0, width, height);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (!this.sorted) return;
    gl.uniformMatrix4fv(this.at("view"), false, camera.view);
    gl.uniform3fv(this.at("eye"), camera.eye);
    gl.uniform2f(this.at("focal"), camera.focal * height, camera.focal * height);
    gl.uniform2f(this.at("size"), width, height);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, this.count);
  }
}

export const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
export const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
export const plus = (a, b, s = 1) => [a[0] + s * b[0], a[1] + s * b[1], a[2] + s * b[2]];
export const unit = (a) => { const l = Math.hypot(...a) || 1; return [a[0] / l, a[1] / l, a[2] / l]; };

export function made(right, above, back, eye, focal) {
  const view = new Float32Array([right[0], above[0], back[0], 0, right[1], above[1], back[1], 0, right[2], above[2], back[2], 0,
    -dot(right, eye), -dot(above, eye), -dot(back, eye), 1]);
  return { right, above, back, eye, view, focal };
}

// The camera of a cam_from_world in row order (OpenCV camera); `focal` is the focal length / picture height.
export function cameraOfPose(m, focal) {
  const row = (i) => m.slice(4 * i, 4 * i + 3), flip = ([x, y, z]) => [x, -y, -z], minus = (a) => a.map((v) => -v);
  const right = flip(row(0)), above = minus(flip(row(1))), back = minus(flip(row(2)));
  const t = [m[3], -m[7], -m[11]];
  return made(right, above, back, plus(plus(right.map((v) => -v * t[0]), above, -t[1]), back, -t[2]), focal);
}
