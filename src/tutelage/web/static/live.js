// What renews itself: a part of the page is asked for anew at intervals and swapped in place; nothing else moves.
const place = document.querySelector("[data-live]");
const note = document.querySelector("[data-live-note]");
const every = Number(place.dataset.every ?? 1000);
let wait = every;

async function refresh() {
  if (!document.hidden) {
    try {
      const reply = await fetch(place.dataset.live, { headers: { accept: "text/html" } });
      if (!reply.ok) throw new Error(String(reply.status));
      const html = await reply.text();
      const open = [...place.querySelectorAll("details[open]")].map((each) => each.id);
      if (html !== place.dataset.last) {
        place.innerHTML = html; // rendered and escaped by our own server
        place.dataset.last = html;
        for (const id of open) document.getElementById(id)?.setAttribute("open", "");
      }
      wait = every;
      note.textContent = "live";
    } catch {
      wait = Math.min(15000, wait * 2);
      note.textContent = "no connection, trying again";
    }
  }
  setTimeout(refresh, wait);
}
setTimeout(refresh, wait);
