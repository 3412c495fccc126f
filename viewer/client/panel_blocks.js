// The blocks: on and off, what each holds, its weight and PSNR now and over time, and the lane that trains it.

import { chart } from "./charts.js";
import { count, css, el, number, section } from "./dom.js";

export function blocksPanel(app) {
  const panel = el("div", { className: "panel" }), table = el("table", { id: "blocks" }), empty = el("p", { className: "empty" });
  const psnr = chart("PSNR of each block, dB"), weight = chart("Weight of each block"), ssim = chart("SSIM of each block");
  let rows = new Map();

  function build() {
    const { blocks } = app.scene;
    empty.textContent = blocks.length ? "" : "This scene does not know blocks.";
    all.hidden = over.hidden = blocks.length === 0;
    rows = new Map();
    const head = el("tr", {}, ...["block", app.scene.primitive, "weight", "PSNR", "lane", ""].map((text) => el("th", {}, text)));
    table.replaceChildren(...(blocks.length ? [head] : []), ...blocks.map((block) => {
      const box = el("input", { type: "checkbox", checked: !app.hidden.has(block.id), "aria-label": `block ${block.id}` });
      box.onchange = () => { app.setBlock(block.id, box.checked); };
      const cells = { weight: el("td", {}), psnr: el("td", {}), lane: el("td", {}) };
      rows.set(block.id, { box, ...cells });
      return el("tr", {}, el("td", {}, el("label", { className: "check" }, box, el("span", {}, el("i", { className: "swatch", style: { background: css(block.color) } }), String(block.id)))),
        el("td", {}, count(block.count)), cells.weight, cells.psnr, cells.lane, el("td", {}, el("button", { title: "only this block", onclick: () => app.soloBlock(block.id) }, "solo")));
    }));
    status();
    history();
  }

  function status() {
    const { lanes = [], blocks = {} } = app.status ?? {}, training = new Map(lanes.map((lane) => [lane.block, lane]));
    for (const [id, row] of rows) {
      const now = blocks[id] ?? {}, lane = training.get(id), points = app.history?.blocks?.[id]?.psnr;
      row.weight.textContent = now.weight === undefined ? "–" : number(now.weight, 3);
      row.psnr.textContent = points?.length ? points.at(-1)[1].toFixed(2) : "–";
      row.lane.replaceChildren(lane ? el("span", { className: "chip training", title: `lane ${lane.lane}${lane.worker === null ? "" : ` on worker ${lane.worker}`}` }, lane.worker === null ? String(lane.lane) : `${lane.lane} · w${lane.worker}`) : "");
      row.box.checked = !app.hidden.has(id);
    }
  }

  function history() {
    const series = (name) => app.scene.blocks.map((block) => ({
      name: String(block.id), color: css(block.color), points: app.history?.blocks?.[block.id]?.[name] ?? [],
    }));
    psnr.update(series("psnr")); weight.update(series("weight")); ssim.update(series("ssim"));
  }

  const every = (on) => { for (const block of app.scene.blocks) app.hidden[on ? "delete" : "add"](block.id); app.changed(); app.repaint(); status(); };
  const all = el("div", { className: "grid2", style: { marginTop: "6px" } },
    el("button", { onclick: () => every(true) }, "All"), el("button", { onclick: () => every(false) }, "None"));
  const over = section("Over training", el("div", { className: "list" }, psnr, weight, ssim));
  panel.append(section("Blocks", empty, table, all), over);
  return { node: panel, scene: build, status, history, shown: history };
}
