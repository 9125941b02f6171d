// The error of every joint in this frame: a ring for the lifter, a dot for the shown stage.

// Distances in mm with the root joints aligned, as in MPJPE; poses whose origin is no joint (null)
// are aligned as they are.
function jointErrors(clip, set, time) {
  const pose = sample(clip.poses, clip, set, time, 3), real = sample(clip.real, clip, 0, time, 3);
  const root = clip.rootJoint;
  const shift = root === null ? [0, 0, 0] : add(pose[root], real[root], -1);
  return pose.map((p, j) => 1000 * Math.hypot(...add(add(p, real[j], -1), shift, -1)));
}

// The axis must not jump while the clip plays: the largest error of the lifter or the last stage.
function jointRange(clip) {
  let most = 1;
  for (let t = 0; t < clip.T; t++)
    for (const set of [0, clip.S - 1]) most = Math.max(most, ...jointErrors(clip, set, t));
  return most;
}

function drawJoints(canvas, state, theme) {
  const { ctx, width, height } = prepare(canvas);
  const { clip, time, stage } = state;
  if (!width || !height || !clip.real) return;
  clip.range ||= jointRange(clip);
  const rows = clip.joints.map((_, j) => j).filter((j) => j !== clip.rootJoint);
  const left = 78, right = width - 12, low = height - 18;
  const x = (v) => left + (right - left) * v / clip.range;
  const y = (row) => (row + 0.5) * low / rows.length;
  const [before, after] = [jointErrors(clip, 0, time), jointErrors(clip, stage, time)];
  const step = niceStep(clip.range / 4);

  ctx.font = `11px ${FONT}`;
  ctx.lineWidth = 1;
  ctx.textAlign = "center"; ctx.textBaseline = "top";
  for (let v = 0; v <= clip.range; v += step) {
    ctx.strokeStyle = css(theme.line);
    ctx.beginPath(); ctx.moveTo(x(v), 0); ctx.lineTo(x(v), low); ctx.stroke();
    ctx.fillStyle = css(theme.muted);
    ctx.fillText(String(v), x(v), low + 5);
  }
  ctx.textAlign = "right"; ctx.textBaseline = "middle";
  rows.forEach((joint, row) => {
    const [a, b] = [before[joint], after[joint]].map(x);
    ctx.fillStyle = css(theme.muted);
    ctx.fillText(clip.joints[joint], left - 9, y(row));
    if (stage > 0) {
      ctx.strokeStyle = css(b <= a ? theme.refined : theme.lifter, 0.45);
      ctx.lineWidth = 2;
      ctx.beginPath(); ctx.moveTo(a, y(row)); ctx.lineTo(b, y(row)); ctx.stroke();
      ctx.beginPath(); ctx.arc(b, y(row), 3.4, 0, 2 * Math.PI);
      ctx.fillStyle = css(theme.refined); ctx.fill();
    }
    ctx.beginPath(); ctx.arc(a, y(row), 3, 0, 2 * Math.PI);
    ctx.lineWidth = 1.6;
    ctx.strokeStyle = css(theme.lifter); ctx.stroke();
  });
}
