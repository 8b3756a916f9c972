// Chat over the guarded endpoint itself: the same stream any client reads, shown as it is released.
import { csrf, say } from "./console.js";

const form = document.querySelector("form[data-chat]");
const talk = document.querySelector(".talk");
const box = form.elements.text;
const model = form.dataset.chat;
let conversation = crypto.randomUUID?.() ?? String(Math.random()).slice(2);
let messages = [];
let running = null;

function turn(role, text) {
  const node = document.getElementById("turn").content.firstElementChild.cloneNode(true);
  node.classList.add(role);
  node.querySelector(".role").textContent = role === "user" ? "You" : "Assistant";
  node.querySelector(".said").textContent = text;
  talk.append(node);
  node.scrollIntoView({ block: "end" });
  return node;
}

/** The data lines of a server-sent stream, whole events only. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      for (const line of part.split(/\r?\n/)) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  }
}

function tools(node, request) {
  const line = node.querySelector(".tools");
  for (const button of line.querySelectorAll("button")) button.hidden = false;
  line.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-thumb]");
    if (!button) return;
    const value = Number(button.dataset.thumb);
    const headers = { "content-type": "application/json", "x-csrf-token": csrf() };
    const body = JSON.stringify({ request, kind: "thumb", value, key: `${request}/thumb/${value}` });
    const reply = await fetch("/api/thumbs", { method: "POST", headers, body }).catch(() => null);
    say(reply?.ok ? "Thank you, noted" : "That could not be stored");
    if (reply?.ok) for (const each of line.querySelectorAll("button")) each.disabled = true;
  });
}

async function ask(text) {
  messages.push({ role: "user", content: text });
  turn("user", text);
  const node = turn("assistant", "");
  node.classList.add("waiting");
  const said = node.querySelector(".said");
  running = new AbortController();
  form.querySelector("button").textContent = "Stop";
  let finish = "";
  let request = "";
  try {
    const reply = await fetch("/v1/chat/completions", {
      method: "POST",
      signal: running.signal,
      headers: { "content-type": "application/json", "x-csrf-token": csrf(), "x-conversation-id": conversation },
      body: JSON.stringify({ model, messages, stream: true }),
    });
    request = reply.headers.get("x-request-id") ?? reply.headers.get("x-trace-id") ?? "";
    if (!reply.ok) {
      const told = await reply.json().catch(() => ({}));
      throw new Error(told.error?.message ?? `The service said ${reply.status}`);
    }
    for await (const data of events(reply.body)) {
      if (data === "[DONE]") break;
      const part = JSON.parse(data);
      if (part.error) throw new Error(part.error.message);
      const choice = part.choices?.[0];
      if (choice?.delta?.content) said.textContent += choice.delta.content;
      if (choice?.finish_reason) finish = choice.finish_reason;
      if (!request && part.id) request = part.id;
      node.scrollIntoView({ block: "end" });
    }
    if (finish === "content_filter") {
      node.classList.add("withheld");
      node.querySelector(".note").textContent = "withheld by the safety policy";
    }
    if (finish === "length") node.querySelector(".note").textContent = "cut at the length limit";
    messages.push({ role: "assistant", content: said.textContent });
    if (request) tools(node, request);
  } catch (error) {
    if (error.name === "AbortError") {
      node.querySelector(".note").textContent = "stopped";
      messages.push({ role: "assistant", content: said.textContent });
    } else {
      said.textContent ||= error.message;
      node.classList.add("withheld");
      messages.pop();
    }
  }
  node.classList.remove("waiting");
  form.querySelector("button").textContent = "Send";
  running = null;
  box.focus();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return void running.abort();
  const text = box.value.trim();
  if (!text) return;
  box.value = "";
  document.querySelector("[data-empty]")?.remove();
  ask(text);
});

box.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});

document.querySelector("[data-new]").addEventListener("click", () => {
  running?.abort();
  messages = [];
  talk.replaceChildren();
  conversation = crypto.randomUUID?.() ?? String(Math.random()).slice(2);
  box.focus();
});
box.focus();
