// Training: how it stands, its curves, and the few things that can be changed while it runs.

import { chart } from "./charts.js";
import { count, el, number, section } from "./dom.js";

const COLORS = { loss: "#5aa9e6", l1: "#6cc08b", consistency: "#e0b252", memory: "#b98be0", psnr: "#5aa9e6", ssim: "#6cc08b" };

export function trainingPanel(app) {
  const panel = el("div", { className: "panel" }), facts = el("dl", { id: "training-facts" }), events = el("div", { className: "events", id: "events" });
  const send = (command) => app.connection.send({ type: "steer", ...command });
  const pause = el("button", { id: "pause", onclick: () => send({ command: "pause" }) }, "Pause");
  const resume = el("button", { id: "resume", onclick: () => send({ command: "resume" }) }, "Resume");
  const steps = el("input", { type: "number", min: 1, value: 1, "aria-label": "Steps" });
  const step = el("button", { id: "step", onclick: () => send({ command: "step", steps: Math.max(1, Math.round(+steps.value) || 1) }) }, "Step");
  const losses = chart("Loss and its parts (logarithmic)"), quality = chart("PSNR of training views, dB");
  const table = el("table", { id: "tunables" });
  const hint = el("p", { className: "empty" });
  let known = "";

  function status() {
    const now = app.status ?? {}, running = now.state === "training" || now.state === "paused";
    pause.disabled = now.state !== "training"; resume.disabled = now.state !== "paused"; step.disabled = now.state !== "paused";
    hint.textContent = now.state === "file" ? "A file does not train." : running ? "" : "This run is not training now.";
    control.hidden = curves.hidden = now.state === "file";
    const last = app.history?.run?.loss?.at(-1);
    const rows = [["state", now.state ?? "–"], ["step", now.steps ? `${now.step} of ${now.steps}` : String(now.step ?? "–")]];
    if (now.rounds) rows.push(["round", `${now.round + 1} of ${now.rounds}`]);
    if (now.seconds) rows.push(["time", `${Math.floor(now.seconds / 60)} min ${Math.round(now.seconds % 60)} s`]);
    if (last) rows.push(["loss", number(last[1])]);
    rows.push([app.scene?.primitive ?? "primitives", count(now.primitives ?? 0)]);
    const metrics = now.metrics ?? {};
    if (metrics.psnr) rows.push(["held-out PSNR", `${metrics.psnr.toFixed(2)} dB raw`]);
    if (metrics.ssim) rows.push(["held-out SSIM", metrics.ssim.toFixed(3)]);
    facts.replaceChildren(...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
    tunables(now.tunables ?? app.scene?.tunables ?? {}, running);
    log.hidden = !now.events?.length;
    events.replaceChildren(...(now.events ?? []).slice().reverse().map((event) => el("span", {}, `step ${event.step}: `,
      el("b", {}, event.refused ? `refused, ${event.refused}` : event.name ? `${event.name} ${show(event.from)} → ${show(event.to)} from round ${event.from_round}` : event.steps ? `${event.command} ${event.steps}` : event.command))));
  }

  const show = (value) => (Array.isArray(value) ? value.map((part) => number(part)).join(", ") : number(value));

  function tunables(values, running) {
    const now = JSON.stringify([values, running]);
    if (now === known || table.contains(document.activeElement)) return;
    known = now;
    changeable.hidden = Object.keys(values).length === 0;
    const head = el("tr", {}, ...["setting", "value", ""].map((text) => el("th", {}, text)));
    table.replaceChildren(...(Object.keys(values).length ? [head] : []), ...Object.entries(values).map(([name, value]) => {
      const input = el("input", { type: "text", value: show(value), disabled: !running, "aria-label": name });
      const set = el("button", { disabled: !running, onclick: () => {
        const parts = input.value.split(",").map(Number);
        document.activeElement?.blur();
        known = "";
        send({ command: "set", name, value: Array.isArray(value) ? parts : parts[0] });
      } }, "set");
      return el("tr", {}, el("td", { className: "small" }, name), el("td", {}, input), el("td", {}, set));
    }));
  }

  function history() {
    const run = app.history?.run ?? {}, series = (names) => names.map((name) => ({ name, color: COLORS[name], points: run[name] ?? [] }));
    losses.update(series(["loss", "l1", "consistency", "memory"]), { log: true });
    quality.update(series(["psnr"]));
  }

  const control = section("Control", el("div", { className: "row" }, pause, resume, step, steps));
  const curves = section("Curves", el("div", { className: "list" }, losses, quality));
  const changeable = section("Change while it trains", table), log = section("Log of changes", events);
  panel.append(section("Run", facts, hint), control, curves, changeable, log);
  return { node: panel, scene: () => { known = ""; status(); history(); }, status, history, shown: history };
}
