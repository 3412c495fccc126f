// What is shown: the layer, a second one to compare with, how they are coloured, and what lies over the picture.

import { check, count, el, number, section, slider } from "./dom.js";

export function viewPanel(app) {
  const panel = el("div", { className: "panel" });
  const layers = el("div", { className: "grid2" });
  const compare = el("select", { "aria-label": "Right side", onchange: () => { app.right = compare.value || null; app.changed(); build(); } });
  const presets = el("div", { className: "grid2" });
  const drawers = { server: "The server", browser: "This browser" };
  const drawnBy = Object.fromEntries(Object.entries(drawers).map(([who, text]) => [who, el("button", { id: `draw-${who}`, onclick: () => app.setDrawnBy(who) }, text)]));
  const drawnHint = el("p", { className: "empty small", id: "drawn-hint" });

  function showDrawnBy() {
    const { missing, splats } = app.scene.browser;
    for (const [who, button] of Object.entries(drawnBy)) button.classList.toggle("on", app.drawnBy === who);
    drawnBy.browser.disabled = Boolean(missing);
    drawnBy.browser.title = missing || `fetches all ${count(splats)} splats and draws their colours with WebGL`;
    drawnHint.textContent = missing || (app.drawnBy === "browser" ? "Other layers, a split, single blocks and the crop box are drawn by the server." : "");
  }
  const gain = slider("Gain", { min: 1, max: 100, step: 1, value: app.gain, show: (v) => `× ${v}`, change: (v) => { app.gain = v; app.changed(); } });
  const near = el("input", { type: "number", min: 0, step: "any", placeholder: "auto", "aria-label": "Depth near" });
  const far = el("input", { type: "number", min: 0, step: "any", placeholder: "auto", "aria-label": "Depth far" });
  const depths = () => {
    app.depthRange = +near.value > 0 && +far.value > +near.value ? [+near.value, +far.value] : null;
    app.changed();
  };
  near.onchange = depths; far.onchange = depths;
  const fov = slider("Field of view", { min: 15, max: 110, step: 1, value: 50, show: (v) => `${Math.round(v)}°`, change: (v) => { app.camera.fov = v * Math.PI / 180; app.moved(); } });
  const side = slider("Resolution", { min: 256, max: 2048, step: 64, value: app.viewport?.sharpSide ?? 1024, show: (v) => `${v} px`, change: (v) => { app.viewport.sharpSide = v; app.changed(); } });
  const boxes = check("Block boxes", false, (on) => { app.show.boxes = on; app.repaint(); });
  const frusta = check("Photo frusta", false, (on) => { app.setFrusta(on); });
  app.frustaCheck = frusta.input;
  const ups = { "as the scene says": null, "+x": [1, 0, 0], "−x": [-1, 0, 0], "+y": [0, 1, 0], "−y": [0, -1, 0], "+z": [0, 0, 1], "−z": [0, 0, -1] };
  const up = el("select", { "aria-label": "Up", onchange: () => { app.camera.setUp(ups[up.value] ?? app.scene.up); app.home(); } },
    ...Object.keys(ups).map((name) => el("option", {}, name)));
  const facts = el("dl", {}), camera = el("dl", {});

  function build() {
    layers.replaceChildren(...app.scene.layers.map((layer) => el("button", {
      className: app.left === layer.id ? "on" : "", disabled: Boolean(layer.missing), title: layer.missing || layer.label,
      id: `layer-${layer.id}`, onclick: () => { app.left = layer.id; app.changed(); build(); },
    }, layer.label)));
    compare.replaceChildren(el("option", { value: "" }, "nothing"), ...app.scene.layers.filter((layer) => !layer.missing)
      .map((layer) => el("option", { value: layer.id, selected: app.right === layer.id }, layer.label)));
    compare.value = app.right ?? "";
    const has = (id) => app.scene.layers.some((layer) => layer.id === id && !layer.missing);
    const preset = (text, left, right) => el("button", {
      disabled: !has(left) || !has(right), onclick: () => { app.left = left; app.right = right; app.changed(); build(); },
    }, text);
    presets.replaceChildren(preset("Teacher | student", "teacher", "rgb"), preset("Photo | render", "photo", "rgb"),
      preset("Student | difference", "rgb", "difference"), preset("Render | error", "rgb", "error"));
    over.hidden = app.scene.blocks.length === 0 && app.scene.frames.length === 0;
    boxes.hidden = app.scene.blocks.length === 0;
    frusta.hidden = app.scene.frames.length === 0;
    showDrawnBy();
    facts.replaceChildren(...Object.entries(app.scene.facts).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))]));
  }

  const over = section("Over the picture", el("div", { className: "grid2" }, boxes, frusta));
  panel.append(
    section("Layer", layers), section("Right of the split", el("div", { className: "row" }, el("span", { className: "stretch" }, compare)), presets),
    section("Drawn by", el("div", { className: "grid2" }, drawnBy.server, drawnBy.browser), drawnHint),
    section("Colours", gain, el("div", { className: "row" }, el("label", { className: "name" }, "Depth range"), near, far)),
    over,
    section("Camera", fov, side, el("div", { className: "row" }, el("label", { className: "name" }, "Up"), el("span", { className: "stretch" }, up)), camera, el("div", { className: "grid2", style: { marginTop: "6px" } },
      el("button", { onclick: () => app.home() }, "Whole scene"), el("button", { onclick: () => app.copyPose() }, "Copy pose"))),
    section("Scene", facts),
  );
  compare.style.width = "100%";
  up.style.width = "100%";
  presets.style.marginTop = "4px";
  return {
    node: panel, scene: build, drawnBy: showDrawnBy,
    frame: () => {
      fov.set(Math.round(app.camera.fov * 180 / Math.PI));
      const at = app.camera.position;
      camera.replaceChildren(el("dt", {}, "position"), el("dd", {}, `${at.map((value) => number(value, 5)).join("  ")}  ${app.scene.unit}`));
    },
  };
}
