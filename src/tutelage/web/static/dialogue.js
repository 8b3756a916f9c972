// One message of a dialogue: it stays in the box, and in this browser, until the answers are there.
import { csrf } from "./console.js";

const form = document.querySelector("form[data-dialogue]");
const box = form.elements.message;
const told = form.querySelector("[data-told]");
const memory = `tutelage.say.${form.getAttribute("action")}`;

let kept = {};
try { kept = JSON.parse(localStorage.getItem(memory) ?? "{}"); } catch { /* a torn draft */ }
box.value = kept.message ?? "";
// the same message to the same turn keeps its key: sending it again after a lost reply asks nobody twice
let key = kept.turn === form.dataset.turn && kept.dialogue === form.dataset.dialogue && kept.key ? kept.key : form.dataset.key;

function keep() {
  const { turn, dialogue } = form.dataset;
  try {
    localStorage.setItem(memory, JSON.stringify({ message: box.value, key, turn, dialogue }));
  } catch { /* a full or forbidden storage costs the draft, never the message in the box */ }
}

async function send() {
  const message = box.value.trim();
  if (!message) return void box.focus();
  keep();
  const parts = [...form.querySelectorAll("button"), box];
  parts.forEach((part) => (part.disabled = true));
  form.setAttribute("aria-busy", "true");
  told.textContent = "The answers are being written …";
  let problem = "";
  try {
    const headers = { "content-type": "application/json", "x-csrf-token": csrf(), accept: "application/json" };
    const body = JSON.stringify({ message, key, dialogue: form.dataset.dialogue });
    const reply = await fetch(form.getAttribute("action"), { method: "POST", headers, body });
    const view = await reply.json().catch(() => ({}));
    if (reply.ok && view.item) {
      localStorage.removeItem(memory);
      return void location.reload();
    }
    problem = view.problem || view.message || view.detail || `The server said ${reply.status}`;
    if (view.todo) problem += `. ${view.todo}`;
    if (reply.ok) key = `${form.dataset.key}/${Date.now()}`; // nothing was stored: another try asks anew
  } catch {
    problem = "No connection. Your message is kept here; send it again.";
  }
  told.textContent = problem;
  form.removeAttribute("aria-busy");
  parts.forEach((part) => (part.disabled = false));
  box.focus();
}

form.addEventListener("submit", (event) => { event.preventDefault(); send(); });
box.addEventListener("input", keep);
box.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
box.focus();
