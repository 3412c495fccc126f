// Films and screenshots: keyframes, the path through them as mp4, and the picture as it is.

import { center } from "./camera.js";
import { el, note, section } from "./dom.js";

const SIZES = { "1280 × 720": [1280, 720], "1920 × 1080": [1920, 1080], "640 × 360": [640, 360] };

export function filmPanel(app) {
  const panel = el("div", { className: "panel" }), list = el("div", { className: "list", id: "keyframes" });
  const seconds = el("input", { type: "number", min: 0.1, step: 0.5, value: 6, "aria-label": "Seconds" });
  const rate = el("input", { type: "number", min: 1, max: 60, value: 30, "aria-label": "Pictures per second" });
  const size = el("select", { "aria-label": "Size" }, ...Object.keys(SIZES).map((name) => el("option", {}, name)));
  const layer = el("select", { "aria-label": "Layer" });
  const make = el("button", { className: "primary", id: "make-film", onclick: () => film() }, "Make film");
  const cancel = el("button", { disabled: true, onclick: () => app.connection.send({ type: "cancel" }) }, "Cancel");
  const progress = el("div", { className: "muted", id: "film" });
  const shotSize = el("select", { "aria-label": "Screenshot size" }, ...Object.keys(SIZES).map((name) => el("option", {}, name)));

  let before = [];

  function build() {
    const kept = layer.value;
    layer.replaceChildren(...app.scene.layers.filter((one) => !one.missing && one.id !== "photo" && one.id !== "error").map((one) => el("option", { value: one.id }, one.label)));
    if (kept) layer.value = kept;
    listed();
  }

  function listed() {
    list.replaceChildren(...app.keyframes.map((key, index) => el("div", { className: "row" }, el("span", { className: "stretch" }, `keyframe ${index + 1}`),
      el("button", { onclick: () => { app.camera.stand(key.pose, app.camera.distance, key.fov); app.moved(); } }, "go"),
      el("button", { onclick: () => { app.keyframes.splice(index, 1); listed(); app.repaint(); } }, "remove"))));
    make.disabled = app.keyframes.length < 2;
    if (!app.keyframes.length) list.replaceChildren(el("p", { className: "empty" }, "Fly somewhere and add a keyframe; two make a path."));
  }

  function addKeyframe() {
    const pose = app.camera.pose().slice();
    app.keyframes.push({ pose, fov: app.camera.fov, center: center(pose) });
    listed();
    app.repaint();
  }

  function film() {
    const [width, height] = SIZES[size.value];
    cancel.disabled = false;
    before = [...progress.childNodes];
    progress.textContent = "begins …";
    app.connection.send({
      type: "path", keyframes: app.keyframes.map((key) => ({ pose: key.pose, fov: key.fov, width, height })), seconds: +seconds.value,
      fps: Math.round(+rate.value), layer: layer.value, ...app.options(),
    });
  }

  function told(message) {
    progress.textContent = `${message.done} of ${message.of} pictures`;
    if (message.number === undefined) return;
    cancel.disabled = true;
    progress.replaceChildren(el("a", { href: `/film/${message.number}`, target: "_blank", rel: "noopener" }, "Watch it"), ` — ${message.path}`);
    note("the film is made");
  }

  function shoot() {
    const [width, height] = SIZES[shotSize.value];
    app.connection.send({
      type: "render", id: ++app.viewport.number, quality: 0, layers: [app.left], ...app.options(),
      camera: { pose: app.camera.pose(), fov: app.camera.fov, width, height },
    });
  }

  panel.append(
    section("Keyframes", list, el("div", { className: "grid2", style: { marginTop: "6px" } }, el("button", { id: "add-keyframe", onclick: addKeyframe }, "Add here"),
      el("button", { onclick: () => { app.keyframes.length = 0; listed(); app.repaint(); } }, "Clear"))),
    section("Film", el("div", { className: "list" },
      el("div", { className: "row" }, el("label", { className: "name" }, "Seconds"), seconds, el("label", { className: "muted" }, "fps"), rate),
      el("div", { className: "row" }, el("label", { className: "name" }, "Picture"), size), el("div", { className: "row" }, el("label", { className: "name" }, "Layer"), layer)),
    el("div", { className: "grid2", style: { margin: "6px 0" } }, make, cancel), progress),
    section("Screenshot", el("div", { className: "row" }, el("span", { className: "stretch" }, shotSize), el("button", { id: "screenshot", onclick: shoot }, "Save PNG"))),
  );
  for (const select of [size, layer, shotSize]) select.style.width = "100%";
  return { node: panel, scene: build, told, shoot, refused: () => { if (cancel.disabled) return; cancel.disabled = true; progress.replaceChildren(...before); } };
}
