// Marking words: selected with the mouse or, word by word, with the arrow keys; a label makes the selection a mark.
// Offsets count characters (code points), as the server does; the browser counts UTF-16 units.
import { say } from "./console.js";

const points = (text, units) => [...text.slice(0, units)].length;
const units = (text, wanted) => [...text].slice(0, wanted).join("").length;

export class Marks {
  constructor(root, changed) {
    this.root = root;
    this.changed = changed;
    this.row = root.querySelector(".row.spans");
    this.list = this.row.querySelector(".marks");
    this.names = new Map([...this.row.querySelectorAll("[data-label]")].map((each) => [each.dataset.label, each]));
    this.texts = [...root.querySelectorAll(".said[data-field]")].map((place) => ({ place, text: place.textContent }));
    this.spans = [];
    this.picked = null;
    for (const each of this.texts) {
      each.place.tabIndex = 0;
      each.place.setAttribute("role", "group");
      each.words = null;
    }
    for (const button of this.names.values()) {
      button.addEventListener("mousedown", (event) => event.preventDefault()); // keeps the selection
      button.addEventListener("click", () => this.add(button.dataset.label));
    }
    this.list.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) this.remove(Number(button.dataset.at));
    });
  }

  // the selection

  /** Remember what is selected inside one of the texts; a click elsewhere keeps it. */
  notice() {
    const chosen = getSelection();
    if (!chosen.rangeCount || chosen.isCollapsed) return;
    const range = chosen.getRangeAt(0);
    const entry = this.texts.find(({ place }) => place.contains(range.startContainer) && place.contains(range.endContainer));
    if (entry) this.picked = { entry, start: offset(entry.place, range.startContainer, range.startOffset), end: offset(entry.place, range.endContainer, range.endOffset) };
  }

  select(entry, start, end) {
    const range = document.createRange();
    range.setStart(...spot(entry.place, start));
    range.setEnd(...spot(entry.place, end));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    this.picked = { entry, start, end };
    entry.place.focus({ preventScroll: true });
    range.startContainer.parentElement?.scrollIntoView({ block: "nearest" });
    say(`selected: ${entry.text.slice(start, end)}`);
  }

  get walking() {
    return this.texts.find(({ place }) => place === document.activeElement);
  }

  /** Begin with the first word of the text at hand. */
  begin(near) {
    const own = near?.closest?.(".candidate")?.querySelector(".said[data-field]");
    const entry = this.texts.find(({ place }) => place === own) ?? this.walking ?? this.texts.at(-1);
    const first = words(entry)[0];
    if (!first) return void say("This text has no words");
    this.anchor = this.head = 0;
    this.select(entry, first.start, first.end);
  }

  /** Arrow keys in a text: the next word, with Shift the selection grows; up and down change the text. */
  step(key, shift) {
    const entry = this.walking;
    if (!entry) return false;
    if (key === "ArrowUp" || key === "ArrowDown") {
      const to = this.texts[this.texts.indexOf(entry) + (key === "ArrowDown" ? 1 : -1)];
      if (!to) return true;
      [this.anchor, this.head] = [0, 0];
      const first = words(to)[0];
      if (first) this.select(to, first.start, first.end);
      return true;
    }
    const list = words(entry);
    if (!list.length) return true;
    if (this.picked?.entry !== entry || this.head == null) this.anchor = this.head = key === "ArrowRight" ? -1 : list.length;
    this.head = Math.max(0, Math.min(list.length - 1, this.head + (key === "ArrowRight" ? 1 : -1)));
    if (!shift || this.anchor < 0 || this.anchor >= list.length) this.anchor = this.head;
    const [from, to] = [Math.min(this.anchor, this.head), Math.max(this.anchor, this.head)];
    this.select(entry, list[from].start, list[to].end);
    return true;
  }

  leave() {
    getSelection().removeAllRanges();
    this.picked = null;
  }

  // the marks

  /** Give the selection the label of a key; false when nothing is selected or no label has the key. */
  label(key) {
    const button = [...this.names.values()].find((each) => each.dataset.key === key);
    if (!button) return false;
    this.add(button.dataset.label);
    return true;
  }

  add(label) {
    this.notice();
    if (!this.picked) return void say("Select some words first");
    const { entry, start, end } = this.picked;
    const { field, candidate } = entry.place.dataset;
    const made = { field, candidate: Number(candidate), start: points(entry.text, start), end: points(entry.text, end), label };
    if (!this.spans.some((each) => JSON.stringify(each) === JSON.stringify(made))) this.spans.push(made);
    const walking = this.walking;
    this.draw();
    if (walking) this.select(entry, start, end);
    say(`${this.title(label)}: ${entry.text.slice(start, end)}`);
    this.changed();
  }

  remove(at) {
    if (!this.spans[at]) return;
    const [gone] = this.spans.splice(at, 1);
    this.draw();
    say(`removed: ${this.title(gone.label)}`);
    (this.list.querySelectorAll("button")[at] ?? this.names.values().next().value)?.focus();
    this.changed();
  }

  load(spans) {
    this.spans = spans;
    this.draw();
  }

  title(label) {
    const button = this.names.get(label);
    return button ? [...button.childNodes].filter((each) => each.nodeName !== "SMALL").map((each) => each.textContent).join("").trim() : label;
  }

  /** Show the marks in the texts and as a list from which each can be removed. */
  draw() {
    for (const { place, text } of this.texts) {
      const mine = this.spans
        .filter((each) => each.field === place.dataset.field && each.candidate === Number(place.dataset.candidate))
        .map((each) => ({ ...each, start: units(text, each.start), end: units(text, each.end) }));
      const edges = [...new Set([0, text.length, ...mine.flatMap(({ start, end }) => [start, end])])].sort((a, b) => a - b);
      place.replaceChildren(...edges.slice(1).map((end, at) => {
        const [start, over] = [edges[at], mine.filter((each) => each.start <= edges[at] && each.end >= end)];
        if (!over.length) return document.createTextNode(text.slice(start, end));
        const mark = document.createElement("mark");
        mark.textContent = text.slice(start, end);
        mark.title = over.map(({ label }) => this.title(label)).join(", ");
        mark.dataset.many = String(Math.min(3, over.length));
        return mark;
      }));
    }
    this.list.replaceChildren(...this.spans.map((each, at) => {
      const entry = this.texts.find(({ place }) => place.dataset.field === each.field && Number(place.dataset.candidate) === each.candidate);
      const words = entry ? [...entry.text].slice(each.start, each.end).join("") : "";
      const [line, button, field] = ["li", "button", "input"].map((name) => document.createElement(name));
      line.append(`${this.title(each.label)}: “${words}” `, button, field);
      Object.assign(button, { type: "button", className: "quiet", textContent: "remove" });
      button.dataset.at = String(at);
      button.setAttribute("aria-label", `remove ${this.title(each.label)}: ${words}`);
      Object.assign(field, { type: "hidden", name: "span", value: JSON.stringify(each) });
      return line;
    }));
  }
}

/** The words of a text as UTF-16 offsets. */
function words(entry) {
  if (entry.words) return entry.words;
  if (globalThis.Intl?.Segmenter) {
    const parts = [...new Intl.Segmenter(undefined, { granularity: "word" }).segment(entry.text)];
    entry.words = parts.filter((each) => each.isWordLike).map((each) => ({ start: each.index, end: each.index + each.segment.length }));
  }
  if (!entry.words?.length) entry.words = [...entry.text.matchAll(/\S+/g)].map((each) => ({ start: each.index, end: each.index + each[0].length }));
  return entry.words;
}

/** How far a place in the tree of a text is from the text's start. */
function offset(place, container, within) {
  const range = document.createRange();
  range.setStart(place, 0);
  range.setEnd(container, within);
  return range.toString().length;
}

/** The text node and the offset in it that lie so far from the text's start. */
function spot(place, wanted) {
  const walker = document.createTreeWalker(place, NodeFilter.SHOW_TEXT);
  let node = walker.nextNode();
  let last = node;
  while (node && wanted > node.length) {
    wanted -= node.length;
    last = node;
    node = walker.nextNode();
  }
  return node ? [node, wanted] : [last ?? place, last?.length ?? 0];
}
