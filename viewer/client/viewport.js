// The picture: asks the server for frames (draft while something moves, sharp at rest), or draws them here where that was
// chosen; shows one or two of them with a split, and turns the mouse into camera moves and picks.

import { BrowserSplats } from "./browser_splats.js";
import { $, note } from "./dom.js";
import { drawOverlay } from "./overlay.js";

const REST_MS = 140;
const TARGET_MS = 100;
const SLOW_MS = 1000;
const MOST_SLOW = 3;
const DRAFT_SIDES = [160, 224, 320, 416, 512];

export class Viewport {
  constructor(app) {
    this.app = app;
    this.canvas = $("picture");
    this.overlay = $("overlay");
    this.shown = null;
    this.number = 0;
    this.waiting = null;
    this.wanted = "sharp";
    this.movedAt = 0;
    this.draft = 2;
    this.split = 0.5;
    this.keys = new Set();
    this.sharpSide = 1024;
    this.stale = true;
    this.slowMs = SLOW_MS;
    this.slow = 0;
    this.drawing = null;
    this.here = new BrowserSplats($("splats"), () => { this.stale = true; }, (why) => this.app.browserFailed(why));
    this.bind();
    new ResizeObserver(() => this.resize()).observe($("stage"));
    this.resize();
    this.tick = this.tick.bind(this);
    requestAnimationFrame(this.tick);
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = $("stage");
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    for (const canvas of [this.canvas, this.overlay]) {
      canvas.width = Math.max(1, Math.round(width * ratio));
      canvas.height = Math.max(1, Math.round(height * ratio));
    }
    this.ratio = ratio;
    this.paint();
    this.moved();
  }

  get aspect() { return this.canvas.width / this.canvas.height; }

  // Something moved: drafts now, a sharp picture when it rests. A sharp one that was asked for is not waited for.
  moved() {
    if (this.waiting?.kind === "sharp") this.waiting = null;
    this.stale = true;
    this.wanted = "draft";
    this.movedAt = performance.now();
    document.body.dataset.frame = "stale";
  }

  // Something else changed: a sharp picture at once.
  changed() { this.stale = true; if (this.wanted !== "draft") this.wanted = "sharp"; document.body.dataset.frame = "stale"; }

  size(side) {
    const { width, height } = this.canvas, longest = Math.max(width, height);
    const scale = Math.min(side / longest, 1);
    return { width: Math.max(16, Math.round(width * scale)), height: Math.max(16, Math.round(height * scale)) };
  }

  cameraMessage(side) {
    return { pose: this.app.camera.pose(), fov: this.app.camera.fov, ...this.size(side) };
  }

  tick(now) {
    this.flown(now);
    if (this.app.browserDraws()) {
      if (this.drawing) this.drawnHere();
      else if (this.stale) this.drawHere();
    } else {
      this.drawing = null;
      if (this.app.connection.open && this.app.scene && !this.waiting && this.wanted) {
        const resting = now - this.movedAt > REST_MS;
        this.ask(this.wanted === "sharp" || resting ? "sharp" : "draft");
      }
    }
    requestAnimationFrame(this.tick);
  }

  // Have this browser's WebGL draw; `drawnHere` notices when it has.
  drawHere() {
    this.stale = false;
    const { width, height } = this.canvas, started = performance.now(), { fov } = this.app.camera, focal = height / 2 / Math.tan(fov / 2);
    const header = {
      layers: ["rgb"], legends: [{}], frame: null, version: this.app.scene.version,
      camera: { pose: this.app.camera.pose().slice(), fx: focal, fy: focal, cx: width / 2, cy: height / 2, width, height },
    };
    $("splats").hidden = false;
    const settled = this.here.draw(header.camera.pose, fov, this.ratio);
    this.drawing = { header, settled, started };
    this.shown?.images.forEach((image) => image.close());
    this.shown = { header, images: [], kind: "browser" };
    this.waiting = null;
    this.wanted = "sharp";
    this.paint();
  }

