// Small helpers for building the page. Text is always set as text, never as HTML.

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else if (name in node && name !== "list") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const $ = (id) => document.getElementById(id);

export function section(title, ...children) {
  return el("section", {}, title ? el("h3", {}, title) : null, ...children);
}

// A labelled slider; `show` turns its value into text.
export function slider(name, { min, max, step, value, show = String, change }) {
  const output = el("output", {}, show(value));
  const input = el("input", { type: "range", min, max, step, value, "aria-label": name });
  input.addEventListener("input", () => row.set(change(+input.value) ?? +input.value));  // `change` may say what is used instead
  const row = el("div", { className: "row" }, el("label", { className: "name" }, name), el("span", { className: "stretch" }, input), output);
  row.set = (next) => { input.value = next; output.textContent = show(+next); };
  return row;
}

export function check(name, value, change) {
  const input = el("input", { type: "checkbox", checked: value });
  input.addEventListener("change", () => change(input.checked));
  const label = el("label", { className: "check" }, input, name);
  label.input = input;
  return label;
}

export const css = (color, alpha = 1) => `rgb(${color[0]} ${color[1]} ${color[2]} / ${alpha})`;

export function number(value, digits = 4) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(1) : String(+value.toPrecision(digits));
}

export function count(value) {
  return value >= 1e6 ? `${(value / 1e6).toFixed(2)} M` : value >= 1e4 ? `${(value / 1e3).toFixed(1)} k` : String(Math.round(value));
}

let noteTimer = 0;
export function note(text, bad = false) {
  const node = $("note");
  node.textContent = text;
  node.className = bad ? "show bad" : "show";
  clearTimeout(noteTimer);
  noteTimer = setTimeout(() => { node.className = ""; }, bad ? 6000 : 3000);
}
