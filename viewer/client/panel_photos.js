// The photos: thumbnails; click one to stand where it was taken.

import { el, section } from "./dom.js";

// How many characters all names begin with, not breaking a number.
function sharedStart(names) {
  let length = names.length > 1 ? names[0].length : 0;
  for (const name of names) while (!name.startsWith(names[0].slice(0, length))) length--;
  while (length > 0 && /\d/.test(names[0][length - 1])) length--;
  return length;
}

export function photosPanel(app) {
  const panel = el("div", { className: "panel" }), grid = el("div", { className: "photos", id: "photos" });
  const search = el("input", { type: "search", placeholder: "find by name", "aria-label": "Find by name", oninput: () => filter() });
  const empty = el("p", { className: "empty" });
  let figures = [], version = null;

  function build() {
    for (const [button, needed] of [[compare, "photo"], [error, "error"]]) {
      const why = app.scene.layers.find((layer) => layer.id === needed)?.missing;
      button.disabled = Boolean(why);
      button.title = why ?? "";
    }
    const names = app.scene.frames.map((frame) => frame.name).join();
    if (names === version) return;
    version = names;
    empty.textContent = app.scene.frames.length ? "" : app.scene.facts.photos ?? "There are no photos here.";
    const shared = sharedStart(app.scene.frames.map((frame) => frame.name));
    figures = app.scene.frames.map((frame, index) => el("figure", { className: frame.test ? "test" : "", title: frame.name, onclick: () => app.stand(index) },
      el("img", { loading: "lazy", alt: "", src: `/photo/${index}?w=160` }),
      el("figcaption", {}, shared > 5 ? `…${frame.name.slice(shared)}` : frame.name)));
    grid.replaceChildren(...figures);
  }

  function filter() {
    figures.forEach((figure, index) => { figure.hidden = !app.scene.frames[index].name.toLowerCase().includes(search.value.toLowerCase()); });
  }

  const compare = el("button", { id: "photo-render", onclick: () => { app.left = "photo"; app.right = "rgb"; app.changed(); app.rebuild(); } }, "Photo | render");
  const error = el("button", { id: "photo-error", onclick: () => { app.left = "error"; app.right = null; app.changed(); app.rebuild(); } }, "Error heat map");
  panel.append(section("Against the nearest photo", el("div", { className: "grid2" }, compare, error)), section("Photos", search, empty), grid);
  return { node: panel, scene: build, frame: () => figures.forEach((figure, index) => figure.classList.toggle("here", index === app.standing)) };
}
