// A task without a mouse: a marked row, digits that answer it, a draft that survives, a submit that cannot double.
import { csrf, say, typing } from "./console.js";

const form = document.querySelector("form[data-task]");
const rows = [...form.querySelectorAll("fieldset.row")];
const slot = form.dataset.task;
const started = Date.now();
let marked = 0;
let hiddenSince = null;
let away = 0;

// the marked row

function mark(index, { focus = true } = {}) {
  if (!rows.length) return;
  marked = Math.max(0, Math.min(rows.length - 1, index));
  rows.forEach((row, place) => row.classList.toggle("now", place === marked));
  const row = rows[marked];
  const target = row.querySelector("input:checked") ?? row.querySelector("input, textarea");
  if (focus && target?.type !== "textarea" && target?.tagName !== "TEXTAREA") {
    target?.focus({ preventScroll: true });
    row.scrollIntoView({ block: "nearest" });
  }
}

function answered(row) {
  const text = row.querySelector("textarea, input[type=text]");
  return row.querySelector("input:checked") != null || Boolean(text?.value.trim());
}

function open() {
  if (form.querySelector("input[name=all_bad]:checked")) return [];
  return rows.filter((row) => row.dataset.required === "1" && !answered(row));
}

function count() {
  const left = open().length;
  const line = form.querySelector("[data-left]");
  if (line) line.textContent = left ? `${left} to answer` : "complete: Enter sends it";
  form.querySelector("button[data-send]").toggleAttribute("data-ready", left === 0);
}

function choose(key) {
  const row = rows[marked];
  const input = row?.querySelector(`input[data-key="${CSS.escape(key)}"]`);
  if (!input) return false;
  if (input.type === "checkbox") {
    input.checked = !input.checked;
  } else {
    input.checked = true;
    mark(marked + 1);
  }
  changed();
  return true;
}

function clearRow() {
  const row = rows[marked];
  if (!answered(row) && marked > 0) mark(marked - 1);
  for (const input of rows[marked].querySelectorAll("input")) input.checked = false;
  changed();
}

// drafts: kept in this browser at once, on the server every few seconds

const memory = `tutelage.draft.${slot}`;

function values() {
  const found = {};
  for (const [name, value] of new FormData(form)) {
    if (name === "csrf" || name === "key" || name === "epoch" || name === "active_ms") continue;
    (found[name] ??= []).push(value);
  }
  return found;
}

function restore(saved) {
  for (const [name, list] of Object.entries(saved ?? {})) {
    for (const field of form.querySelectorAll(`[name="${CSS.escape(name)}"]`)) {
      if (field.type === "radio" || field.type === "checkbox") field.checked = list.includes(field.value);
      else if (field.type !== "hidden") field.value = list[0] ?? "";
    }
  }
}

let saving;
function changed() {
  count();
  try {
    localStorage.setItem(memory, JSON.stringify(values()));
  } catch { /* a full or forbidden storage costs the draft, never the answer */ }
  clearTimeout(saving);
  saving = setTimeout(() => {
    const body = JSON.stringify({ epoch: Number(form.elements.epoch.value), body: values() });
    const headers = { "content-type": "application/json", "x-csrf-token": csrf() };
    fetch(`/api/feedback/drafts/${slot}`, { method: "PUT", headers, body }).catch(() => {});
  }, 2500);
}

// sending: the same key again is the same answer, so a lost connection can be tried again

async function send(action) {
  if (action === "submitted" && open().length) {
    mark(rows.indexOf(open()[0]));
    say(`${open().length} to answer first`);
    return;
  }
  const body = new URLSearchParams(new FormData(form));
  body.set("status", action);
  body.set("active_ms", String(Date.now() - started - away));
  form.querySelectorAll("button").forEach((button) => (button.disabled = true));
  for (let attempt = 0; ; attempt++) {
    try {
      const headers = { "x-csrf-token": csrf(), accept: "application/json" };
      const reply = await fetch(form.action, { method: "POST", headers, body });
      const told = await reply.json().catch(() => ({}));
      if (reply.status < 500) {
        if (reply.ok || reply.status === 409) localStorage.removeItem(memory);
        if (told.next) return void location.assign(told.next);
        say(told.error ?? `The server said ${reply.status}`, true);
        break;
      }
      say(told.error ?? "The server has a problem; trying again", true);
    } catch {
      say("No connection. Your answer is kept here and will be sent.", true);
    }
    await new Promise((done) => setTimeout(done, Math.min(15000, 1000 * 2 ** attempt)));
  }
  form.querySelectorAll("button").forEach((button) => (button.disabled = false));
}

// keys

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    return void send("submitted");
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (typing(event.target)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const act = {
    ArrowDown: () => mark(marked + 1), j: () => mark(marked + 1),
    ArrowUp: () => mark(marked - 1), k: () => mark(marked - 1),
    Backspace: clearRow, Enter: () => send("submitted"),
    s: () => document.getElementById("skip").showModal(),
    x: () => { const all = form.querySelector("input[name=all_bad]"); if (all) { all.checked = !all.checked; changed(); } },
    t: () => { const text = rows[marked]?.querySelector("textarea") ?? form.querySelector("textarea"); text?.focus(); },
  }[event.key];
  if (act && !(event.key === "Enter" && event.target.closest("button, a, summary"))) {
    event.preventDefault();
    act();
  } else if (/^[0-9a-z]$/.test(event.key) && choose(event.key)) {
    event.preventDefault();
  }
});

rows.forEach((row, place) => row.addEventListener("focusin", () => mark(place, { focus: false })));
form.addEventListener("input", changed);
form.addEventListener("submit", (event) => { event.preventDefault(); send("submitted"); });
document.getElementById("skip")?.addEventListener("submit", (event) => {
  event.preventDefault();
  form.elements.reason.value = event.target.elements.why.value;
  document.getElementById("skip").close();
  send(event.submitter?.value ?? "skipped");
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) hiddenSince = Date.now();
  else if (hiddenSince) { away += Date.now() - hiddenSince; hiddenSince = null; }
});

let saved = null;
try { saved = JSON.parse(localStorage.getItem(memory) ?? form.dataset.draft ?? "null"); } catch { /* a torn draft */ }
restore(saved);
count();
mark(rows.findIndex((row) => !answered(row)) < 0 ? 0 : rows.findIndex((row) => !answered(row)));
