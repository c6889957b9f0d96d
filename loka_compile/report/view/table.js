"use strict";
// A table of any length: only the rows in sight are in the page. A row opens to its details.
// columns: [{name, title, width, right, spare: left out on a narrow screen, text(item), value(item) for sorting, class(item)}]
L.Table = class {
  constructor(columns, details, label) {
    this.columns = columns;
    this.details = details;
    this.items = [];
    this.open = new Map(); // item -> height of its details, once they were drawn
    this.current = 0;
    this.sorted = { at: -1, down: false };
    this.head = L.h("div", { class: "head", role: "row" }, columns.map((column, at) => L.h("div",
      { role: "columnheader", class: `${column.right ? "right" : ""} ${column.spare ? "spare" : ""}`, "aria-sort": "none" },
      L.h("button", { type: "button", title: column.title || column.name, onclick: () => this.sort(at) }, column.name))));
    this.spacer = L.h("div", { class: "spacer", role: "rowgroup" });
    this.scroll = L.h("div", { class: "scroll", tabindex: "0", onscroll: () => this.draw() }, this.head, this.spacer);
    this.root = L.h("div", { class: "table", role: "table", "aria-label": label }, this.scroll);
    for (const [suffix, shown] of [["", columns], ["-narrow", columns.filter((column) => !column.spare)]]) {
      const least = shown.reduce((sum, column) => sum + Number((column.width.match(/\d+/) || [60])[0]), 0);
      this.root.style.setProperty(`--columns${suffix}`, shown.map((column) => column.width).join(" "));
      this.root.style.setProperty(`--table-width${suffix}`, `${least}px`);
    }
    this.scroll.addEventListener("keydown", (event) => this.key(event));
    addEventListener("resize", () => this.draw());
    addEventListener("printing", () => this.draw(true));
    addEventListener("printed", () => this.draw());
  }

  set(items) {
    this.all = items;
    this.items = this.order(items);
    this.current = Math.min(this.current, Math.max(0, items.length - 1));
    this.scroll.setAttribute("aria-rowcount", items.length);
    this.draw();
  }

  sort(at) {
    const down = this.sorted.at === at ? !this.sorted.down : Boolean(this.columns[at].right);
    this.sorted = { at, down };
    [...this.head.children].forEach((cell, place) =>
      cell.setAttribute("aria-sort", place !== at ? "none" : down ? "descending" : "ascending"));
    this.scroll.scrollTop = 0;
    this.set(this.all);
  }

  order(items) {
    if (this.sorted.at < 0) return [...items];
    const column = this.columns[this.sorted.at];
    const value = column.value || column.text;
    const sign = this.sorted.down ? -1 : 1;
    const keyed = items.map((item, place) => [value(item), place, item]);
    const unknown = (each) => each === null || each === undefined || Number.isNaN(each);
    keyed.sort(([a, i], [b, j]) => {
      if (unknown(a) || unknown(b)) return unknown(a) - unknown(b) || i - j; // what is not known stands last
      return (a < b ? -1 : a > b ? 1 : 0) * sign || i - j;
    });
    return keyed.map((each) => each[2]);
  }

  toggle(item) {
    if (this.open.has(item)) this.open.delete(item);
    else this.open.set(item, 320);
    this.draw();
  }

  reveal(item) {
    const at = this.items.indexOf(item);
    if (at < 0) return false;
    this.current = at;
    if (!this.open.has(item)) this.open.set(item, 320);
    this.draw();
    this.scroll.scrollTop = Math.max(0, this.offset(at) - 40);
    this.draw();
    return true;
  }

  offset(at) {
    let top = at * 30;
    for (const [item, height] of this.open) {
      const place = this.items.indexOf(item);
      if (place >= 0 && place < at) top += height;
    }
    return top;
  }

  key(event) {
    if (event.target !== this.scroll && event.target.tagName !== "BUTTON") return;
    const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: 15, PageUp: -15 }[event.key];
    if (event.key === "Enter" || event.key === " ") {
      if (event.target !== this.scroll || !this.items.length) return;
      this.toggle(this.items[this.current]);
    } else if (step) {
      this.current = Math.max(0, Math.min(this.items.length - 1, this.current + step));
      const top = this.offset(this.current);
      const sight = this.scroll.clientHeight - 60;
      if (top < this.scroll.scrollTop) this.scroll.scrollTop = top;
      if (top > this.scroll.scrollTop + sight) this.scroll.scrollTop = top - sight;
      this.draw();
    } else return;
    event.preventDefault();
  }

  draw(all) {
    const from = all ? -1 : this.scroll.scrollTop - 300;
    const to = all ? Infinity : this.scroll.scrollTop + this.scroll.clientHeight + 300;
    const kept = new Map([...this.spacer.children].map((place) => [place.item, place]));
    const parts = [];
    let top = 0;
    this.items.forEach((item, at) => {
      const height = 30 + (this.open.get(item) || 0);
      if (top + height >= from && top <= to) {
        let place = kept.get(item);
        if (!place || place.opened !== this.open.has(item)) place = this.place(item);
        place.style.top = `${top}px`;
        place.firstChild.classList.toggle("current", at === this.current);
        parts.push(place);
      }
      top += height;
    });
    const sight = this.scroll.clientHeight;
    this.spacer.style.height = `${top}px`;
    this.scroll.style.maxHeight = `${Math.max(top, 60) + 50}px`; // a short table ends below its last row
    if (this.scroll.clientHeight > sight && !all) return this.draw();
    if (parts.length !== this.spacer.children.length || parts.some((part, at) => part !== this.spacer.children[at]))
      this.spacer.replaceChildren(...parts);
    if (!this.items.length) L.show(this.spacer, L.h("div", { class: "empty" }, "Nothing matches."));
    this.measure(all);
  }

  place(item) {
    const opened = this.open.has(item);
    const cells = this.columns.map((column) => L.h("div", {
      role: "cell", class: `cell ${column.right ? "right" : ""} ${column.spare ? "spare" : ""} ${column.class ? column.class(item) : ""}`,
      title: column.hint ? column.hint(item) : column.text(item),
    }, column.show ? column.show(item) : column.text(item)));
    const row = L.h("div", {
      class: "row", role: "row", "aria-expanded": String(opened),
      onclick: () => { this.current = this.items.indexOf(item); this.toggle(item); this.scroll.focus({ preventScroll: true }); },
    }, cells);
    const place = L.h("div", { class: "place" }, row, opened && L.h("div", { class: "details" }, this.details(item)));
    place.item = item;
    place.opened = opened;
    return place;
  }

  measure(all) {
    let moved = false;
    for (const place of this.spacer.children) {
      if (!place.opened) continue;
      const height = place.lastChild.offsetHeight;
      if (height && Math.abs(height - this.open.get(place.item)) > 1) { this.open.set(place.item, height); moved = true; }
    }
    if (moved) this.draw(all);
  }
};
