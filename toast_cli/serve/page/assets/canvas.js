// A click on a picture selects a point; a drag selects a box. Both are sent as shares of the picture, 0 to 1.
const LEAST_DRAG = 8;
let begun = null;
const clamp = (number) => Math.min(Math.max(number, 0), 1);
const place = (event, stage) => {
  const bounds = stage.getBoundingClientRect();
  return [clamp((event.clientX - bounds.left) / bounds.width), clamp((event.clientY - bounds.top) / bounds.height)];
};
const forget = () => {
  if (begun && begun.ghost) begun.ghost.remove();
  begun = null;
};
element.addEventListener("pointerdown", (event) => {
  const stage = event.target.closest(".stage");
  if (!stage || event.button !== 0 || !event.isPrimary) return;
  begun = { stage, x: event.clientX, y: event.clientY, from: place(event, stage), ghost: null };
});
window.addEventListener("pointermove", (event) => {
  if (!begun || !event.isPrimary) return;
  if (!begun.ghost) {
    if (Math.hypot(event.clientX - begun.x, event.clientY - begun.y) < LEAST_DRAG) return;
    begun.ghost = document.createElement("div");
    begun.ghost.className = "ghost";
    begun.stage.append(begun.ghost);
  }
  const to = place(event, begun.stage);
  const [left, top] = [0, 1].map((axis) => Math.min(begun.from[axis], to[axis]));
  const [width, height] = [0, 1].map((axis) => Math.abs(begun.from[axis] - to[axis]));
  Object.assign(begun.ghost.style, { left: `${100 * left}%`, top: `${100 * top}%`,
    width: `${100 * width}%`, height: `${100 * height}%` });
});
window.addEventListener("pointerup", (event) => {
  if (!begun || !event.isPrimary) return;
  const to = place(event, begun.stage), from = begun.from, dragged = begun.ghost !== null;
  forget();
  if (dragged) {
    trigger("select", { left: Math.min(from[0], to[0]), top: Math.min(from[1], to[1]),
      width: Math.abs(from[0] - to[0]), height: Math.abs(from[1] - to[1]) });
  } else {
    trigger("select", { left: from[0], top: from[1], width: 0, height: 0 });
  }
});
window.addEventListener("pointercancel", forget);