  // The picture is sharp once the splats were sorted for its view. A browser that draws too slowly (no graphics card, most
  // often) gives it back to the server.
  drawnHere() {
    if (!this.here.drawn()) return;
    const { header, settled, started } = this.drawing, spent = performance.now() - started;
    this.drawing = null;
    this.app.showFrame(header, "browser", spent);
    document.body.dataset.frame = settled && !this.stale ? "sharp" : "stale";
    this.slow = spent > this.slowMs ? this.slow + 1 : 0;
    if (this.slow < MOST_SLOW) return;
    this.slow = 0;
    this.app.browserFailed(`${MOST_SLOW} pictures took more than ${this.slowMs / 1000} s each`);
  }

  ask(kind) {
    const side = kind === "sharp" ? this.sharpSide : Math.min(DRAFT_SIDES[this.draft], this.sharpSide);
    const message = {
      type: "render", id: ++this.number, camera: this.cameraMessage(side), quality: kind === "sharp" ? 90 : 70,
      layers: this.app.layers(), ...this.app.options(),
    };
    if (!this.app.connection.send(message)) return;
    this.waiting = { id: message.id, kind, at: performance.now() };
    if (kind === "sharp") this.wanted = null;
  }

  async take({ header, parts }) {
    if (header.format === "png") { this.app.saveScreenshot(parts[0], header); return; }
    const waiting = this.waiting;
    if (!waiting || header.id !== waiting.id) return;
    if (this.app.browserDraws()) { this.waiting = null; return; }
    const images = await Promise.all(parts.map((part) => createImageBitmap(new Blob([part], { type: "image/jpeg" }))));
    if (this.waiting !== waiting) { images.forEach((image) => image.close()); return; }
    const spent = performance.now() - waiting.at;
    this.waiting = null;
    this.shown?.images.forEach((image) => image.close());
    this.shown = { header, images, kind: waiting.kind };
    $("splats").hidden = true;
    if (waiting.kind === "draft") {
      if (spent > TARGET_MS && this.draft > 0) this.draft--;
      else if (spent < TARGET_MS * 0.5 && this.draft < DRAFT_SIDES.length - 1) this.draft++;
      if (performance.now() - this.movedAt > REST_MS) this.wanted = "sharp";
    }
    this.paint();
    this.app.showFrame(header, waiting.kind, spent);
    if (waiting.kind === "sharp" && !this.wanted) document.body.dataset.frame = "sharp";
  }

  // Whether it was the picture waited for that was refused.
  refused(detail) {
    const mine = this.waiting !== null && detail.id === this.waiting.id;
    if (mine) this.waiting = null;
    return mine && detail.type === "refused";
  }

  lost() { this.waiting = null; this.wanted = "sharp"; }

  // Where the shown picture lies on the canvas.
  place() {
    const { width, height } = this.canvas, { camera } = this.shown.header;
    const scale = Math.min(width / camera.width, height / camera.height);
    const size = [camera.width * scale, camera.height * scale];
    return { x: (width - size[0]) / 2, y: (height - size[1]) / 2, width: size[0], height: size[1], scale };
  }

  paint() {
    if (!this.shown) return;
    const context = this.canvas.getContext("2d"), place = this.place(), { images } = this.shown;
    if (!images.length) { $("split").hidden = true; this.app.showSides(false); this.paintOverlay(); return; }
    context.fillStyle = "#000";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(images[0], place.x, place.y, place.width, place.height);
    const two = images.length > 1;
    $("split").hidden = !two;
    if (two) {
      const at = this.split * this.canvas.width;
      context.save();
      context.beginPath();
      context.rect(at, 0, this.canvas.width - at, this.canvas.height);
      context.clip();
      context.drawImage(images[1], place.x, place.y, place.width, place.height);
      context.restore();
      $("split").style.left = `${100 * this.split}%`;
    }
    this.app.showSides(two, this.split);
    this.paintOverlay();
  }

