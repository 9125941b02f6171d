// The image plane: the 2D input, and the shown stage projected back into it.

function drawPlane(canvas, state, theme) {
  const { ctx, width, height } = prepare(canvas);
  if (!width || !height) return;
  const { clip, time } = state;
  const box = { left: 34, top: 1, width: width - 35, height: height - 23 };
  const { middle, scale } = windowAt(clip, time, box.width, box.height);
  const at = ([u, v]) => [
    box.left + box.width / 2 + (u - middle[0]) * scale,
    box.top + box.height / 2 + (v - middle[1]) * scale];

  ctx.fillStyle = css(theme.field);
  ctx.fillRect(box.left, box.top, box.width, box.height);
  drawRulers(ctx, middle, scale, at, box, theme);
  ctx.save();
  ctx.beginPath();
  ctx.rect(box.left, box.top, box.width, box.height);
  ctx.clip();
  const [x0, y0] = at([0, 0]), [x1, y1] = at(clip.image);
  ctx.strokeStyle = css(theme.muted, 0.8);
  ctx.lineWidth = 1;
  ctx.strokeRect(x0, y0, x1 - x0, y1 - y0);
  const seen = sample(clip.seen, clip, 0, time, 2).map(at);
  const projected = sample(clip.projected, clip, state.stage, time, 2).map(at);
  const known = (p) => !Number.isNaN(p[0]);
  const bone = (points, a, b) => {
    if (!known(points[a]) || !known(points[b])) return;
    ctx.beginPath(); ctx.moveTo(...points[a]); ctx.lineTo(...points[b]); ctx.stroke();
  };
  for (const [a, b, side] of clip.bones) {
    ctx.lineWidth = 5;
    ctx.strokeStyle = css(theme[shade("input", side)]);
    bone(seen, a, b);
  }
  const name = state.stage === 0 ? "lifter" : "refined";
  ctx.lineWidth = 1.8;
  ctx.strokeStyle = css(theme[name]);
  ctx.setLineDash(state.stage === 0 ? [5, 5] : []);
  if (state.layers[name]) for (const [a, b] of clip.bones) bone(projected, a, b);
  ctx.setLineDash([]);
  for (const p of seen.filter(known)) {
    ctx.beginPath(); ctx.arc(p[0], p[1], 3.6, 0, 2 * Math.PI);
    ctx.fillStyle = css(theme.field); ctx.fill();
    ctx.lineWidth = 1.6; ctx.strokeStyle = css(theme.ink); ctx.stroke();
  }
  ctx.restore();
}

// Pixel coordinates along the left and the lower edge, with faint lines across.
function drawRulers(ctx, middle, scale, at, box, theme) {
  const step = niceStep(70 / scale), right = box.left + box.width, low = box.top + box.height;
  const lines = (c, length) => {
    const first = Math.ceil((middle[c] - length / 2 / scale) / step), values = [];
    for (let k = first; k * step <= middle[c] + length / 2 / scale; k++) values.push(k * step);
    return values;
  };
  ctx.font = `11px ${FONT}`;
  ctx.fillStyle = css(theme.muted);
  ctx.strokeStyle = css(theme.line, 0.7);
  ctx.lineWidth = 1;
  ctx.beginPath();
  for (const u of lines(0, box.width)) {
    const [x] = at([u, 0]);
    ctx.moveTo(x, box.top); ctx.lineTo(x, low);
    ctx.textAlign = "center"; ctx.textBaseline = "top";
    if (x > box.left + 8 && x < right - 12) ctx.fillText(String(u), x, low + 7);
  }
  for (const v of lines(1, box.height)) {
    const [, y] = at([0, v]);
    ctx.moveTo(box.left, y); ctx.lineTo(right, y);
    ctx.textAlign = "right"; ctx.textBaseline = "middle";
    if (y > box.top + 6 && y < low - 6) ctx.fillText(String(v), box.left - 7, y);
  }
  ctx.stroke();
}

// The smallest of 1, 2, 5 times a power of ten that is at least `value`.
function niceStep(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((f) => f * power).find((s) => s >= value * 0.999);
}
