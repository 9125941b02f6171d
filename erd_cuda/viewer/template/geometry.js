// Vectors, the packed clip, and the two cameras (an orbit around the person, and the real one).

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const add = (a, b, s = 1) => [a[0] + s * b[0], a[1] + s * b[1], a[2] + s * b[2]];
const mix = (a, b, t) => a.map((v, i) => v + (b[i] - v) * t);
const cross = (a, b) => [
  a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const unit = (a) => { const n = Math.hypot(...a); return a.map((v) => v / n); };
const clamp = (v, low, high) => Math.min(high, Math.max(low, v));

// {scale, data}: base64 of 16-bit integers, -32768 for a value that is missing.
function unpack(field) {
  const bytes = Uint8Array.from(atob(field.data), (c) => c.charCodeAt(0));
  const integers = new Int16Array(bytes.buffer);
  return Float32Array.from(integers, (v) => (v === -32768 ? NaN : v * field.scale));
}

// Poses become metres in the world: x right, y up from the ground, z towards the real camera.
function decode(raw) {
  const T = raw.frames, J = raw.joints.length, S = raw.stageNames.length;
  const root = unpack(raw.root), ground = raw.ground;
  const toWorld = (packed, sets) => {
    const values = unpack(packed), out = new Float32Array(values.length);
    for (let i = 0; i < sets * T * J; i++) {
      const t = Math.floor(i / J) % T;
      const p = [0, 1, 2].map((c) => values[3 * i + c] + root[3 * t + c]);
      for (let c = 0; c < 3; c++) out[3 * i + c] = (dot(raw.axes[c], p) - (c === 1 ? ground : 0)) / 1000;
    }
    return out;
  };
  const side = (j) => (raw.left.includes(j) ? -1 : raw.right.includes(j) ? 1 : 0);
  const bones = raw.parents.map((p, j) => [p, j, side(j)]).filter(([p]) => p >= 0);
  const clip = {
    ...raw, T, J, S, bones,
    sides: raw.joints.map((_, j) => side(j)),
    poses: toWorld(raw.stages, S),
    real: raw.truth ? toWorld(raw.truth, 1) : null,
    seen: unpack(raw.keypoints),
    projected: unpack(raw.projections),
    eye: [0, -ground / 1000, 0],
    scores: raw.errors || raw.residuals,
    unit: raw.errors ? "mm" : "px",
  };
  clip.path = followed(clip);
  clip.framing = framed(clip);
  clip.means = clip.scores.map(mean);
  return clip;
}

function mean(row) {
  const known = row.filter((v) => v !== null);
  return known.length ? known.reduce((a, b) => a + b, 0) / known.length : NaN;
}

// The mean of `rows` over `reach` frames to either side, so that what follows it glides.
function smoothed(rows, reach) {
  return rows.map((_, t) => {
    const window = rows.slice(Math.max(0, t - reach), t + reach + 1);
    return rows[t].map((_, c) => mean(window.map((row) => row[c])));
  });
}

// Where the view looks: the middle of the body, at a constant height.
function followed(clip) {
  const { T, J } = clip, source = clip.real || clip.poses.subarray((clip.S - 1) * T * J * 3);
  const middles = [];
  clip.height = 0;
  for (let t = 0; t < T; t++) {
    const [x, y, z] = [0, 1, 2].map((c) =>
      Array.from({ length: J }, (_, j) => source[3 * (t * J + j) + c]));
    const middle = (v) => (Math.min(...v) + Math.max(...v)) / 2;
    clip.height = Math.max(clip.height, ...y);
    middles.push([middle(x), 0, middle(z)]);
  }
  return smoothed(middles, Math.round(clip.fps)).map(([x, , z]) => [x, 0.47 * clip.height, z]);
}

// The part of the image that is shown follows the person; its size, in px, holds every frame.
function framed(clip) {
  const points = (t) => Array.from({ length: clip.J }, (_, j) => {
    const i = 2 * (t * clip.J + j);
    return [clip.seen[i], clip.seen[i + 1]];
  }).filter(([u]) => !Number.isNaN(u));
  let last = [clip.image[0] / 2, clip.image[1] / 2];
  const middles = Array.from({ length: clip.T }, (_, t) => {
    const seen = points(t);
    if (seen.length) {
      last = [0, 1].map((c) => {
        const values = seen.map((p) => p[c]);
        return (Math.min(...values) + Math.max(...values)) / 2;
      });
    }
    return last;
  });
  const centres = smoothed(middles, Math.round(clip.fps / 2)), half = [1, 1];
  centres.forEach((centre, t) => points(t).forEach((p) => {
    for (const c of [0, 1]) half[c] = Math.max(half[c], Math.abs(p[c] - centre[c]));
  }));
  return { centres, half };
}

// The window onto the image at `time`: its middle in px and the CSS px per px.
function windowAt(clip, time, width, height) {
  const { centres, half } = clip.framing, t = Math.floor(time);
  const middle = mix(centres[t], centres[Math.min(t + 1, clip.T - 1)], time - t);
  return { middle, scale: 0.44 * Math.min(width / half[0], height / half[1]) };
}

// Values of frame `time` (it may lie between two frames) of set `set`, `width` numbers a joint.
function sample(values, clip, set, time, width) {
  const t = Math.floor(time), next = Math.min(t + 1, clip.T - 1), s = time - t, out = [];
  const size = clip.J * width, a = (set * clip.T + t) * size, b = (set * clip.T + next) * size;
  for (let j = 0; j < clip.J; j++) {
    const p = [];
    for (let c = 0; c < width; c++) {
      const i = j * width + c;
      p.push(s === 0 ? values[a + i] : values[a + i] + (values[b + i] - values[a + i]) * s);
    }
    out.push(p);
  }
  return out;
}

const onSphere = (azimuth, elevation) => [
  Math.cos(elevation) * Math.sin(azimuth), Math.sin(elevation),
  Math.cos(elevation) * Math.cos(azimuth)];

// A view is an eye, three axes (right, up, backward), focal lengths and a centre in CSS px.
// `blend` goes from the orbit (0) to the real camera (1), both moving around the person.
function makeView(state, target, width, height) {
  const { orbit, blend, clip } = state;
  // The person's height takes the same share of the shorter side whatever the window's shape.
  const focal = 1.55 * Math.min(height, 1.25 * width);
  let { azimuth, elevation, distance } = orbit;
  distance *= clip.height / 1.75;
  const offset = add(clip.eye, target, -1), reach = Math.hypot(...offset);
  if (blend > 0) {
    const turn = Math.atan2(offset[0], offset[2]) - azimuth;
    azimuth += Math.atan2(Math.sin(turn), Math.cos(turn)) * blend;
    elevation += (Math.asin(offset[1] / reach) - elevation) * blend;
    distance += (reach - distance) * blend;
  }
  const backward = onSphere(azimuth, elevation);
  const eye = blend === 1 ? clip.eye : add(target, backward, distance);
  const right = [Math.cos(azimuth), 0, -Math.sin(azimuth)];
  const view = {
    eye, axes: [right, cross(backward, right), backward],
    focal: [focal, focal], centre: [width / 2, height / 2],
  };
  if (blend > 0) {
    // Columns of the rotation to the world are the real camera's right, down and forward.
    const real = [0, 1, 2].map((c) => clip.axes.map((row) => (c === 0 ? row[c] : -row[c])));
    const back = unit(mix(backward, real[2], blend));
    const side = unit(cross(mix(view.axes[1], real[1], blend), back));
    view.axes = [side, cross(back, side), back];
    const [fx, fy, cx, cy] = clip.intrinsics;
    const { middle, scale } = windowAt(clip, state.time, width, height);
    view.focal = mix(view.focal, [fx * scale, fy * scale], blend);
    view.centre = mix(view.centre, [
      width / 2 + (cx - middle[0]) * scale, height / 2 + (cy - middle[1]) * scale], blend);
  }
  return view;
}

// (x, y) in CSS px and the depth in metres; null closer than 5 cm or behind the eye.
function look(view, point) {
  const d = add(point, view.eye, -1), depth = -dot(view.axes[2], d);
  if (depth < 0.05) return null;
  return [
    view.centre[0] + view.focal[0] * dot(view.axes[0], d) / depth,
    view.centre[1] - view.focal[1] * dot(view.axes[1], d) / depth, depth];
}
