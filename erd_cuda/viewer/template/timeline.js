// The error of the lifter and of the shown stage over time, with the playhead.

function drawTimeline(canvas, state, theme) {
  const { ctx, width, height } = prepare(canvas);
  if (!width || !height) return;
  const { clip } = state, rows = [clip.scores[0], clip.scores[state.stage]];
  const all = clip.scores.flat().filter((v) => v !== null);
  const step = niceStep(Math.max(...all, 1e-6) / 2.2), top = step * Math.ceil(Math.max(...all, 1e-6) / step);
  const left = 50, right = 8, low = height - 6, high = 10;
  const x = (t) => left + (width - left - right) * (clip.T > 1 ? t / (clip.T - 1) : 0);
  const y = (v) => low + (high - low) * v / top;

  ctx.font = `11px ${FONT}`;
  ctx.textAlign = "right"; ctx.textBaseline = "middle";
  for (let v = 0; v <= top * 1.001; v += step) {
    ctx.strokeStyle = css(theme.line);
    ctx.lineWidth = 1;
    ctx.beginPath(); ctx.moveTo(left, y(v)); ctx.lineTo(width - right, y(v)); ctx.stroke();
    ctx.fillStyle = css(theme.muted);
    const label = v + step > top * 1.001 ? ` ${clip.unit}` : "";
    ctx.fillText(+v.toFixed(2) + label, left - 6, clamp(y(v), 7, height - 7));
  }

  // Between the curves: the stage's colour where it is better than the lifter, else the lifter's.
  if (state.stage > 0) {
    for (let t = 0; t + 1 < clip.T; t++) {
      const [a, b, c, d] = [rows[0][t], rows[0][t + 1], rows[1][t], rows[1][t + 1]];
      if ([a, b, c, d].includes(null)) continue;
      ctx.fillStyle = css(a + b >= c + d ? theme.refined : theme.lifter, 0.16);
      ctx.beginPath();
      ctx.moveTo(x(t), y(a)); ctx.lineTo(x(t + 1), y(b));
      ctx.lineTo(x(t + 1), y(d)); ctx.lineTo(x(t), y(c));
      ctx.fill();
    }
  }
  const curve = (row, colour, dash, thickness) => {
    ctx.beginPath();
    let open = false;
    row.forEach((v, t) => {
      if (v === null) { open = false; return; }
      if (open) ctx.lineTo(x(t), y(v)); else ctx.moveTo(x(t), y(v));
      open = true;
    });
    ctx.strokeStyle = css(colour); ctx.lineWidth = thickness; ctx.setLineDash(dash);
    ctx.stroke();
    ctx.setLineDash([]);
  };
  curve(rows[0], theme.lifter, [5, 4], 1.6);
  if (state.stage > 0) curve(rows[1], theme.refined, [], 2);

  const head = x(state.time), frame = Math.round(state.time);
  ctx.strokeStyle = css(theme.ink);
  ctx.lineWidth = 1.2;
  ctx.beginPath(); ctx.moveTo(head, 3); ctx.lineTo(head, low); ctx.stroke();
  rows.forEach((row, i) => {
    if (row[frame] === null || (i === 1 && state.stage === 0)) return;
    ctx.beginPath(); ctx.arc(x(frame), y(row[frame]), 4, 0, 2 * Math.PI);
    ctx.fillStyle = css(i ? theme.refined : theme.lifter); ctx.fill();
    ctx.lineWidth = 1.5; ctx.strokeStyle = css(theme.field); ctx.stroke();
  });
}
