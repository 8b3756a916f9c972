// What is expected of a gold task, filled with the keys by which people answer it. Sending is the form's own.
import { say, typing } from "./console.js";
import { Item } from "./item.js";

const root = document.querySelector(".item");
localStorage.removeItem(`tutelage.draft.${root.querySelector("form").dataset.task}`); // the server knows what holds
const item = new Item(root);

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
  const sends = event.key === "Enter" && !event.target.closest("button, a, summary");
  if (sends) item.form.requestSubmit(item.form.querySelector("[data-send]"));
  if (sends || item.press(event)) event.preventDefault();
});
document.addEventListener("selectionchange", () => item.marks?.notice());
item.form.addEventListener("submit", (event) => {
  const missing = event.submitter?.value === "mark" ? item.missing() : [];
  if (!missing.length) return void item.forget();
  event.preventDefault();
  item.mark(item.rows.indexOf(missing[0]));
  say(`${missing.length} to answer first`);
});
item.count();
item.mark(0, { focus: false });
