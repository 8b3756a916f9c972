"use strict";
// Browses the answers of a comparison. Texts enter the page as text nodes only, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 20;
  const form = document.getElementById("filter");
  const list = document.getElementById("list");
  const [SUITE, CELL, ID, PROMPT, TARGET, SLICES, ANSWERS, CHANGES] = [0, 1, 2, 3, 4, 5, 6, 7];
  let shown = [];
  let page = 0;

  // what the search reads of each item, made at the first search
  let read = null;
  const readable = () =>
    (read ??= data.items.map((item) =>
      [item[ID], item[PROMPT], ...item[TARGET], ...item[SLICES], ...item[ANSWERS].flatMap((a) => (a ? [a[2], a[3]] : []))]
        .join("\n")
        .toLowerCase(),
    ));

  const make = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const figure = (value) => (value === null ? "not measured" : Number(value.toFixed(3)).toString());

  const answer = (name, said) => {
    const right = said ? said[4] : null; // the metric says so: what lies between, or is only counted, is neither
    const box = make("div", right === null ? "" : right ? "right" : "wrong");
    const notes = said ? [name, figure(said[0]), said[1] === "answered" ? "" : said[1], said[3]] : [name, "not asked"];
    box.append(make("p", "label", notes.filter(Boolean).join(" · ")));
    box.append(make("p", "text", said ? said[2] || "(nothing)" : ""));
    return box;
  };

  const TONE = { f: "good", "+": "good", b: "bad", "-": "bad", "?": "warn" };

  const card = (item, pair) => {
    const made = make("li", "card");
    made.tabIndex = -1;
    const letter = item[CHANGES][pair];
    const head = make("p", "head");
    head.append(make("span", `badge ${TONE[letter] ?? ""}`, data.changes[letter]));
    head.append(make("strong", "", `${item[SUITE]} ${item[CELL]}`.replaceAll("_", " ").trim()));
    head.append(make("code", "", item[ID]));
    if (item[SLICES].length) head.append(make("span", "soft", item[SLICES].join(", ")));
    made.append(head);
    if (item[PROMPT] !== null) made.append(make("p", "text", item[PROMPT]));
    if (item[TARGET].length) {
      made.append(make("p", "label", item[TARGET].length > 1 ? "any of these is right" : "right"));
      made.append(make("p", "text", item[TARGET].join("\n")));
    }
    const beside = make("div", "beside");
    for (const place of data.pairs[pair]) beside.append(answer(data.systems[place], item[ANSWERS][place]));
    made.append(beside);
    return made;
  };

  const draw = () => {
    const pair = Number(form.elements.pair.value);
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    page = Math.min(Math.max(0, page), pages - 1);
    const part = shown.slice(page * PAGE, (page + 1) * PAGE);
    list.replaceChildren(...part.map((place) => card(data.items[place], pair)));
    list.start = page * PAGE + 1;
    document.getElementById("count").textContent =
      shown.length === 1 ? "1 answer" : `${shown.length.toLocaleString("en")} answers`;
    document.getElementById("where").textContent = `page ${page + 1} of ${pages}`;
    document.getElementById("pages").hidden = pages < 2;
    document.getElementById("before").disabled = page === 0;
    document.getElementById("after").disabled = page === pages - 1;
  };

  const filter = () => {
    const { pair, suite, change, text } = form.elements;
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const texts = words.length ? readable() : null;
    shown = [];
    data.items.forEach((item, place) => {
      const letter = item[CHANGES][Number(pair.value)];
      if (letter === ".") return;
      if (suite.value && suite.value !== `${item[SUITE]}|${item[CELL]}`) return;
      if (change.value === "moved" ? !"f+-b".includes(letter) : change.value && data.changes[letter] !== change.value) return;
      if (texts && !words.every((word) => texts[place].includes(word))) return;
      shown.push(place);
    });
    page = 0;
    draw();
  };

  const turn = (by) => {
    const was = page;
    page += by;
    draw();
    if (page !== was) document.getElementById("answers").scrollIntoView();
  };

  const step = (by) => {
    const cards = [...list.children];
    const at = cards.indexOf(document.activeElement?.closest("#list > li"));
    const next = cards[at < 0 ? 0 : Math.min(Math.max(0, at + by), cards.length - 1)];
    next?.focus();
    next?.scrollIntoView({ block: "nearest" });
  };

  let waiting = 0;
  form.addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, event.target.name === "text" ? 120 : 0);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("before").addEventListener("click", () => turn(-1));
  document.getElementById("after").addEventListener("click", () => turn(1));
  for (const button of document.querySelectorAll("button[data-pair]")) {
    button.addEventListener("click", () => {
      form.elements.pair.value = button.dataset.pair;
      form.elements.suite.value = `${button.dataset.suite}|${button.dataset.cell}`;
      form.elements.change.value = "moved";
      form.elements.text.value = "";
      filter();
      document.getElementById("answers").scrollIntoView();
      form.elements.change.focus({ preventScroll: true });
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const keys = { j: () => step(1), k: () => step(-1), n: () => turn(1), p: () => turn(-1), "/": () => form.elements.text.focus() };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  form.hidden = false;
  document.getElementById("keys").hidden = false;
  filter();
})();
