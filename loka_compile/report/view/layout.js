"use strict";
// Boxes within boxes: in each open group its children in rows, what is computed from another one below it.
L.layout = (tree, snapshot, label, widestAllowed) => {
  const unitOf = new Map(); // closed group or place of an operation -> {key, group|op, x, y, w, h}
  const opened = [];
  const tops = snapshot.names.map((_, at) => {
    const group = tree.own[at];
    const closed = L.closedAround(group);
    return closed || at;
  });
  // Edges between children of the same open group.
  const between = new Map();
  const chain = (unit) => {
    const found = [unit];
    for (let each = typeof unit === "number" ? tree.own[unit] : unit.parent; each; each = each.parent) found.push(each);
    return found;
  };
  const chains = new Map();
  const chainOf = (unit) => { if (!chains.has(unit)) chains.set(unit, chain(unit)); return chains.get(unit); };
  const edges = new Map();
  snapshot.inputs.forEach((inputs, to) => {
    for (const from of inputs) {
      const [a, b] = [tops[from], tops[to]];
      if (a === b) continue;
      const key = `${typeof a === "number" ? a : `g${a.id}`}>${typeof b === "number" ? b : `g${b.id}`}`;
      const edge = edges.get(key);
      if (edge) { edge.count += 1; continue; }
      edges.set(key, { from: a, to: b, count: 1 });
      const [ca, cb] = [chainOf(a), chainOf(b)];
      let i = ca.length - 1;
      let j = cb.length - 1;
      while (i > 0 && j > 0 && ca[i - 1] === cb[j - 1]) { i -= 1; j -= 1; }
      if (i === 0 || j === 0 || ca[i] !== cb[j]) continue;
      const near = between.get(ca[i]) || between.set(ca[i], new Map()).get(ca[i]);
      const [u, v] = [ca[i - 1], cb[j - 1]];
      if (!near.has(v)) near.set(v, new Set());
      near.get(v).add(u);
    }
  });
  const place = (unit, room) => {
    if (typeof unit === "number" || !unit.open) {
      const lines = label(unit);
      const width = Math.max(...lines.map((line) => 7.3 * line.length)) + 26;
      const box = { unit, w: Math.max(70, Math.min(width, 380)), h: 12 + 16 * lines.length, lines };
      unitOf.set(unit, box);
      return box;
    }
    const children = [...unit.groups, ...unit.ops].map((child) => ({ child, first: typeof child === "number" ? child : child.first })).sort((a, b) => a.first - b.first);
    const near = between.get(unit) || new Map();
    const rank = new Map();
    const rows = [];
    for (const { child } of children) {
      let at = 0;
      for (const from of near.get(child) || []) if (rank.has(from) && !(from.kind === "inputs")) at = Math.max(at, rank.get(from) + 1);
      if (child.kind !== "inputs" && children[0].child.kind === "inputs") at = Math.max(at, 1);
      rank.set(child, at);
      (rows[at] = rows[at] || []).push({ child, box: place(child, room - 24) });
    }
    const header = label(unit)[0];
    let y = 30;
    let widest = Math.max(7.3 * header.length + 40, 80);
    const lines = [];
    for (const row of rows.filter(Boolean)) {
      let line = [];
      let width = 0;
      for (const each of row) {
        if (line.length && width + each.box.w > room - 24) { lines.push(line); line = []; width = 0; }
        line.push(each);
        width += each.box.w + 14;
      }
      lines.push(line);
    }
    const centre = new Map();
    for (const line of lines) widest = Math.max(widest, line.reduce((sum, each) => sum + each.box.w + 14, -14));
    for (const line of lines) {
      const pull = (each) => {
        const from = [...(near.get(each.child) || [])].map((other) => centre.get(other)).filter((v) => v !== undefined);
        return from.length ? from.reduce((a, b) => a + b, 0) / from.length : widest / 2;
      };
      const sorted = line.map((each) => ({ ...each, at: pull(each) })).sort((a, b) => a.at - b.at);
      const total = sorted.reduce((sum, each) => sum + each.box.w + 14, -14);
      let x = Math.max(0, Math.min(widest - total, sorted.reduce((sum, each) => sum + each.at, 0) / sorted.length - total / 2));
      let tallest = 0;
      for (const { child, box } of sorted) {
        box.x = x + 12;
        box.y = y;
        centre.set(child, x + box.w / 2);
        x += box.w + 14;
        tallest = Math.max(tallest, box.h);
      }
      y += tallest + 22;
    }
    const box = { unit, w: widest + 24, h: y - 8, lines: [header], inside: children.map(({ child }) => unitOf.get(child)) };
    unitOf.set(unit, box);
    opened.push(box);
    return box;
  };
  const root = place(tree.root, widestAllowed);
  const move = (box, x, y) => {
    box.left = x + (box.x || 0);
    box.top = y + (box.y || 0);
    for (const child of box.inside || []) move(child, box.left, box.top);
  };
  move(root, 4, 4);
  return { root, boxes: unitOf, edges: [...edges.values()] };
};