  // Lines are few and drawn by the CPU: Chromium can lose the clearing of a canvas that a software GPU draws.
  paintOverlay() {
    if (this.shown) drawOverlay(this.overlay.getContext("2d", { willReadFrequently: true }), this.app, this.shown.header, this.place(), this.ratio);
  }

  // The pixel of the shown picture under a mouse event; null beside it.
  pixel(event) {
    if (!this.shown) return null;
    const place = this.place(), { camera } = this.shown.header;
    const x = (event.offsetX * this.ratio - place.x) / place.scale, y = (event.offsetY * this.ratio - place.y) / place.scale;
    return x >= 0 && y >= 0 && x < camera.width && y < camera.height ? [Math.floor(x), Math.floor(y)] : null;
  }

  pick(event, purpose) {
    const pixel = this.pixel(event);
    if (!pixel) return;
    const { camera } = this.shown.header;
    this.app.connection.send({
      type: "pick", id: ++this.number, purpose, x: pixel[0], y: pixel[1],
      camera: { pose: camera.pose, fov: 2 * Math.atan(camera.height / 2 / camera.fy), width: camera.width, height: camera.height },
      ...this.app.options(),
    });
  }

  bind() {
    const stage = this.overlay, camera = () => this.app.camera;
    let drag = null;
    stage.tabIndex = 0;
    stage.addEventListener("contextmenu", (event) => event.preventDefault());
    stage.addEventListener("pointerdown", (event) => {
      stage.setPointerCapture(event.pointerId);
      stage.focus();
      drag = { x: event.clientX, y: event.clientY, pan: event.button !== 0 || event.shiftKey, far: 0 };
    });
    stage.addEventListener("pointermove", (event) => {
      if (!drag) { this.app.hover(event); return; }
      const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
      drag.x = event.clientX; drag.y = event.clientY; drag.far += Math.abs(dx) + Math.abs(dy);
      if (drag.far < 4) return;
      stage.classList.add("dragging");
      const unit = stage.clientHeight;
      if (drag.pan) camera().pan(dx / unit, dy / unit);
      else camera().orbit(3.2 * dx / unit, 3.2 * dy / unit);
      this.moved();
    });
    stage.addEventListener("pointerup", (event) => {
      stage.classList.remove("dragging");
      if (drag && drag.far < 4 && event.button === 0) this.app.click(event);
      drag = null;
    });
    stage.addEventListener("dblclick", (event) => this.pick(event, "pivot"));
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      camera().zoom(Math.exp(Math.max(-200, Math.min(200, event.deltaY)) * 0.0016));
      this.moved();
    }, { passive: false });
    stage.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if ("wasdqe".includes(event.key.toLowerCase()) && event.key.length === 1) this.keys.add(event.key.toLowerCase());
      if (event.key === "Escape") this.app.setTool("look");
    });
    window.addEventListener("keyup", (event) => this.keys.delete(event.key.toLowerCase()));
    window.addEventListener("blur", () => this.keys.clear());
    $("split").addEventListener("pointerdown", (event) => {
      const handle = event.currentTarget;
      handle.setPointerCapture(event.pointerId);
      const move = (next) => {
        const box = $("stage").getBoundingClientRect();
        this.split = Math.max(0.02, Math.min(0.98, (next.clientX - box.left) / box.width));
        this.paint();
      };
      handle.addEventListener("pointermove", move);
      handle.addEventListener("pointerup", () => handle.removeEventListener("pointermove", move), { once: true });
    });
  }

  flown(now) {
    const spent = Math.min((now - (this.before ?? now)) / 1000, 0.1);
    this.before = now;
    if (!this.keys.size) return;
    const on = (key) => (this.keys.has(key) ? 1 : 0), pace = this.app.camera.distance * 0.7 * spent;
    this.app.camera.fly((on("d") - on("a")) * pace, (on("e") - on("q")) * pace, (on("w") - on("s")) * pace);
    this.moved();
  }

  complain(why) { note(why, true); }
}
