// Answering without a mouse and without waiting: the next task lies ready, sending goes on behind it, and what was sent
// stays in this browser until the server has it on disk. The same key again is the same answer.
import { csrf, say, typing } from "./console.js";
import { Item } from "./item.js";

const stage = document.getElementById("task");
const mine = `tutelage.outbox.${stage.dataset.person}.`;
let current = new Item(stage.querySelector(".item"));
let ready = [...document.querySelectorAll("template.ahead")].map((each) => new Item(each.content.firstElementChild));
let last = null; // the last answer that was stored, to be taken back
let waiting = 0; // answers on their way
let sending = Promise.resolve();
let locked = false;
const answered = new Map(); // project -> answers of this person

// what is shown

function show(item) {
  document.querySelectorAll("dialog[open]").forEach((each) => each.close());
  stage.replaceChildren(item.root);
  current = item;
  getSelection()?.removeAllRanges();
  tally();
  offerUndo();
  item.enter();
  scrollTo(0, 0);
}

/** How many are answered: a task that lay ready was counted before the last ones were sent. */
function tally(more = 0, item = current) {
  const project = item.form.elements.project.value;
  const place = current.root.querySelector("[data-mine]");
  answered.set(project, (answered.get(project) ?? Number(item.root.querySelector("[data-mine]").textContent)) + more);
  place.textContent = String(answered.get(current.form.elements.project.value) ?? place.textContent);
}

function offerUndo() {
  current.root.querySelector("[data-undo]").hidden = last === null || current.editing;
}

function lock(on) {
  locked = on;
  current.form.querySelectorAll("button").forEach((button) => (button.disabled = on));
}

function tell(told) {
  if (!told) return;
  const [box, line] = [document.createElement("div"), document.createElement("p")];
  box.className = `notice ${told.tone}`;
  box.setAttribute("role", "status");
  line.textContent = told.text;
  box.append(line);
  current.root.prepend(box);
}

// sending

function send(status, reason = "") {
  if (locked) return;
  const item = current;
  const missing = status === "submitted" ? item.missing() : [];
  if (missing.length) {
    item.mark(item.rows.indexOf(missing[0]));
    return void say(`${missing.length} to answer first`);
  }
  const long = item.tooLong();
  if (long) {
    long.focus();
    return void say(`This text has ${long.value.length} characters; at most ${item.form.dataset.mostText} are kept`, true);
  }
  const body = item.body(status, reason);
  keep(item.slot, body);
  const next = item.editing ? null : ready.shift();
  waiting += 1;
  if (next) {
    history.replaceState(null, "", `/task/next?${new URLSearchParams({ project: body.get("project"), after: item.slot })}`);
    last = { slot: item.slot, epoch: body.get("epoch") };
    show(next);
  } else lock(true);
  sending = sending.then(() => deliver(item.slot, body)).then((reply) => {
    waiting -= 1;
    if (reply.done && status === "submitted" && !item.editing) tally(1, item);
    settle(item, reply, !next);
  });
}

/** What became of an answer. `still`: the page has waited for it. */
function settle(item, reply, still) {
  const { told } = reply;
  if (reply.done) {
    item.forget();
    last = { slot: item.slot, epoch: item.form.elements.epoch.value };
    stage.dataset.stored = String(Number(stage.dataset.stored) + 1);
    for (const html of told.ahead ?? []) ready.push(made(html));
    if (still) {
      const next = item.editing ? null : ready.shift();
      if (!next) return void location.assign(told.next);
      show(next);
    }
    say("Stored");
    tell(told.told);
    offerUndo();
  } else if (reply.status === 409) {
    item.forget();
    if (last?.slot === item.slot) last = null;
    offerUndo();
    say(told.error ?? "This task is no longer yours", true);
    if (still) location.assign(told.next ?? "/task/next");
  } else {
    if (!still) {
      ready.unshift(current);
      show(item);
    }
    lock(false);
    last = null;
    offerUndo();
    say(told.error ?? `The server said ${reply.status}`, true);
  }
}

function made(html) {
  const holder = document.createElement("template");
  holder.innerHTML = html; // our own template: every word of a person or a model in it is escaped
  return new Item(holder.content.querySelector(".item"));
}

