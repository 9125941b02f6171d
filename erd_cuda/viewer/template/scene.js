// The 3D view: ground, shadow, the real camera, and the skeletons from far to near.

const FONT = getComputedStyle(document.body).fontFamily;

function readTheme() {
  const style = getComputedStyle(document.documentElement);
  const rgb = (name) => {
    const hex = style.getPropertyValue(name).trim().slice(1);
    return [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16));
  };
  const names = ["field", "ink", "muted", "line", "grid", "shadow", "truth",
    "input-left", "input", "input-right",
    "lifter-left", "lifter", "lifter-right", "refined-left", "refined", "refined-right"];
  return Object.fromEntries(names.map((name) => [name, rgb(`--${name}`)]));
}
const css = (rgb, alpha = 1) => `rgba(${rgb.map(Math.round).join(",")},${alpha})`;

// A canvas whose pixels match the screen's; returns its context in CSS px, cleared.
function prepare(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  const ctx = canvas.getContext("2d");
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.clearRect(0, 0, width, height);
  ctx.lineCap = ctx.lineJoin = "round";
  return { ctx, width, height };
}

function drawScene(canvas, state, theme) {
  const { ctx, width, height } = prepare(canvas);
  if (!width || !height) return;
  const { clip, time, layers } = state;
  const t = Math.floor(time), next = Math.min(t + 1, clip.T - 1);
  const target = mix(clip.path[t], clip.path[next], time - t);
  const view = makeView(state, target, width, height);
  const body = Math.hypot(...add(target, view.eye, -1));
  drawGround(ctx, view, target, theme);

  const poses = {
    truth: clip.real && sample(clip.real, clip, 0, time, 3),
    lifter: sample(clip.poses, clip, 0, time, 3),
    refined: sample(clip.poses, clip, state.stage, time, 3),
  };
  const shown = ["truth", "lifter", "refined"].filter((name) => poses[name] && layers[name]);
  const caster = ["refined", "truth", "lifter"].find((name) => shown.includes(name));
  if (caster) drawShadow(ctx, view, poses[caster], clip, theme);
  if (state.blend < 0.98) drawCamera(ctx, view, clip, theme);

  const screen = Object.fromEntries(
    shown.map((name) => [name, poses[name].map((p) => look(view, p))]));
  if (screen.truth) drawGhost(ctx, view, screen.truth, clip, theme);
  const pieces = [];
  for (const name of shown) {
    if (name === "truth") continue;
    for (const [a, b, side] of clip.bones) {
      const [p, q] = [screen[name][a], screen[name][b]];
      if (p && q) pieces.push({ name, p, q, side, depth: (p[2] + q[2]) / 2 });
    }
  }
  // Where the two run together the dashes lie on top, so that both can be seen.
  const order = ({ name, depth }) => depth - (name === "lifter" ? 0.08 : 0);
  pieces.sort((a, b) => order(b) - order(a));
  for (const piece of pieces) drawBone(ctx, view, piece, body, theme);
  for (const name of shown) labelSides(ctx, name, screen[name], clip, theme, shown);
  return { view, screen };
}

// Half-metre grid around the person that fades out; whole metres are stronger.
function drawGround(ctx, view, target, theme) {
  const reach = 4.5, step = 0.5, buckets = new Map();
  const snap = (v) => Math.round(v / step) * step;
  const [x0, z0] = [snap(target[0]), snap(target[2])];
  const segment = (a, b, strong) => {
    const middle = mix(a, b, 0.5);
    const away = Math.hypot(middle[0] - target[0], middle[2] - target[2]) / reach;
    const level = Math.round(8 * (1 - away * away));
    if (level <= 0) return;
    const p = look(view, a), q = look(view, b);
    if (!p || !q) return;
    const key = level + (strong ? 100 : 0);
    if (!buckets.has(key)) buckets.set(key, new Path2D());
    buckets.get(key).moveTo(p[0], p[1]);
    buckets.get(key).lineTo(q[0], q[1]);
  };
  for (let u = -reach; u <= reach; u += step) {
    for (let v = -reach; v < reach; v += step) {
      const strong = (w) => Math.abs(w - Math.round(w)) < 0.01;
      segment([x0 + u, 0, z0 + v], [x0 + u, 0, z0 + v + step], strong(x0 + u));
      segment([x0 + v, 0, z0 + u], [x0 + v + step, 0, z0 + u], strong(z0 + u));
    }
  }
  for (const [key, path] of buckets) {
    ctx.lineWidth = key > 50 ? 1.2 : 0.8;
    ctx.strokeStyle = css(theme.grid, (key % 100) / 8 * (key > 50 ? 1 : 0.5));
    ctx.stroke(path);
  }
}

