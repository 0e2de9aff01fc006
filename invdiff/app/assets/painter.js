// Paint over what is to be filled. The picture lies below, the paint on a canvas of its own; every stroke can be undone.
function start() {
  const root = element.querySelector(".painter");
  if (!root || root.dataset.ready) return;
  root.dataset.ready = "yes";
  const picture = root.querySelector("img"), canvas = root.querySelector("canvas"), cursor = root.querySelector(".cursor");
  const size = root.querySelector("input[type=range]"), said = root.querySelector("output");
  const width = Number(root.dataset.width), height = Number(root.dataset.height);
  canvas.width = width; canvas.height = height;
  const pen = canvas.getContext("2d"), ink = "#d81b60";
  let strokes = [], undone = [], drawing = null, at = [width / 2, height / 2];

  const radius = () => Math.max(0.5, Number(size.value) / 200 * Math.min(width, height));
  function stamp(stroke) {
    pen.globalCompositeOperation = stroke.erase ? "destination-out" : "source-over";
    pen.strokeStyle = pen.fillStyle = ink;
    pen.lineCap = pen.lineJoin = "round";
    pen.lineWidth = 2 * stroke.radius;
    pen.beginPath();
    const [first, ...rest] = stroke.points;
    pen.moveTo(...first);
    rest.forEach(point => pen.lineTo(...point));
    if (rest.length) pen.stroke();
    pen.beginPath();
    pen.arc(...first, stroke.radius, 0, 7);
    pen.fill();
  }
  function redraw() {
    pen.clearRect(0, 0, width, height);
    strokes.forEach(stamp);
    said.value = strokes.length ? strokes.length + (strokes.length === 1 ? " stroke" : " strokes") : "nothing painted yet";
    root.dataset.strokes = strokes.length;
  }
  const erasing = () => root.querySelector("[data-do=erase]").getAttribute("aria-pressed") === "true";
  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width * width, (event.clientY - box.top) / box.height * height];
  }
  function show() {
    cursor.style.left = at[0] / width * 100 + "%";
    cursor.style.top = at[1] / height * 100 + "%";
    cursor.style.width = 2 * radius() / width * 100 + "%";
  }
  canvas.addEventListener("pointerdown", event => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    drawing = { points: [place(event)], radius: radius(), erase: erasing() };
    strokes.push(drawing); undone = [];
    redraw();
  });
  canvas.addEventListener("pointermove", event => {
    at = place(event); show();
    if (!drawing) return;
    drawing.points.push(at);
    redraw();
  });
  const end = () => { drawing = null; };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("keydown", event => {
    const step = Math.max(1, radius() / 2);
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (moves[event.key]) {
      at = [at[0] + moves[event.key][0], at[1] + moves[event.key][1]].map((v, i) => Math.min(Math.max(v, 0), i ? height : width));
      if (event.shiftKey) { strokes.push({ points: [at], radius: radius(), erase: erasing() }); redraw(); }
    } else if (event.key === " " || event.key === "Enter") {
      strokes.push({ points: [at], radius: radius(), erase: erasing() }); undone = []; redraw();
    } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) undo();
    else if (event.key === "y" && (event.ctrlKey || event.metaKey)) redo();
    else return;
    show(); event.preventDefault();
  });
  function undo() { if (strokes.length) { undone.push(strokes.pop()); redraw(); } }
  function redo() { if (undone.length) { strokes.push(undone.pop()); redraw(); } }
  root.addEventListener("click", event => {
    const button = event.target.closest("[data-do]");
    if (!button) return;
    const what = button.dataset.do;
    if (what === "undo") undo();
    if (what === "redo") redo();
    if (what === "clear") { strokes = []; undone = []; redraw(); }
    if (what === "erase") button.setAttribute("aria-pressed", erasing() ? "false" : "true");
  });
  size.addEventListener("input", show);
  root.painted = () => strokes.some(stroke => !stroke.erase) ? canvas.toDataURL("image/png") : "";
  redraw(); show();
}
start();
watch("value", start);
