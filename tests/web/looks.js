({
// What is wrong with the page, in words.
looks() {
  const found = [];
  const name = (e) => `${e.tagName.toLowerCase()}${e.className ? "." + String(e.className.baseVal ?? e.className).split(" ").join(".") : ""}`;
  const seen = (e) => { const s = getComputedStyle(e); const b = e.getBoundingClientRect();
    return s.visibility !== "hidden" && s.display !== "none" && b.width > 1 && b.height > 1 && !e.closest(".toast:not(.shown)"); };
  const canvas = document.createElement("canvas"); canvas.width = canvas.height = 1;
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const kept = new Map();
  const rgba = (text) => { // whatever notation the browser computes
    if (!kept.has(text)) {
      pen.clearRect(0, 0, 1, 1); pen.fillStyle = text; pen.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data; kept.set(text, [r, g, b, a / 255]);
    }
    return kept.get(text);
  };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, at) => sum + v * [.2126, .7152, .0722][at], 0);
  const ground = (e) => { const up = []; for (let n = e; n; n = n.parentElement) up.push(rgba(getComputedStyle(n).backgroundColor));
    return up.reverse().reduce((under, colour) => over(colour, under), rgba(matchMedia("(prefers-color-scheme: dark)").matches ? "#000" : "#fff")); };
  const faded = (e) => { let all = 1; for (let n = e; n; n = n.parentElement) all *= Number(getComputedStyle(n).opacity); return all; };
  const judge = (e, style, text) => {
    const behind = ground(e), [r, g, b, a] = rgba(style.color);
    const front = over([r, g, b, a * faded(e)], behind), [x, y] = [light(front), light(behind)].sort((p, q) => q - p);
    const size = parseFloat(style.fontSize), big = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 600);
    const ratio = (x + .05) / (y + .05);
    if (ratio < (big ? 3 : 4.5) - .01) found.push(`contrast ${ratio.toFixed(2)}: ${name(e)} "${text.slice(0, 30)}"`);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const e = node.parentElement;
    if (!node.data.trim() || !seen(e) || e.closest("svg, :disabled, option, script, template")) continue;
    judge(e, getComputedStyle(e), node.data.trim());
  }
  for (const e of document.querySelectorAll("input, textarea, select")) {
    if (e.type === "hidden" || !seen(e)) continue;
    if (!(e.labels?.length || e.ariaLabel || e.getAttribute("aria-labelledby"))) found.push(`no label: ${e.name}`);
    if (e.placeholder && !e.value && !e.disabled) judge(e, getComputedStyle(e, "::placeholder"), e.placeholder);
  }
  for (const e of document.querySelectorAll("a[href], button, summary")) {
    const said = (e.ariaLabel || e.textContent || e.querySelector("img")?.alt || "").trim();
    if (seen(e) && !said) found.push(`no name: ${name(e)}`);
    if (e.tabIndex !== 0) found.push(`tab order: ${name(e)} ${e.tabIndex}`);
  }
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of new Set(ids)) if (ids.filter((each) => each === id).length > 1) found.push(`two of id ${id}`);
  for (const e of document.querySelectorAll("[aria-labelledby], [aria-describedby]"))
    for (const id of `${e.getAttribute("aria-labelledby") ?? ""} ${e.getAttribute("aria-describedby") ?? ""}`.trim().split(/ +/))
      if (!document.getElementById(id)) found.push(`no ${id} for ${name(e)}`);
  for (const e of document.querySelectorAll("th, td, .card, .notice, p, h1, h2, h3, li, dd, button, .button, .badge")) {
    const box = e.getBoundingClientRect();
    if (seen(e) && !e.closest(".scroll, nav ul, dialog") && (box.right > innerWidth + 1 || box.left < -1)) found.push(`sticks out: ${name(e)} "${e.textContent.trim().slice(0, 30)}"`);
  }
  const levels = [...document.querySelectorAll("h1, h2, h3, h4")].filter(seen).map((e) => Number(e.tagName[1]));
  levels.forEach((level, at) => { if (at && level > levels[at - 1] + 1) found.push(`a heading of level ${level} follows one of ${levels[at - 1]}`); });
  if (document.querySelectorAll("h1").length !== 1) found.push("not one h1");
  if (!/\S.* · tutelage$/.test(document.title)) found.push(`title ${document.title}`);
  if (document.documentElement.scrollWidth > document.documentElement.clientWidth) found.push(
    `${document.documentElement.scrollWidth - document.documentElement.clientWidth} pixels wider than the screen`);
  return [...new Set(found)];
},

// Remember where the tabulator key should stop; how many places there are.
stops() {
  const groups = new Set(), wanted = [];
  for (const e of document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex='0']")) {
    if (e.type === "hidden" || e.disabled || e.closest("dialog:not([open]), template")) continue;
    if (e.tagName !== "SUMMARY" && e.closest("details:not([open])")) continue;
    if (!e.checkVisibility() || !e.getClientRects().length) continue;
    if (e.type === "radio") { if (groups.has(e.name)) continue; groups.add(e.name); }
    wanted.push(e);
  }
  window.stops = wanted;
  document.activeElement?.blur();
  return wanted.length;
},

// Where the focus is among them; -1 outside of the page, a sentence where nothing shows it.
here() {
  const e = document.activeElement, style = e && getComputedStyle(e);
  if (!e || e === document.body) return -1;
  const mark = e.matches(".point input") ? getComputedStyle(e.nextElementSibling) : style;
  const ringed = mark.outlineStyle !== "none" && parseFloat(mark.outlineWidth) > 0;
  const at = e.type === "radio" ? window.stops.findIndex((each) => each.name === e.name) : window.stops.indexOf(e);
  return ringed ? at : `no ring on ${e.tagName} ${e.name ?? ""} ${e.className}`;
},
})
