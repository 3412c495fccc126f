"use strict";
const report = JSON.parse(document.getElementById("data").textContent);
const stage = document.querySelector(".split");
const [left, right] = [stage.querySelector(".base"), stage.querySelector(".over")];
const selects = { left: document.getElementById("left"), right: document.getElementById("right") };
let view = 0;

function label(index, source) {
  const psnr = report.views[index].psnr[source];
  return report.sources[source] + (psnr === undefined ? "" : "  " + psnr.toFixed(2) + " dB");
}

function show() {
  const now = report.views[view];
  left.src = now.pictures[selects.left.value];
  right.src = now.pictures[selects.right.value];
  stage.querySelector(".tag.l").textContent = label(view, selects.left.value);
  stage.querySelector(".tag.r").textContent = label(view, selects.right.value);
  document.getElementById("viewname").textContent = now.name;
  document.querySelectorAll(".tile").forEach((tile, index) => tile.classList.toggle("on", index === view));
}

function split(fraction) {
  const at = 100 * Math.min(Math.max(fraction, 0), 1);
  right.style.clipPath = "inset(0 0 0 " + at + "%)";
  stage.querySelector(".bar").style.left = at + "%";
}

// Small photos stay small: 2.5 times their size at most, and 70 % of the window's height (report.css).
left.addEventListener("load", () => {
  stage.style.setProperty("--wide", left.naturalWidth);
  stage.style.setProperty("--high", left.naturalHeight);
});

function follow(event) {
  const box = stage.getBoundingClientRect();
  split((event.clientX - box.left) / box.width);
}
stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); follow(event); });
stage.addEventListener("pointermove", (event) => { if (event.buttons) follow(event); });
Object.values(selects).forEach((select) => select.addEventListener("change", show));
document.querySelectorAll(".tile").forEach((tile, index) => tile.addEventListener("click", () => { view = index; show(); }));
document.addEventListener("keydown", (event) => {
  if (event.target.tagName === "SELECT" || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
  view = (view + (event.key === "ArrowRight" ? 1 : -1) + report.views.length) % report.views.length;
  show();
});
document.querySelectorAll("button[data-mode]").forEach((button) => button.addEventListener("click", () => {
  stage.classList.toggle("difference", button.dataset.mode === "difference");
  document.querySelectorAll("button[data-mode]").forEach((other) => other.classList.toggle("on", other === button));
}));
document.querySelectorAll("button[data-axis]").forEach((button) => button.addEventListener("click", () => {
  document.getElementById("curves").className = "axis-" + button.dataset.axis;
  document.querySelectorAll("button[data-axis]").forEach((other) => other.classList.toggle("on", other === button));
}));
show();
split(0.5);
