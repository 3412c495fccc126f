// The page of an exported scene: unpacks the splats that it carries and turns the mouse into cameras. What draws stands
// before it in the same script (splats.js).

const panel = document.getElementById("panel");
const canvas = document.getElementById("view");

async function unpacked(text) {
  const parts = [], step = 4 * (1 << 18);
  for (let at = 0; at < text.length; at += step) {
    const piece = atob(text.slice(at, at + step)), bytes = new Uint8Array(piece.length);
    for (let i = 0; i < piece.length; ++i) bytes[i] = piece.charCodeAt(i);
    parts.push(bytes);
  }
  return inflated(parts);
}

class Orbit {
  constructor(scene, metadata) {
    this.up = unit(metadata.up ? [metadata.up[0], -metadata.up[1], -metadata.up[2]] : [0, 1, 0]);
    const least = this.up.map(Math.abs), axis = [0, 0, 0];
    axis[least.indexOf(Math.min(...least))] = 1;
    this.east = unit(cross(this.up, axis));
    this.north = cross(this.up, this.east);
    const step = Math.max(1, Math.floor(scene.count / 20000)), columns = [[], [], []];
    for (let i = 0; i < scene.count; i += step) for (let k = 0; k < 3; ++k) columns[k].push(scene.positions[3 * i + k]);
    this.middle = columns.map((values) => [...values].sort((a, b) => a - b)[values.length >> 1]);
    const far = columns[0].map((_, i) => Math.hypot(...columns.map((values, k) => values[i] - this.middle[k]))).sort((a, b) => a - b);
    this.radius = Math.max(far[Math.floor(0.9 * (far.length - 1))], 1e-6);
    this.reset();
  }

  reset() {
    this.target = [...this.middle];
    this.distance = this.radius * Math.hypot(1, 2.5);
    this.azimuth = 0;
    this.elevation = 25 * Math.PI / 180;
    this.focal = 1.25;
    this.fixed = null;
  }

  camera() {
    if (this.fixed) return this.fixed;
    const flat = plus(this.east.map((v) => v * Math.cos(this.azimuth)), this.north, Math.sin(this.azimuth));
    const back = plus(flat.map((v) => v * Math.cos(this.elevation)), this.up, Math.sin(this.elevation));
    const right = unit(cross(this.up, back)), above = cross(back, right), eye = plus(this.target, back, this.distance);
    return this.axes = made(right, above, back, eye, this.focal);
  }
}

// #view= : cam_from_world of an OpenCV camera, three rows of four, then focal length / picture height.
function linked() {
  const numbers = (/[#&]view=([-+0-9.e,]+)/.exec(location.hash) || [, ""])[1].split(",").map(Number);
  return numbers.length === 13 && numbers.every(Number.isFinite) ? cameraOfPose(numbers, numbers[12]) : null;
}

function link({ right, above, back, eye, focal }) {
  const flip = ([x, y, z]) => [x, -y, -z], minus = (a) => a.map((v) => -v);
  const rows = [right, minus(above), minus(back)].map((r) => [...flip(r), -dot(r, eye)]);
  return "#view=" + [...rows.flat(), focal].map((v) => +v.toPrecision(7)).join(",");
}

function controls(orbit, changed) {
  const pointers = new Map();
  let gap = 0;
  const loose = () => { orbit.fixed = null; changed(); };
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); pointers.set(event.pointerId, event); gap = 0; });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => { pointers.delete(event.pointerId); gap = 0; });
  canvas.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    const dx = event.clientX - last.clientX, dy = event.clientY - last.clientY;
    pointers.set(event.pointerId, event);
    if (pointers.size === 2) {
      const [a, b] = [...pointers.values()], now = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
      if (gap) orbit.distance *= gap / Math.max(now, 1);
      gap = now;
    }
    if (pointers.size === 2 || event.buttons & 6 || event.shiftKey) {
      const { right, above } = orbit.axes || orbit.camera(), metres = orbit.distance / (orbit.focal * canvas.clientHeight) / pointers.size;
      orbit.target = plus(plus(orbit.target, right, -dx * metres), above, dy * metres);
    } else {
      orbit.azimuth -= dx * 0.006;
      orbit.elevation = Math.min(1.55, Math.max(-1.55, orbit.elevation + dy * 0.006));
    }
    loose();
  });
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); orbit.distance *= Math.exp(Math.sign(event.deltaY) * 0.1); loose(); }, { passive: false });
  const reset = () => { orbit.reset(); changed(); };
  const copy = () => { history.replaceState(null, "", link(orbit.camera())); navigator.clipboard?.writeText(location.href).catch(() => {}); };
  document.getElementById("reset").onclick = reset;
  document.getElementById("link").onclick = copy;
  window.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[event.key];
    if (steps) { orbit.azimuth += steps[0]; orbit.elevation = Math.min(1.55, Math.max(-1.55, orbit.elevation + steps[1])); loose(); }
    if (event.key === "+" || event.key === "-") { orbit.distance *= event.key === "+" ? 0.9 : 1.1; loose(); }
    if (event.key === "r" || event.key === "R") reset();
    if (event.key === "c" && !event.ctrlKey && !event.metaKey) copy();
    if (event.key === "h") document.body.classList.toggle("quiet");
  });
  window.addEventListener("resize", changed);
  window.addEventListener("hashchange", () => { orbit.fixed = linked(); changed(); });
}

async function main() {
  const metadata = JSON.parse(document.getElementById("metadata").textContent), box = document.getElementById("splats");
  const scene = parsed(await unpacked(box.textContent.trim()));
  box.remove();
  const orbit = new Orbit(scene, metadata), renderer = new SplatRenderer(canvas, scene, metadata.antialiased);
  orbit.fixed = linked();
  let waiting = false;
  const redraw = () => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; renderer.draw(orbit.camera()); }); } };
  const sorted = new Sorter(scene.positions, (order) => {
    renderer.setOrder(order);
    renderer.draw(orbit.camera());
    document.body.dataset.ready = "1";
  }, (why) => { panel.textContent = `The sorter stopped: ${why}`; });
  const sort = () => sorted.sort(orbit.camera().back);
  controls(orbit, () => { sort(); redraw(); });
  canvas.addEventListener("webglcontextlost", () => { panel.textContent = "The graphics card gave up; reload the page."; });
  const facts = [`${scene.count.toLocaleString("en")} splats`, metadata.unit === "metre" ? "metric" : "", metadata.source ? `from ${metadata.source}` : "", metadata.generator || ""];
  panel.textContent = `${facts.filter(Boolean).join(" · ")}\nDrag to turn, right drag to move, wheel to come nearer; R resets, C links to this view, H hides this.`;
  if (/[#&]quiet/.test(location.hash)) document.body.classList.add("quiet");
  sort();
}

main().catch((error) => { panel.textContent = error.message; document.body.dataset.failed = "1"; });