/** Send until the server has answered; a lost connection or a restarting server is tried again. */
async function deliver(slot, body) {
  for (let attempt = 0; ; attempt++) {
    try {
      body.delete("have");
      for (const item of [current, ...ready]) body.append("have", item.slot);
      const headers = { "x-csrf-token": csrf(), accept: "application/json" };
      const reply = await fetch(`/task/${slot}`, { method: "POST", headers, body, redirect: "manual" });
      if (reply.type === "opaqueredirect" || reply.status === 401 || reply.status === 403) {
        say("You are signed out. Your answer is kept here and is sent once you are back.", true);
        location.reload();
        return await new Promise(() => {}); // the page is left
      }
      const told = await reply.json().catch(() => ({}));
      if (reply.status < 500) {
        drop(slot);
        return { done: told.status === "stored" || told.status === "repeated", status: reply.status, told };
      }
      say(told.error ?? "The server has a problem; trying again", true);
    } catch {
      say("No connection. Your answer is kept here and will be sent.", true);
    }
    await new Promise((done) => setTimeout(done, Math.min(15000, 1000 * 2 ** attempt)));
  }
}

function keep(slot, body) {
  try {
    localStorage.setItem(mine + slot, body.toString());
  } catch { /* a full or forbidden storage: the page itself still holds it */ }
}

function drop(slot) {
  localStorage.removeItem(mine + slot);
}

/** What an earlier page could not send any more. */
async function flush() {
  const left = Object.keys(localStorage).filter((key) => key.startsWith(mine)).map((key) => key.slice(mine.length));
  if (left.includes(current.slot)) lock(true);
  for (const slot of left) {
    const { done, told } = await deliver(slot, new URLSearchParams(localStorage.getItem(mine + slot)));
    if (!done) {
      say(told.error ?? "An earlier answer was not stored", true);
      continue;
    }
    localStorage.removeItem(`tutelage.draft.${slot}`);
    if (slot === current.slot && !current.editing) return void location.assign(told.next);
    say("An earlier answer is stored now");
  }
  lock(false);
}

// taking back

async function undo() {
  if (locked || !last) return;
  lock(true);
  await sending;
  if (!last) return void lock(false); // it was refused, and is shown again
  const body = new URLSearchParams({ epoch: last.epoch, key: `undo-${last.slot}-${last.epoch}-${Date.now()}`, status: "withdrawn" });
  const reply = await deliver(last.slot, body);
  if (reply.done) return void location.assign(`/task/${last.slot}`);
  lock(false);
  last = null;
  offerUndo();
  say(reply.told.error ?? "It could not be taken back", true);
}

// keys

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const item = current;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    return void send("submitted");
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (typing(event.target)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const act = { Enter: () => send("submitted"), u: undo, s: () => document.getElementById("skip").showModal() }[event.key];
  if (event.key === "Enter" && event.target.closest("button, a, summary")) return;
  if (act) act();
  if (act || item.press(event)) event.preventDefault();
});

document.addEventListener("selectionchange", () => current.marks?.notice());
stage.addEventListener("submit", (event) => { event.preventDefault(); send("submitted"); });
stage.addEventListener("click", (event) => { if (event.target.closest("[data-undo]")) undo(); });
document.getElementById("skip").addEventListener("submit", (event) => {
  event.preventDefault();
  document.getElementById("skip").close();
  send(event.submitter?.value ?? "skipped", event.target.elements.why.value);
});

// a task that lies ready and is not wanted any more goes back to the others
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || link.getAttribute("href").startsWith("#")) return;
  for (const item of ready.splice(0)) {
    const headers = { "x-csrf-token": csrf() };
    const epoch = item.form.elements.epoch.value;
    fetch(`/api/feedback/slots/${item.slot}/return?epoch=${epoch}`, { method: "POST", headers, keepalive: true }).catch(() => {});
  }
});

let hiddenSince = null;
document.addEventListener("visibilitychange", () => {
  if (document.hidden) hiddenSince = Date.now();
  else if (hiddenSince) { current.away += Date.now() - hiddenSince; hiddenSince = null; }
});

current.enter();
flush();