// A soft shadow: the pose flattened onto the ground, stroked again and again, ever narrower.
function drawShadow(ctx, view, pose, clip, theme) {
  const flat = pose.map((p) => look(view, [p[0] + 0.12 * p[1], 0, p[2] - 0.08 * p[1]]));
  const path = new Path2D();
  let depth = 0, count = 0;
  for (const [a, b] of clip.bones) {
    if (!flat[a] || !flat[b]) continue;
    path.moveTo(flat[a][0], flat[a][1]);
    path.lineTo(flat[b][0], flat[b][1]);
    depth += flat[b][2]; count += 1;
  }
  if (!count) return;
  for (let thickness = 0.2; thickness > 0.02; thickness -= 0.02) {
    ctx.lineWidth = thickness * view.focal[0] * count / depth;
    ctx.strokeStyle = css(theme.shadow, 0.026);
    ctx.stroke(path);
  }
}

// The real camera as a small pyramid, standing on a thin line to the ground.
function drawCamera(ctx, view, clip, theme) {
  const [fx, fy, cx, cy] = clip.intrinsics, [w, h] = clip.image, reach = 0.35;
  const corner = (u, v) => {
    const ray = [(u - cx) / fx * reach, (v - cy) / fy * reach, reach];
    return look(view, add(clip.eye, clip.axes.map((row) => dot(row, ray))));
  };
  const eye = look(view, clip.eye), foot = look(view, [clip.eye[0], 0, clip.eye[2]]);
  const corners = [corner(0, 0), corner(w, 0), corner(w, h), corner(0, h)];
  if (!eye || corners.some((c) => !c)) return;
  ctx.strokeStyle = css(theme.muted, 0.9);
  ctx.lineWidth = 1.2;
  ctx.beginPath();
  corners.forEach((c, i) => {
    const d = corners[(i + 1) % 4];
    ctx.moveTo(eye[0], eye[1]); ctx.lineTo(c[0], c[1]); ctx.lineTo(d[0], d[1]);
  });
  ctx.stroke();
  if (!foot) return;
  ctx.setLineDash([2, 4]);
  ctx.beginPath(); ctx.moveTo(eye[0], eye[1]); ctx.lineTo(foot[0], foot[1]); ctx.stroke();
  ctx.setLineDash([]);
}

// The truth: one pale body behind the lines, filled at once so that crossings do not darken.
function drawGhost(ctx, view, screen, clip, theme) {
  const path = new Path2D();
  let depth = 0, count = 0;
  for (const [a, b] of clip.bones) {
    const [p, q] = [screen[a], screen[b]];
    if (!p || !q) continue;
    path.moveTo(p[0], p[1]);
    path.lineTo(q[0], q[1]);
    depth += q[2]; count += 1;
  }
  if (!count) return;
  ctx.lineWidth = Math.max(7, 0.08 * view.focal[0] * count / depth);
  ctx.strokeStyle = css(theme.truth, 0.28);
  ctx.stroke(path);
}

// The name of the colour for a side of the body: -1 left, 0 middle, 1 right.
const shade = (name, side) => name + (side < 0 ? "-left" : side > 0 ? "-right" : "");

function drawBone(ctx, view, { name, p, q, side, depth }, body, theme) {
  // Nearer is stronger: up to 45 cm behind the body's middle a limb sinks into the background.
  const far = clamp((depth - body) / 0.9 + 0.5, 0, 1);
  const colour = mix(theme[shade(name, side)], theme.field, 0.42 * far);
  const scale = view.focal[0] / depth;
  const solid = name === "refined";
  const thickness = Math.max(solid ? 2.6 : 2, (solid ? 0.024 : 0.015) * scale);
  const line = (width, style, dash) => {
    ctx.lineWidth = width; ctx.strokeStyle = style; ctx.setLineDash(dash);
    ctx.beginPath(); ctx.moveTo(p[0], p[1]); ctx.lineTo(q[0], q[1]); ctx.stroke();
  };
  // A rim in the background's colour separates limbs that cross.
  if (solid) line(thickness + 3, css(theme.field, 0.9), []);
  line(thickness, css(colour), name === "lifter" ? [1.8 * thickness, 2.2 * thickness] : []);
  ctx.setLineDash([]);
  for (const [x, y] of [p, q]) {
    ctx.beginPath();
    ctx.arc(x, y, thickness * (solid ? 0.86 : 0.8), 0, 2 * Math.PI);
    ctx.fillStyle = css(colour);
    ctx.fill();
  }
}

// "L" and "R" at the ends of the limbs of the skeleton that matters most.
function labelSides(ctx, name, screen, clip, theme, shown) {
  if (name !== shown[shown.length - 1]) return;
  const inner = new Set(clip.bones.map(([parent]) => parent));
  ctx.font = `600 11px ${FONT}`;
  ctx.textAlign = "center"; ctx.textBaseline = "middle";
  clip.bones.forEach(([parent, joint, side]) => {
    const [p, q] = [screen[parent], screen[joint]];
    if (!side || inner.has(joint) || !p || !q) return;
    const length = Math.hypot(q[0] - p[0], q[1] - p[1]) || 1;
    const [x, y] = [0, 1].map((c) => q[c] + (q[c] - p[c]) / length * 14);
    ctx.lineWidth = 3;
    ctx.strokeStyle = css(theme.field, 0.9);
    ctx.strokeText(side < 0 ? "L" : "R", x, y);
    ctx.fillStyle = css(theme.muted);
    ctx.fillText(side < 0 ? "L" : "R", x, y);
  });
}
