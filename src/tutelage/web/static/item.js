// One task on the page: its rows, the marked one, what is missing, its draft. Knows nothing of sending.
import { csrf } from "./console.js";
import { Marks } from "./spans.js";

const HIDDEN = new Set(["csrf", "key", "epoch", "active_ms", "have", "reason", "project"]);

/** A text as a text field gives it back. */
const plain = (text) => text.replace(/\r\n?/g, "\n");

export class Item {
  constructor(root) {
    this.root = root;
    this.form = root.querySelector("form[data-task]");
    this.slot = this.form.dataset.task;
    this.editing = this.form.dataset.editing === "1";
    this.rows = [...root.querySelectorAll("fieldset.row")];
    this.marks = root.querySelector(".row.spans") ? new Marks(root, () => this.changed()) : null;
    this.memory = `tutelage.draft.${this.slot}`;
    this.written = new Map([...root.querySelectorAll("textarea")].map((text) => [text.name, text.value]));
    this.marked = 0;
    if (matchMedia("(max-width: 56rem)").matches) root.querySelector(".guide")?.removeAttribute("open"); // it stands above the task
    this.restore();
    this.rows.forEach((row, place) => row.addEventListener("focusin", () => this.mark(place, { focus: false })));
    this.form.addEventListener("input", (event) => this.follow(event.target));
  }

  /** Show it: from now on the time counts, and the first open row is marked. */
  enter() {
    this.started ??= Date.now();
    this.away ??= 0;
    document.title = document.title.replace(/^.*·/, `${this.root.dataset.title} ·`);
    this.count();
    this.root.querySelector("h1").focus({ preventScroll: true });
    const open = this.rows.findIndex((row) => !this.answered(row));
    this.mark(Math.max(0, open));
  }

  // rows

  mark(index, { focus = true } = {}) {
    if (!this.rows.length) return;
    this.marked = Math.max(0, Math.min(this.rows.length - 1, index));
    this.rows.forEach((row, place) => row.classList.toggle("now", place === this.marked));
    if (!focus) return;
    const row = this.rows[this.marked];
    const target = row.querySelector("input:checked") ?? row.querySelector("input, button, textarea");
    if (target?.tagName === "TEXTAREA") {
      if (document.activeElement?.matches("input, button")) document.activeElement.blur();
    } else target?.focus({ preventScroll: true });
    row.scrollIntoView({ block: "nearest" });
  }

  answered(row) {
    if (row.dataset.kind === "spans") return this.marks.spans.length > 0;
    const text = row.querySelector("textarea");
    if (!text) return row.querySelector("input:checked") != null;
    if (text.name === "rewrite") {
      if (this.value("as_is") === "1") return true;
      return Boolean(text.value.trim()) && text.value !== this.written.get("rewrite");
    }
    return Boolean(text.value.trim());
  }

  value(name) {
    return this.form.querySelector(`input[name="${CSS.escape(name)}"]:checked`)?.value;
  }

  /** Rows that must be answered and are not; whoever rejects all answers need not judge each. */
  missing() {
    if (this.value("value:cause") === "data_error") return []; // of a broken task nothing else can be asked
    const rejected = this.form.querySelector("input[name=all_bad]:checked") != null;
    return this.rows.filter((row) => row.dataset.required === "1" && !this.answered(row) &&
      !(rejected && (row.dataset.about || row.dataset.name === "pair")));
  }

  /** Texts that are too long to be kept. */
  tooLong() {
    return [...this.form.querySelectorAll("textarea")].find((text) => text.value.length > Number(this.form.dataset.mostText));
  }

  count() {
    const left = this.missing().length;
    this.form.querySelector("[data-left]").textContent = left ? `${left} to answer` : "complete: Enter sends it";
    this.form.querySelector("button[data-send]").toggleAttribute("data-ready", left === 0);
  }

  /** Answer the marked row with a key; false when it has no such point. */
  choose(key) {
    const row = this.rows[this.marked];
    if (row?.dataset.kind === "spans") return this.marks.label(key);
    const input = row?.querySelector(`input[data-key="${CSS.escape(key)}"]`);
    if (!input) return false;
    input.checked = input.type === "checkbox" ? !input.checked : true;
    this.follow(input);
    if (input.type === "checkbox") input.focus({ preventScroll: true });
    else if (input.name === "as_is" && input.value === "0") this.write();
    else this.mark(this.marked + 1);
    return true;
  }

  clear() {
    const row = this.rows[this.marked];
    if (row.dataset.kind === "spans") return void this.marks.remove(this.marks.spans.length - 1);
    if (!this.answered(row) && this.marked > 0) this.mark(this.marked - 1);
    for (const input of this.rows[this.marked].querySelectorAll("input")) input.checked = false;
    this.changed();
  }

  /** Go to the text field: of the marked row, or else the first one. */
  write() {
    const text = this.rows[this.marked]?.querySelector("textarea") ?? this.form.querySelector("textarea");
    text?.focus();
  }

  /** Open the reports of the marked answer. */
  report() {
    const near = this.rows[this.marked]?.closest(".candidate") ?? this.form;
    const details = near.querySelector("details.report");
    if (!details) return;
    details.open = true;
    details.querySelector("input")?.focus();
  }

