// Line charts on a canvas: series over steps, with a key.

import { el, number } from "./dom.js";

// series: [{ name, color, points: [[step, value], ...] }]
export function chart(title) {
  const canvas = el("canvas", {}), key = el("div", { className: "key" }), heading = el("div", { className: "key" }, title);
  const box = el("div", { className: "chart" }, heading, canvas, key);
  box.update = (series, { log = false } = {}) => {
    const drawn = series.filter((one) => one.points.length);
    box.hidden = drawn.length === 0;
    if (box.hidden) return;
    key.replaceChildren(...(drawn.length > 12 ? [el("span", {}, `${drawn.length} series`)] : drawn.map((one) => el("span", {},
      el("i", { className: "swatch", style: { background: one.color } }), `${one.name} `, el("b", {}, number(one.points.at(-1)[1], 3))))));
    draw(canvas, drawn, log);
  };
  return box;
}

function draw(canvas, series, log) {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth || 290, height = canvas.clientHeight || 104;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const scale = (value) => (log ? Math.log10(Math.max(value, 1e-9)) : value);
  const values = series.flatMap((one) => one.points.map((point) => scale(point[1]))).sort((a, b) => a - b);
  const steps = series.flatMap((one) => [one.points[0][0], one.points.at(-1)[0]]);
  let low = values[Math.floor(0.005 * (values.length - 1))], high = values[Math.ceil(0.995 * (values.length - 1))];
  if (high - low < 1e-9) { low -= 0.5; high += 0.5; }
  const first = Math.min(...steps), last = Math.max(...steps, first + 1);
  context.font = "10px system-ui, sans-serif";
  const label = (at) => number(log ? 10 ** at : at, 3);
  const widest = Math.max(...[low, (low + high) / 2, high].map((at) => context.measureText(label(at)).width));
  const left = Math.max(34, Math.ceil(widest) + 6), right = width - 4, top = 5, bottom = height - 14;
  const x = (step) => left + (step - first) / (last - first) * (right - left);
  const y = (value) => bottom - (Math.max(low, Math.min(high, scale(value))) - low) / (high - low) * (bottom - top);
  context.fillStyle = "#737d89";
  context.strokeStyle = "#20252b";
  context.lineWidth = 1;
  for (let line = 0; line <= 2; line++) {
    const at = low + line / 2 * (high - low), level = Math.round(bottom - line / 2 * (bottom - top)) + 0.5;
    context.beginPath(); context.moveTo(left, level); context.lineTo(right, level); context.stroke();
    context.textAlign = "right";
    context.fillText(label(at), left - 4, level + 3);
  }
  context.textAlign = "left"; context.fillText(String(Math.round(first)), left, height - 3);
  context.textAlign = "right"; context.fillText(`${Math.round(last)} steps`, right, height - 3);
  context.lineJoin = "round";
  for (const one of series) {
    context.strokeStyle = one.color;
    context.lineWidth = 1.3;
    context.beginPath();
    one.points.forEach(([step, value], index) => (index ? context.lineTo(x(step), y(value)) : context.moveTo(x(step), y(value))));
    context.stroke();
  }
}
