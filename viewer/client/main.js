// The page: state that the panels share, and who hears of what.

import { Camera } from "./camera.js";
import { Connection } from "./connection.js";
import { $, count, el, note, number } from "./dom.js";
import { blocksPanel } from "./panel_blocks.js";
import { filmPanel } from "./panel_film.js";
import { photosPanel } from "./panel_photos.js";
import { toolsPanel } from "./panel_tools.js";
import { trainingPanel } from "./panel_training.js";
import { viewPanel } from "./panel_view.js";
import { Viewport } from "./viewport.js";

const MAPS = {
  dusk: [[250, 237, 178], [247, 189, 92], [230, 125, 82], [184, 76, 110], [122, 51, 125], [66, 41, 107], [28, 26, 66]],
  heat: [[5, 5, 13], [41, 18, 82], [115, 26, 107], [194, 51, 76], [242, 117, 33], [252, 199, 76], [255, 250, 217]],
  grey: [[0, 0, 0], [255, 255, 255]],
};

class App {
  constructor() {
    Object.assign(this, {
      scene: null, status: null, history: null, left: "rgb", right: null, gain: 4, depthRange: null, hidden: new Set(),
      show: { boxes: false, frusta: false, path: false }, crop: { on: false, low: [-1, -1, -1], high: [1, 1, 1], for: null },
      measures: [], keyframes: [], picked: null, tool: "look", drawnBy: "server", standing: null, hoveredFrame: null, frustumHits: [], frustumSize: 1, thumbnails: new Map(),
    });
    this.camera = new Camera();
    this.connection = new Connection();
    this.viewport = new Viewport(this);
    this.panels = {
      View: viewPanel(this), Blocks: blocksPanel(this), Training: trainingPanel(this), Photos: photosPanel(this), Tools: toolsPanel(this), Film: filmPanel(this),
    };
    this.note = note;
    this.buildTabs();
    this.buildTools();
    this.listen();
  }

  listen() {
    const { connection } = this;
    connection.on("open", () => { $("link").className = "dot on"; this.viewport.lost(); });
    connection.on("closed", () => { $("link").className = "dot"; note("the connection is gone; trying again", true); });
    connection.on("hello", (scene) => this.setScene(scene));
    connection.on("status", (status) => this.setStatus(status));
    connection.on("history", (history) => { this.history = history; this.each("history"); this.each("status"); });
    connection.on("picture", (picture) => this.viewport.take(picture));
    connection.on("picked", (found) => this.takePicked(found));
    connection.on("film", (message) => this.panels.Film.told(message));
    connection.on("said", (message) => note(message.text));
    connection.on("superseded", (message) => this.viewport.refused(message));
    connection.on("refused", (message) => { if (this.viewport.refused(message)) this.showColours(); this.panels.Film.refused(); note(message.why, true); });
  }

  each(name, ...values) { if (this.scene) for (const panel of Object.values(this.panels)) panel[name]?.(...values); }

  rebuild() { this.each("scene"); }

  // What every scene has, after layers were refused.
  showColours() {
    if (this.left === "rgb" && this.right === null) return;
    Object.assign(this, { left: "rgb", right: null });
    this.rebuild();
    this.changed();
  }

  setScene(scene) {
    const first = !this.scene || this.scene.title !== scene.title;
    this.scene = scene;
    document.title = `${scene.title} · scene-distill`;
    $("title").textContent = scene.title;
    $("kind").textContent = scene.kind;
    if (first) {
      this.camera.setUp(scene.up);
      this.camera.home(...scene.bounds, this.viewport.aspect);
    }
    this.frustumSize = this.frustumLength();
    $("tool-frusta").hidden = scene.frames.length === 0;
    const has = (id) => scene.layers.some((layer) => layer.id === id && !layer.missing);
    if (!has(this.left)) this.left = "rgb";
    if (this.right && !has(this.right)) this.right = null;
    if (this.drawnBy === "browser") this.setDrawnBy("browser");
    this.rebuild();
    this.changed();
  }

  // Who draws: the server, or this browser where the scene fits. The browser draws all splats in colour; for everything
  // else (other layers, a split, single blocks, the crop box) the server does it meanwhile.
  setDrawnBy(who) {
    const { browser, version } = this.scene;
    this.drawnBy = who === "browser" && !browser.missing ? "browser" : "server";
    if (this.drawnBy === "browser" && !this.viewport.here.ready(version)) {
      note(`fetching ${browser.splats.toLocaleString("en")} splats`);
      this.viewport.here.load(browser, version);
    }
    this.changed();
    this.each("drawnBy");
  }

  browserDraws() {
    return this.drawnBy === "browser" && this.scene !== null && this.left === "rgb" && this.right === null && !this.crop.on && this.hidden.size === 0
      && this.viewport.here.ready(this.scene.version);
  }

