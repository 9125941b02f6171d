// State, controls and the frame loop.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const HOME = { azimuth: 0.72, elevation: 0.24, distance: 3.9 };
const ICONS = {
  play: '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M8 5.2v13.6L19 12z"/></svg>',
  pause: '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M7 5h3.6v14H7zM13.4 5H17v14h-3.6z"/></svg>',
};
const state = {
  clip: null, time: 0, playing: false, speed: 1, stage: 0, blend: 0, aim: 0,
  orbit: { ...HOME }, goal: null, layers: { truth: true, lifter: true, refined: true },
};
let theme = readTheme(), dirty = true, last = null, drawn = null;
const clips = data.clips.map(() => null);
const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
const number = (v) => (v === null || Number.isNaN(v) ? "–" : v.toFixed(1));

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function chooseClip(index) {
  clips[index] ||= decode(data.clips[index]);
  const clip = clips[index];
  Object.assign(state, { clip, time: 0, stage: clip.S - 1 });
  [...byId("clips").children].forEach((b, i) => b.setAttribute("aria-pressed", i === index));
  byId("scrub").max = clip.T - 1;
  byId("stage").max = clip.S - 1;
  byId("stage").value = state.stage;
  byId("unit").textContent = clip.real ? "MPJPE in this frame" : "2D residual in this frame";
  byId("stage-caption").textContent = `clip means, ${clip.unit}`;
  byId("stage-ticks").replaceChildren(...clip.means.map((v, k) =>
    element("li", {}, element("b", {}, k === 0 ? "Lifter" : String(k)), number(v))));
  byId("sides").textContent = clip.sides.some((s) => s)
    ? "Left limbs are darker than right ones." : "";
  byId("joints-section").hidden = !clip.real;
  buildLayers(clip);
  refresh();
}

// The legend shows how each skeleton is drawn, carries its error, and switches it on and off.
function buildLayers(clip) {
  const names = { truth: "Truth", lifter: "Lifter", refined: "Refined" };
  byId("layers").replaceChildren(...Object.keys(names)
    .filter((name) => name !== "truth" || clip.real)
    .map((name) => {
      const sample = element("span", { class: `sample ${name}`, "aria-hidden": "true" });
      const value = name === "truth" ? "" : "–";
      const button = element("button", { type: "button", "data-layer": name, "aria-pressed": state.layers[name] },
        sample, element("span", { class: "name" }, names[name]), element("span", { class: "change" }),
        element("span", { class: "value" }, value));
      button.onclick = () => {
        state.layers[name] = !state.layers[name];
        button.setAttribute("aria-pressed", state.layers[name]);
        refresh();
      };
      return button;
    }));
}

function writeNumbers() {
  const { clip, stage } = state, frame = Math.round(state.time);
  const [before, after] = [clip.scores[0][frame], clip.scores[stage][frame]];
  const row = (name, part) => document.querySelector(`[data-layer=${name}] .${part}`);
  const withUnit = (v) => [number(v), element("small", {}, ` ${clip.unit}`)];
  row("lifter", "value").replaceChildren(...withUnit(before));
  row("refined", "value").replaceChildren(...withUnit(after));
  row("refined", "name").textContent = stage === clip.S - 1 ? "Refined" : clip.stageNames[stage];
  const percent = before && after !== null ? Math.round(100 * (after / before - 1)) : NaN;
  row("refined", "change").textContent = stage === 0 || Number.isNaN(percent) ? ""
    : percent === 0 ? "±0 %" : `${percent < 0 ? "−" : "+"}${Math.abs(percent)} %`;
  const residual = clip.residuals[stage][frame];
  byId("residual").textContent = `${clip.stageNames[stage]} is ${number(residual)} px off`;
  byId("frame").textContent = `Frame ${frame + 1} / ${clip.T}`;
  byId("seconds").textContent = `${(state.time / clip.fps).toFixed(2)} s`;
  byId("scrub").value = frame;
  byId("scrub").setAttribute("aria-valuetext",
    `frame ${frame + 1}, lifter ${number(before)} ${clip.unit}, ${clip.stageNames[stage]} ${number(after)} ${clip.unit}`);
  byId("stage").setAttribute("aria-valuetext", clip.stageNames[stage]);
  [...byId("stage-ticks").children].forEach((tick, k) => tick.classList.toggle("on", k === stage));
}

function refresh() {
  if (!dirty) requestAnimationFrame(tick);
  dirty = true;
}

function tick(now) {
  dirty = false;
  const elapsed = last === null ? 0 : Math.min(0.1, (now - last) / 1000);
  const { clip } = state;
  if (state.playing && clip.T > 1) {
    state.time += elapsed * state.speed * clip.fps;
    if (state.time > clip.T - 1) state.time %= clip.T - 1;
  }
  moveView(still ? 1 : 1 - Math.exp(-elapsed * 9));
  drawn = drawScene(byId("scene"), state, theme);
  drawPlane(byId("plane"), state, theme);
  drawTimeline(byId("curve"), state, theme);
  drawJoints(byId("joints"), state, theme);
  writeNumbers();
  const moving = state.playing || state.goal || state.blend !== state.aim;
  last = moving ? now : null;
  if (moving) refresh();
}

