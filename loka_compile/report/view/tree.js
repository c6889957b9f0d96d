"use strict";
// The module tree of a graph: groups within groups, and the operations in them. Long runs are cut into parts.
L.PART = 40;

L.tree = (snapshot, text) => {
  const all = [];
  const group = (name, path, parent, kind) => {
    const made = { id: all.length, name, path, parent, kind: kind || "module", groups: [], ops: [], open: false, count: 0, first: Infinity };
    all.push(made);
    if (parent) parent.groups.push(made);
    return made;
  };
  const root = group("model", "", null);
  const known = new Map([["", root]]);
  const home = (path) => {
    if (known.has(path)) return known.get(path);
    const at = path.lastIndexOf(".");
    const parent = home(at < 0 ? "" : path.slice(0, at));
    const made = group(at < 0 ? path : path.slice(at + 1), path, parent);
    known.set(path, made);
    return made;
  };
  let inputs = null;
  const homeOf = snapshot.names.map((name, at) => {
    const target = text(snapshot.target[at]);
    const path = text(snapshot.module[at]);
    if (target === "placeholder" || target.startsWith("get_attr")) {
      inputs = inputs || group("inputs and parameters", "\u0000inputs", root, "inputs");
      return inputs;
    }
    return path === "" || path === "self" ? root : home(path);
  });
  homeOf.forEach((own, at) => own.ops.push(at));
  for (const each of [...all]) if (!each.gone) compress(each); // what went into another one has no children of its own
  const split = (parent, kind, part) => {
    const items = parent[kind];
    if (items.length <= 1.5 * L.PART || parent.kind === "part") return;
    parent[kind] = [];
    for (let from = 0; from < items.length; from += L.PART) {
      const some = items.slice(from, from + L.PART);
      const made = group(part(some, from), `${parent.path}\u0000${kind}${from}`, parent, "part");
      made[kind] = some;
      if (kind === "groups") for (const child of some) child.parent = made;
    }
  };
  for (const each of [...all]) {
    split(each, "groups", (some) => `${some[0].name} … ${some.at(-1).name}`);
    split(each, "ops", (some, from) => `operations ${from + 1} – ${from + some.length}`);
  }
  for (const each of all) {
    const found = each.kind === "part" && each.name.match(/^operations (\d+) – (\d+)$/);
    if (found) each.range = [found[1], found[2]];
  }
  // Parts may be many themselves: the root of 20,000 operations without modules has 500.
  for (let more = true; more;) {
    more = false;
    for (const each of [...all]) {
      if (each.groups.length <= 1.5 * L.PART) continue;
      const some = each.groups;
      each.groups = [];
      for (let from = 0; from < some.length; from += L.PART) {
        const these = some.slice(from, from + L.PART);
        const [first, last] = [these[0], these.at(-1)];
        const name = first.range && last.range ? `operations ${first.range[0]} – ${last.range[1]}` : `${first.name} … ${last.name}`;
        const made = group(name, `${each.path}\u0000more${from}`, each, "part");
        if (first.range && last.range) made.range = [first.range[0], last.range[1]];
        made.groups = these;
        for (const child of these) child.parent = made;
      }
      more = true;
    }
  }
  const own = new Array(snapshot.names.length);
  const count = (each) => {
    for (const at of each.ops) { own[at] = each; each.first = Math.min(each.first, at); }
    each.count = each.ops.length;
    for (const child of each.groups) { count(child); each.count += child.count; each.first = Math.min(each.first, child.first); }
  };
  count(root);
  return { root, own, all };

  // layers -> 0 -> … : a group with nothing in it but one other is that other.
  function compress(each) {
    while (each.parent && each.ops.length === 0 && each.groups.length === 1) {
      const only = each.groups[0];
      each.name = `${each.name}.${only.name}`;
      each.path = only.path;
      each.ops = only.ops;
      each.groups = only.groups;
      for (const child of each.groups) child.parent = each;
      only.gone = true;
    }
  }
};

L.opsIn = (group) => [...group.ops, ...group.groups.flatMap(L.opsIn)];

// Open from the outside in, while what is drawn stays few.
L.openSome = (tree, most) => {
  tree.root.open = true;
  let drawn = tree.root.groups.length + tree.root.ops.length;
  const queue = [...tree.root.groups];
  while (queue.length) {
    const each = queue.shift();
    const more = each.groups.length + each.ops.length;
    if (each.kind !== "module" || (drawn + more > most && drawn > 4)) continue;
    each.open = true;
    drawn += more;
    queue.push(...each.groups);
  }
};

// The outermost closed group around an operation, or null where it is drawn itself.
L.closedAround = (group) => {
  let found = null;
  for (let each = group; each; each = each.parent) if (!each.open) found = each;
  return found;
};

L.openTo = (group) => {
  for (let each = group; each; each = each.parent) each.open = true;
};