  browserFailed(why) {
    if (this.drawnBy !== "browser") return;
    note(`this browser cannot draw it (${why}); the server draws`, true);
    this.setDrawnBy("server");
  }

  frustumLength() {
    const [low, high] = this.scene.bounds, span = Math.hypot(...high.map((value, axis) => value - low[axis]));
    return 0.35 * span / Math.sqrt(Math.max(this.scene.frames.length, 12));
  }

  setStatus(status) {
    this.status = status;
    const state = $("state"), running = status.state === "training" || status.state === "paused";
    state.textContent = status.state === "file" ? "" : status.state;
    state.className = `chip ${status.state}`;
    $("progress").hidden = !status.steps;
    if (status.steps) {
      $("progress").firstChild.style.width = `${100 * status.step / status.steps}%`;
      $("progress").lastChild.textContent = `${status.step} / ${status.steps}`;
    }
    document.body.dataset.running = String(running);
    this.each("status");
  }

  layers() { return this.right ? [this.left, this.right] : [this.left]; }

  options() {
    const shown = this.scene.blocks.map((block) => block.id).filter((id) => !this.hidden.has(id));
    return {
      gain: this.gain, depth_range: this.depthRange, blocks: this.hidden.size && this.scene.blocks.length ? shown : null,
      crop: this.crop.on ? [...this.crop.low, ...this.crop.high] : null,
    };
  }

  changed() { this.viewport.changed(); }
  moved() { this.viewport.moved(); }
  repaint() { this.viewport.paintOverlay(); }
  home() { this.camera.home(...this.scene.bounds, this.viewport.aspect); this.standing = null; this.moved(); }