// Glides towards the chosen viewpoint; the last bit is a jump so that it ends.
function moveView(share) {
  const near = (a, b) => Math.abs(a - b) < 2e-3;
  state.blend += (state.aim - state.blend) * share;
  if (near(state.blend, state.aim)) state.blend = state.aim;
  if (!state.goal) return;
  const { orbit, goal } = state;
  for (const key of Object.keys(goal)) orbit[key] += (goal[key] - orbit[key]) * share;
  if (Object.keys(goal).every((key) => near(orbit[key], goal[key]))) {
    Object.assign(orbit, goal);
    state.goal = null;
  }
}

function setPlaying(playing) {
  state.playing = playing;
  if (!playing) state.time = Math.round(state.time);
  byId("play").innerHTML = playing ? ICONS.pause : ICONS.play;
  byId("play").setAttribute("aria-label", playing ? "Pause" : "Play");
  refresh();
}

function setView(name) {
  const goals = { side: { azimuth: Math.PI / 2, elevation: 0.12 }, above: { elevation: 1.35 }, free: { ...HOME } };
  // Take the short way round: the azimuth may have been dragged through several turns.
  state.orbit.azimuth = Math.atan2(Math.sin(state.orbit.azimuth), Math.cos(state.orbit.azimuth));
  state.aim = name === "camera" ? 1 : 0;
  state.goal = name === "camera" ? null : { ...state.orbit, ...goals[name] };
  markView(name);
  refresh();
}

function markView(name) {
  for (const button of document.querySelectorAll("[data-view]"))
    button.setAttribute("aria-pressed", button.dataset.view === name && name !== "free");
}

function turn(dx, dy) {
  state.aim = 0;
  state.goal = null;
  state.orbit.azimuth -= dx;
  state.orbit.elevation = clamp(state.orbit.elevation + dy, -0.15, 1.5);
  markView("free");
  refresh();
}

function zoom(factor) {
  state.aim = 0;
  state.goal = null;
  state.orbit.distance = clamp(state.orbit.distance * factor, 1.4, 14);
  markView("free");
  refresh();
}

function bindScene() {
  const scene = byId("scene"), pointers = new Map();
  scene.addEventListener("pointerdown", (event) => {
    scene.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    document.body.classList.add("turned");
  });
  scene.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = [event.clientX, event.clientY];
    const other = [...pointers].find(([id]) => id !== event.pointerId);
    if (other) {
      // Two fingers: zoom by how the distance between them changes.
      const apart = (p) => Math.hypot(p[0] - other[1][0], p[1] - other[1][1]) || 1;
      zoom(apart(before) / apart(now));
    } else {
      turn((now[0] - before[0]) * 0.008, (now[1] - before[1]) * 0.006);
    }
    pointers.set(event.pointerId, now);
  });
  for (const name of ["pointerup", "pointercancel"])
    scene.addEventListener(name, (event) => pointers.delete(event.pointerId));
  scene.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(clamp(event.deltaY, -120, 120) * 0.0015));
  }, { passive: false });
  const keys = {
    ArrowLeft: () => turn(-0.12, 0), ArrowRight: () => turn(0.12, 0),
    ArrowUp: () => turn(0, 0.09), ArrowDown: () => turn(0, -0.09),
    "+": () => zoom(0.9), "=": () => zoom(0.9), "-": () => zoom(1 / 0.9),
    Home: () => setView("free"), c: () => setView(state.aim ? "free" : "camera"),
  };
  scene.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
}

function bindControls() {
  byId("play").onclick = () => setPlaying(!state.playing);
  byId("scrub").oninput = (event) => {
    setPlaying(false);
    state.time = +event.target.value;
    refresh();
  };
  byId("stage").oninput = (event) => { state.stage = +event.target.value; refresh(); };
  for (const button of document.querySelectorAll("[data-speed]")) {
    button.setAttribute("aria-pressed", +button.dataset.speed === state.speed);
    button.onclick = () => {
      state.speed = +button.dataset.speed;
      for (const b of document.querySelectorAll("[data-speed]")) b.setAttribute("aria-pressed", b === button);
    };
  }
  for (const button of document.querySelectorAll("[data-view]"))
    button.onclick = () => setView(button.dataset.view);
  document.addEventListener("keydown", (event) => {
    if (event.key !== " " || event.target.closest("button")) return;
    event.preventDefault();
    setPlaying(!state.playing);
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    theme = readTheme();
    refresh();
  });
  const watcher = new ResizeObserver(refresh);
  for (const id of ["scene", "plane", "curve", "joints"]) watcher.observe(byId(id));
}

function start() {
  byId("title").textContent = data.title;
  byId("description").textContent = data.description;
  byId("notes").append(...data.notes.map((note) => element("p", {}, note)));
  byId("clips").append(...data.clips.map((clip, i) => {
    const means = (clip.errors || clip.residuals).map(mean);
    const button = element("button", { type: "button" }, element("b", {}, clip.title),
      element("span", {}, `${number(means[0])} → ${number(means[means.length - 1])}`));
    button.title = clip.errors ? "MPJPE of lifter and last stage, mm" : "2D residual of lifter and last stage, px";
    button.onclick = () => chooseClip(i);
    return button;
  }));
  byId("clips").hidden = data.clips.length < 2;
  bindScene();
  bindControls();
  chooseClip(0);
  markView("free");
  setPlaying(!still);
  requestAnimationFrame(tick);
}

start();
// For scripts and tests: where things are, and what is drawn where (CSS px in the 3D view).
window.erdViewer = {
  get frame() { return Math.round(state.time); },
  get playing() { return state.playing; },
  get stage() { return state.stage; },
  get settled() { return !state.goal && state.blend === state.aim; },
  screen: (name) => drawn.screen[name],
};
