// What every page shares: a word of status, confirmation of grave acts, help on "?".
const status = document.getElementById("status");
let fading;

/** Say something at the corner of the page and to screen readers. */
export function say(text, stays = false) {
  status.textContent = text;
  status.classList.add("shown");
  clearTimeout(fading);
  if (!stays) fading = setTimeout(() => status.classList.remove("shown"), 4000);
}

/** The token that every changing request carries. */
export function csrf() {
  return document.querySelector("meta[name=csrf]")?.content ?? "";
}

/** True while the person types text, so that letters and digits are text. */
export function typing(target) {
  return target.closest?.("textarea, select, input:not([type=radio]):not([type=checkbox])") != null;
}

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !window.confirm(question)) event.preventDefault();
});

document.addEventListener("keydown", (event) => {
  if (typing(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
  const help = document.querySelector("dialog.help");
  if (event.key === "?" && help) {
    help.open ? help.close() : help.showModal();
    event.preventDefault();
  }
  const next = document.querySelector("a[data-next]");
  if ((event.key === "n" || event.key === "Enter") && next && !event.target.closest("a, button, summary")) next.click();
});

document.addEventListener("click", (event) => {
  const opens = event.target.closest("[data-dialog]");
  if (opens) document.getElementById(opens.dataset.dialog)?.showModal();
  if (event.target.closest("[data-close]")) event.target.closest("dialog")?.close();
});

// on a narrow screen the bars of links scroll: where one is must be seen
for (const here of document.querySelectorAll("nav a[aria-current]")) {
  const bar = here.closest("ul");
  if (bar && bar.scrollWidth > bar.clientWidth) bar.scrollLeft = here.offsetLeft - bar.offsetLeft - (bar.clientWidth - here.offsetWidth) / 2;
}
