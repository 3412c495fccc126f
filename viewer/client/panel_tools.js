// Tools: what made a pixel, distances, the crop box.

import { add, norm } from "./camera.js";
import { check, css, el, number, section, slider } from "./dom.js";

export function toolsPanel(app) {
  const panel = el("div", { className: "panel" }), picked = el("div", { id: "picked" }), measured = el("div", { className: "list", id: "measured" });
  const sliders = el("div", { className: "list" });
  const cropCheck = check("Draw only what is inside", false, (on) => { app.crop.on = on; app.changed(); app.repaint(); });
  cropCheck.input.id = "crop";

  function showPicked(found) {
    app.picked = found.point ? found : null;
    const facts = el("dl", {}, el("dt", {}, "pixel"), el("dd", {}, `${found.x}, ${found.y}`), el("dt", {}, "coverage"), el("dd", {}, number(found.alpha, 3)),
      el("dt", {}, "depth"), el("dd", {}, found.depth === null ? "nothing here" : `${found.depth.toFixed(3)} ${app.scene.unit}`),
      el("dt", {}, "point"), el("dd", {}, found.point ? found.point.map((value) => number(value, 5)).join("  ") : "–"),
      ...(found.face === null ? [el("dt", {}, "Gaussians"), el("dd", {}, `${found.count} in this pixel`)]
        : [el("dt", {}, "face"), el("dd", {}, String(found.face)), el("dt", {}, "normal"), el("dd", {}, found.normal.map((value) => value.toFixed(3)).join("  "))]));
    const most = found.shares[0]?.weight ?? 1, single = app.scene.primitive === "anchors" ? "anchor" : "splat";
    picked.replaceChildren(facts, ...found.shares.map((share) => el("div", { className: "share" },
      el("i", { className: "swatch", style: { background: css(share.color.map((value) => Math.round(255 * value))) } }),
      el("div", {}, el("div", {}, `${single} ${share.row}${single === "anchor" ? ` · slot ${share.slot}` : ""}`),
        el("div", { className: "muted small" }, `${share.block === null ? "" : `block ${share.block} · `}opacity ${number(share.opacity, 3)} · ${number(share.size, 3)} ${app.scene.unit} · at ${share.depth.toFixed(2)}`),
        el("div", { className: "muted small" }, `${share.kind === null ? "" : `${share.kind} · `}${age(share)}`),
        el("div", { className: "bar", style: { width: `${100 * share.weight / most}%` } })),
      el("b", {}, `${(100 * share.weight).toFixed(1)} %`))));
    app.repaint();
  }

  const age = ({ born, age: steps }) => {
    if (born === null) return "age unknown";
    const since = born === 0 ? "from the first points" : `made after step ${born}`;
    return steps === null ? since : `age ${steps} steps, ${since}`;
  };

  function takeMeasure(found) {
    if (!found.point) { app.note("there is nothing at this pixel to measure from"); return; }
    const open = app.measures.at(-1);
    if (open && open.points.length === 1) {
      open.points.push(found.point);
      open.length = norm(add(open.points[1], open.points[0], -1));
    } else app.measures.push({ points: [found.point], length: 0 });
    listMeasures();
    app.repaint();
  }

  function listMeasures() {
    measured.replaceChildren(...app.measures.map((line, index) => el("div", { className: "row" },
      el("span", { className: "stretch" }, line.points.length < 2 ? "click the second point" : `${line.length.toFixed(3)} ${app.scene.unit}`),
      el("span", { className: "muted small" }, line.points.length < 2 ? "" : height(line)),
      el("button", { onclick: () => { app.measures.splice(index, 1); listMeasures(); app.repaint(); } }, "remove"))));
  }

  const height = (line) => {
    const between = add(line.points[1], line.points[0], -1);
    const rise = between[0] * app.camera.up[0] + between[1] * app.camera.up[1] + between[2] * app.camera.up[2];
    return `height ${rise.toFixed(2)} ${app.scene.unit}`;
  };

  function build() {
    const [low, high] = app.scene.bounds;
    if (app.crop.for !== app.scene.title) Object.assign(app.crop, { low: low.slice(), high: high.slice(), for: app.scene.title });
    sliders.replaceChildren(...["x", "y", "z"].flatMap((axis, index) => ["low", "high"].map((end) => {
      const span = high[index] - low[index] || 1;
      return slider(`${axis} ${end}`, {
        min: low[index] - 0.1 * span, max: high[index] + 0.1 * span, step: span / 500, value: app.crop[end][index], show: (v) => number(v, 4),
        change: (value) => {
          app.crop[end][index] = end === "low" ? Math.min(value, app.crop.high[index]) : Math.max(value, app.crop.low[index]);
          app.repaint();
          if (app.crop.on) app.moved();
          return app.crop[end][index];
        },
      });
    })));
    listMeasures();
  }

  panel.append(
    section("Pixel", el("p", { className: "empty" }, "Choose Inspect above the picture and click: the Gaussians that made the pixel."), picked),
    section("Distances", el("p", { className: "empty" }, "Choose Measure and click two points."), measured),
    section("Crop box", cropCheck, sliders, el("button", { onclick: () => { app.crop.for = ""; build(); app.changed(); app.repaint(); } }, "Reset box")),
  );
  return { node: panel, scene: build, showPicked, takeMeasure };
}