  /** A key that answers something or goes somewhere; false for one that does nothing here. */
  press(event) {
    if (event.key.startsWith("Arrow") && (this.marks?.step(event.key, event.shiftKey) || this.walk(event.key))) return true;
    const all = this.form.querySelector("input[name=all_bad]");
    const act = {
      ArrowDown: () => this.mark(this.marked + 1), j: () => this.mark(this.marked + 1),
      ArrowUp: () => this.mark(this.marked - 1), k: () => this.mark(this.marked - 1),
      Backspace: () => this.clear(), r: () => this.report(), t: () => this.write(),
      x: () => { if (all) { all.checked = !all.checked; this.changed(); } },
      w: () => this.marks?.begin(this.rows[this.marked]),
      Escape: () => { this.marks?.leave(); this.mark(this.marked); },
    }[event.key];
    if (act) return act(), true;
    if (!/^[0-9a-z]$/.test(event.key)) return false;
    return this.marks?.picked && !getSelection().isCollapsed ? this.marks.label(event.key) : this.choose(event.key);
  }

  /** In a tree: up and down its nodes, left to the parent, right to the first child. False at its ends. */
  walk(key) {
    const node = document.activeElement?.closest?.(".tree .node");
    if (!node) return false;
    const nodes = [...node.parentElement.querySelectorAll(".node")];
    const at = nodes.indexOf(node);
    const to = {
      ArrowDown: nodes[at + 1], ArrowUp: nodes[at - 1],
      ArrowRight: nodes.find((each) => each.dataset.parent === node.dataset.node),
      ArrowLeft: nodes.find((each) => each.dataset.node === node.dataset.parent),
    }[key];
    to?.querySelector("input").focus();
    return to != null || key === "ArrowLeft" || key === "ArrowRight";
  }

  /** What follows from a field that was changed: a tag implies those above it, "none" stands alone. */
  follow(input) {
    const row = input.closest?.("fieldset.row");
    const node = input.closest?.(".node");
    if (node) {
      const near = (name) => row.querySelector(`.node[data-node="${CSS.escape(name)}"]`);
      if (input.checked) {
        for (let up = near(node.dataset.parent); up; up = near(up.dataset.parent)) up.querySelector("input").checked = true;
      } else {
        const below = [node.dataset.node];
        while (below.length) {
          for (const each of row.querySelectorAll(`.node[data-parent="${CSS.escape(below.pop())}"]`)) {
            each.querySelector("input").checked = false;
            below.push(each.dataset.node);
          }
        }
      }
    }
    if (row && input.type === "checkbox" && input.checked) {
      for (const each of row.querySelectorAll("input:checked")) {
        if (Boolean(each.dataset.none) !== Boolean(input.dataset.none)) each.checked = false;
      }
    }
    if (input.name === "rewritten") {
      const text = this.form.elements.rewrite;
      const said = this.form.querySelector(`.candidate[data-no="${CSS.escape(input.value)}"] .said`).textContent;
      const untouched = text.value === this.written.get("rewrite");
      this.written.set("rewrite", plain(said));
      if (untouched) text.value = said;
    }
    this.changed();
  }

  // drafts: kept in this browser at once, on the server every few seconds

  values() {
    const found = {};
    for (const [name, value] of new FormData(this.form)) if (!HIDDEN.has(name)) (found[name] ??= []).push(value);
    return found;
  }

  restore() {
    let saved = null;
    try {
      saved = JSON.parse(localStorage.getItem(this.memory) || this.form.dataset.draft || "null");
    } catch { /* a torn draft */ }
    for (const [name, list] of Object.entries(saved ?? {})) {
      for (const field of this.form.querySelectorAll(`[name="${CSS.escape(name)}"]`)) {
        if (field.type === "radio" || field.type === "checkbox") field.checked = list.includes(field.value);
        else if (field.type !== "hidden") field.value = list[0] ?? "";
      }
      if (name.startsWith("flag:")) this.form.querySelector(`[name="${CSS.escape(name)}"]`)?.closest("details")?.setAttribute("open", "");
    }
    const about = this.value("rewritten");
    const said = about && this.form.querySelector(`.candidate[data-no="${CSS.escape(about)}"] .said`);
    if (said) this.written.set("rewrite", plain(said.textContent));
    this.marks?.load((saved?.span ?? []).map((text) => JSON.parse(text)));
  }

  changed() {
    this.count();
    try {
      localStorage.setItem(this.memory, JSON.stringify(this.values()));
    } catch { /* a full or forbidden storage costs the draft, never the answer */ }
    clearTimeout(this.saving);
    if (!this.editing) this.saving = setTimeout(() => this.save(), 2500);
  }

  save() {
    const body = JSON.stringify({ epoch: Number(this.form.elements.epoch.value), body: this.values() });
    const headers = { "content-type": "application/json", "x-csrf-token": csrf() };
    fetch(`/api/feedback/drafts/${this.slot}`, { method: "PUT", headers, body }).catch(() => {});
  }

  /** The fields to be sent. */
  body(status, reason = "") {
    clearTimeout(this.saving);
    const body = new URLSearchParams(new FormData(this.form));
    body.delete("csrf");
    body.set("status", status);
    body.set("reason", reason);
    body.set("active_ms", String(Math.max(0, Date.now() - this.started - this.away)));
    return body;
  }

  forget() {
    localStorage.removeItem(this.memory);
  }
}
