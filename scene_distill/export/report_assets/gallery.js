// Turntables: they turn by themselves while nobody touches them, and follow the pointer or the arrow keys.
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const seen = new Set();
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) entry.isIntersecting ? seen.add(entry.target) : seen.delete(entry.target);
});

function turntable(element) {
  const views = Number(element.dataset.views);
  const state = { place: 0, from: null, touched: false };
  state.show = () => {
    const view = ((Math.round(state.place) % views) + views) % views;
    element.style.backgroundPositionX = views > 1 ? `${(100 * view) / (views - 1)}%` : "0%";
    element.dataset.view = view;
  };
  element.addEventListener("pointerdown", (event) => {
    state.from = { x: event.clientX, place: state.place };
    state.touched = true;
    element.setPointerCapture(event.pointerId);
  });
  element.addEventListener("pointermove", (event) => {
    if (state.from === null) return;
    // The near side follows the pointer: to the right means that the camera goes to the left.
    state.place = state.from.place - ((event.clientX - state.from.x) / element.clientWidth) * views;
    state.show();
  });
  const release = () => { state.from = null; };
  element.addEventListener("pointerup", release);
  element.addEventListener("pointercancel", release);
  element.addEventListener("dblclick", () => { state.touched = false; });
  element.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: 1, ArrowRight: -1 }[event.key];
    if (step === undefined) return;
    state.touched = true;
    state.place = Math.round(state.place) + step;
    state.show();
    event.preventDefault();
  });
  watcher.observe(element);
  state.show();
  return state;
}

const turning = [...document.querySelectorAll(".turn")].map((element) => [element, turntable(element)]);
if (!still) {
  setInterval(() => {
    for (const [element, state] of turning) {
      if (state.touched || !seen.has(element)) continue;
      state.place += 1;
      state.show();
    }
  }, 120);
}
