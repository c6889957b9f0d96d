"use strict";
// One graph, drawn. It tells its owner what was picked; the owner tells it what is selected.
L.Panel = class {
  constructor(report, graph, place, owner) {
    this.report = report;
    this.graph = graph;
    this.owner = owner;
    this.text = L.texts(report);
    this.selected = new Set(); // places of operations, or groups
    this.linked = new Set();
    this.scale = 1;
    this.canvas = L.h("div", { class: "canvas", tabindex: "-1" });
    this.bar = L.h("div", { class: "bar" });
    this.root = L.h("div", { class: "panel", role: "group", "aria-label": "graph" }, this.bar, this.canvas);
    addEventListener("printing", () => this.canvas.scrollTo(0, 0));
    this.set(place);
  }

  set(place) {
    this.place = place;
    this.snapshot = this.graph.snapshots[place];
    this.isAfter = this.snapshot.name === "after";
    this.tree = L.tree(this.snapshot, this.text);
    L.openSome(this.tree, 40);
    this.byName = new Map(this.snapshot.names.map((name, at) => [name, at]));
    this.byPath = new Map(this.tree.all.filter((each) => !each.gone).map((each) => [each.path, each]));
    this.byOrigin = new Map();
    this.snapshot.origins.forEach((names, at) => {
      for (const each of names) { const name = this.text(each); if (!this.byOrigin.has(name)) this.byOrigin.set(name, []); this.byOrigin.get(name).push(at); }
    });
    L.show(this.bar, L.select("", this.graph.snapshots.map((each, at) => [String(at), each.name]), String(place), (value) => { this.set(Number(value)); this.draw(); }),
      L.h("span", { class: "soft small" }, `${L.count(this.snapshot.names.length)} nodes`),
      [["Fold all", () => this.foldAll()], ["Unfold", () => this.unfold()], ["+", () => this.zoom(1.25)], ["−", () => this.zoom(0.8)]].map(([name, run]) => L.h("button", { type: "button", onclick: run }, name)));
    this.selected.clear();
    this.linked.clear();
  }

  foldAll() {
    for (const each of this.tree.all) each.open = each === this.tree.root;
    this.draw();
  }

  unfold() {
    const closed = this.tree.all.filter((each) => !each.open && each.parent && each.parent.open && each.kind !== "inputs" && !each.gone);
    for (const each of closed.slice(0, 60)) each.open = true;
    this.draw();
  }

  zoom(by) {
    this.scale = Math.max(0.92, Math.min(3, this.scale * by)); // texts stay 11 px and more
    this.draw();
  }

  target(at) {
    return this.text(this.snapshot.target[at]).replace(/^(aten|prims)\./, "").replace(/\.(default|Tensor|int)$/, "");
  }

  placesOf(unit) {
    return typeof unit === "number" ? [unit] : L.opsIn(unit);
  }

  label(unit) {
    const found = this.overlay.of(this.placesOf(unit));
    if (typeof unit === "number") return [cut(this.target(unit), 34), cut(this.text(this.snapshot.type[unit]), 34) + (this.text(this.snapshot.phase[unit]) === "backward" ? " · backward" : ""), found && cut(found.text, 44)].filter(Boolean);
    const kind = L.own(this.snapshot.classes, unit.path);
    const name = `${unit.open ? "▾" : "▸"} ${unit.name}${kind ? ` · ${kind}` : ""}`;
    return [cut(name, 48), `${L.count(unit.count)} ${unit.kind === "inputs" ? "tensor" : "operation"}${unit.count > 1 ? "s" : ""}`, found && cut(found.text, 44)].filter(Boolean);

    function cut(text, most) { return text.length > most ? `${text.slice(0, most - 1)}…` : text; }
  }

  draw() {
    const inputs = this.owner.showInputs;
    this.overlay = L.overlay(this.owner.overlay, this.snapshot, this.report, this.isAfter, this.owner.hue);
    const made = (this.last = L.layout(this.tree, this.snapshot, (unit) => this.label(unit), Math.max(380, this.canvas.clientWidth / this.scale - 30)));
    const edges = [];
    for (const { from, to, count } of made.edges) {
      const [a, b] = [made.boxes.get(from), made.boxes.get(to)];
      if (!inputs && (from.kind === "inputs" || (typeof from === "number" && this.tree.own[from].kind === "inputs"))) continue;
      const near = this.selected.has(from) || this.selected.has(to);
      const [x1, y1, x2, y2] = [a.left + a.w / 2, a.top + a.h, b.left + b.w / 2, b.top];
      const bend = Math.max(14, Math.min(60, Math.abs(y2 - y1) / 2));
      edges.push(L.svg("path", { class: `edge ${near ? "of-selected" : ""}`, d: `M${x1} ${y1}C${x1} ${y1 + bend} ${x2} ${y2 - bend} ${x2} ${y2}`, "marker-end": "url(#arrow)" },
        L.svg("title", null, `${count} tensor${count > 1 ? "s" : ""}`)));
      if (edges.length > 3000) break;
    }
    const below = [];
    const above = [];
    for (const box of made.boxes.values()) (box.inside ? below : above).push(box);
    below.sort((a, b) => a.top - b.top || b.h - a.h);
    const [width, height] = [made.root.w + 12, made.root.h + 12];
    const svg = L.svg("svg", { width: width * this.scale, height: height * this.scale, viewBox: `0 0 ${width} ${height}`, role: "tree", "aria-label": this.snapshot.name },
      L.svg("defs", null, L.svg("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, markerUnits: "userSpaceOnUse", orient: "auto" }, L.svg("path", { d: "M0 0L8 4L0 8z", fill: "#646b73" }))),
      below.map((box) => this.unit(box)), edges, above.map((box) => this.unit(box)));
    const [left, top] = [this.canvas.scrollLeft, this.canvas.scrollTop];
    const focused = this.canvas.contains(document.activeElement) ? document.activeElement.dataset.unit : undefined;
    L.show(this.canvas, svg);
    const again = focused !== undefined && [...svg.querySelectorAll(".unit")].find((each) => each.dataset.unit === focused);
    if (again) again.focus({ preventScroll: true });
    this.canvas.scrollTo(left, top);
    this.owner.legend(this.overlay.legend);
  }

  unit(box) {
    const { unit } = box;
    const isOp = typeof unit === "number";
    const found = box.inside ? null : this.overlay.of(this.placesOf(unit));
    const classes = ["unit", isOp ? "op" : "group", box.inside && "open", this.selected.has(unit) && "selected", this.linked.has(unit) && "linked"];
    const name = isOp ? this.snapshot.names[unit] : unit.path || "model";
    const pick = (event) => { event.stopPropagation(); this.owner.pick(this, unit); };
    return L.svg("g", {
      class: classes.filter(Boolean).join(" "), tabindex: "0", role: "treeitem", "data-name": name, "data-unit": isOp ? unit : `g${unit.id}`, "aria-label": box.lines.join(", "), "aria-expanded": isOp ? null : String(unit.open),
      transform: `translate(${box.left} ${box.top})`, onclick: pick,
      onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pick(event); } },
    },
    L.svg("rect", { class: "box", width: box.w, height: box.h, rx: isOp ? 4 : 8 }),
    found && [L.svg("rect", { width: 7, height: box.h, rx: 3, fill: found.colour }), L.svg("rect", { x: 7, width: box.w - 7, height: box.h, fill: found.colour, opacity: 0.13 })],
    box.lines.map((line, at) => L.svg("text", { x: 14, y: 17 + 16 * at, class: at === 0 ? "name" : "said" }, line)));
  }

  // Mark, opening what hides it, and bring the first into sight.
  mark(kind, units, into) {
    this[kind] = new Set(units.map((unit) => {
      if (typeof unit === "number" && kind === "linked") {
        L.openTo(this.tree.own[unit]);
        return unit;
      }
      return unit;
    }));
    this.draw();
    const first = units.length && this.last.boxes.get(units[0]);
    if (first && into) this.canvas.scrollTo({ left: first.left * this.scale - 80, top: first.top * this.scale - this.canvas.clientHeight / 3 });
  }
};