  copyPose() {
    const text = JSON.stringify({ cam_from_world: this.camera.pose(), fov_degrees: this.camera.fov * 180 / Math.PI });
    const done = () => note("pose copied");
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, () => note(text));
    else note(text);
  }

  setBlock(id, on) { this.hidden[on ? "delete" : "add"](id); this.changed(); this.repaint(); }

  soloBlock(id) {
    const others = this.scene.blocks.filter((block) => block.id !== id), alone = others.every((block) => this.hidden.has(block.id)) && !this.hidden.has(id);
    this.hidden = new Set(alone ? [] : others.map((block) => block.id));
    this.changed();
    this.repaint();
    this.panels.Blocks.status();
  }

  setFrusta(on) {
    this.show.frusta = on;
    this.frustaCheck.checked = on;
    $("tool-frusta").classList.toggle("on", on);
    this.repaint();
  }

  thumbnail(index) {
    if (!this.thumbnails.has(index)) {
      const image = new Image();
      image.onload = () => this.repaint();
      image.src = `/photo/${index}?w=160`;
      this.thumbnails.set(index, image);
    }
    const image = this.thumbnails.get(index);
    return image.complete && image.naturalWidth ? image : null;
  }

  stand(index) {
    const frame = this.scene.frames[index];
    this.standing = index;
    this.camera.stand(frame.pose, this.camera.distance, 2 * Math.atan(frame.height / 2 / frame.fy));
    this.moved();
    note(frame.name);
  }

  hover(event) {
    if (!this.show.frusta) return;
    const hit = this.frustumHit(event);
    if (hit !== this.hoveredFrame) {
      this.hoveredFrame = hit;
      $("overlay").title = hit === null ? "" : this.scene.frames[hit].name;
      this.repaint();
    }
  }

  frustumHit(event) {
    let best = null;
    for (const hit of this.frustumHits) {
      const away = Math.hypot(hit.x - event.offsetX, hit.y - event.offsetY);
      if (away < 12 && (best === null || away < best.away)) best = { ...hit, away };
    }
    return best ? best.index : null;
  }

  click(event) {
    if (this.tool === "inspect") { this.viewport.pick(event, "inspect"); return; }
    if (this.tool === "measure") { this.viewport.pick(event, "measure"); return; }
    const hit = this.show.frusta ? this.frustumHit(event) : null;
    if (hit !== null) this.stand(hit);
  }

  takePicked(found) {
    if (found.purpose === "pivot") {
      if (found.point) { this.camera.turnAbout(found.point); this.moved(); }
    } else if (found.purpose === "measure") this.panels.Tools.takeMeasure(found);
    else { this.panels.Tools.showPicked(found); this.openTab("Tools"); }
    document.body.dataset.picked = String(found.id);
  }

  showFrame(header, kind, spent) {
    if (header.frame === null && this.camera.exact === null) this.standing = null;
    const { width, height } = header.camera, here = kind === "browser";
    $("drawn-by").textContent = here ? "drawn by this browser" : "drawn by the server";
    $("timing").textContent = here ? `${width} × ${height}  WebGL  ${number(spent, 3)} ms`
      : `${width} × ${height}  ${kind}  ${number(header.draw_ms + header.encode_ms, 3)} ms drawn, ${number(spent, 3)} ms in all`;
    document.body.dataset.version = String(header.version);
    this.showLegends(header);
    this.each("frame");
  }

  showLegends(header) {
    const words = (title, text) => el("div", { className: "legend" }, el("div", {}, el("b", {}, title), el("span", {}, text)));
    const legends = header.legends.map((legend, index) => legend.map && MAPS[legend.map] ? this.legend(legend, header.layers[index])
      : legend.map === "normals" ? words("Normals", "world x, y, z as red, green, blue")
        : legend.map === "pca" ? words("Semantics", `principal components of ${legend.unit}`) : legend.map === "classes" ? this.classes(legend) : null);
    if (header.frame !== null) legends.push(el("div", { className: "legend" }, el("div", {}, el("b", {}, "Photo"), el("span", {}, this.scene.frames[header.frame]?.name ?? ""))));
    $("legend").replaceChildren(...legends.filter(Boolean));
  }

  classes({ classes, more }) {
    const rows = classes.map((one) => el("div", {}, el("span", {}, el("i", { className: "swatch", style: { background: `rgb(${one.color.join()})` } }), one.name), el("span", {}, count(one.count))));
    return el("div", { className: "legend", id: "classes" }, el("div", {}, el("b", {}, "Semantics")), ...rows, more ? el("div", {}, `and ${more} more classes`) : null);
  }

  legend(legend, layer) {
    const canvas = el("canvas", { width: 210, height: 1 }), context = canvas.getContext("2d"), table = MAPS[legend.map];
    const gradient = context.createLinearGradient(0, 0, 210, 0);
    table.forEach((color, index) => gradient.addColorStop(index / (table.length - 1), `rgb(${color.join()})`));
    context.fillStyle = gradient;
    context.fillRect(0, 0, 210, 1);
    const label = this.scene.layers.find((one) => one.id === layer)?.label ?? layer;
    const middle = legend.scale === "inverse" ? 2 / (1 / legend.low + 1 / legend.high) : (legend.low + legend.high) / 2;
    const unit = legend.unit === "depth" ? ` ${this.scene.unit}` : "";
    return el("div", { className: "legend" }, el("div", {}, el("b", {}, label), el("span", {}, legend.mean !== undefined ? `mean ${number(legend.mean, 3)}` : layer === "age" ? legend.unit : "")), canvas,
      el("div", {}, ...[legend.low, middle, legend.high].map((value) => el("span", {}, number(value, 3) + unit))));
  }

  showSides(two, split) {
    if (!two || !this.scene) { $("sides").replaceChildren(); return; }
    const label = (id) => this.scene.layers.find((layer) => layer.id === id)?.label ?? id, { layers } = this.viewport.shown.header;
    $("sides").replaceChildren(el("b", { style: { right: `calc(${100 - 100 * split}% + 10px)` } }, label(layers[0])),
      el("b", { style: { left: `calc(${100 * split}% + 10px)` } }, label(layers[1])));
  }

  saveScreenshot(bytes, header) {
    const link = el("a", { href: URL.createObjectURL(new Blob([bytes], { type: "image/png" })), download: `${this.scene.title}-${header.layers[0]}.png` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    note(`screenshot of ${header.camera.width} × ${header.camera.height} saved`);
  }

  buildTabs() {
    for (const [name, panel] of Object.entries(this.panels)) {
      $("tabs").append(el("button", { role: "tab", id: `tab-${name}`, onclick: () => this.openTab(name) }, name));
      panel.node.id = `panel-${name}`;
      $("panels").append(panel.node);
    }
    this.openTab("View");
  }

  openTab(name) {
    for (const [other, panel] of Object.entries(this.panels)) {
      panel.node.hidden = other !== name;
      $(`tab-${other}`).setAttribute("aria-selected", String(other === name));
    }
    if (this.scene) this.panels[name].shown?.();
  }

  buildTools() {
    const tools = { look: "Look", inspect: "Inspect", measure: "Measure" };
    for (const [tool, text] of Object.entries(tools)) $("tools").append(el("button", { id: `tool-${tool}`, onclick: () => this.setTool(tool) }, text));
    $("tools").append(el("button", { id: "tool-frusta", onclick: () => this.setFrusta(!this.show.frusta) }, "Frusta"),
      el("button", { onclick: () => this.home() }, "Home"), el("button", { onclick: () => this.panels.Film.shoot() }, "Screenshot"));
    this.setTool("look");
  }

  setTool(tool) {
    this.tool = tool;
    for (const name of ["look", "inspect", "measure"]) $(`tool-${name}`).classList.toggle("on", name === tool);
    $("overlay").classList.toggle("aiming", tool !== "look");
  }
}

window.viewer = new App();
