// The photos: thumbnails; click one to stand where it was taken.

import { el, section } from "./dom.js";

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
    figures = app.scene.frames.map((frame, index) => el("figure", { title: frame.name, onclick: () => app.stand(index) },
      el("img", { loading: "lazy", alt: "", src: `/photo/${index}?w=160` }),
      el("figcaption", {}, frame.test ? el("em", {}, "held out ") : "", frame.name)));
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
