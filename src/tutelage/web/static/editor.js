// The editor of a form: fields that a question's kind does not use are hidden, questions are added. All works without.
const list = document.querySelector("[data-questions]");
const add = document.querySelector("[data-add]");

/** Show what the chosen kind uses. */
function fit(question) {
  const kind = question.querySelector("[data-kind]").value;
  for (const part of question.querySelectorAll("[data-for]")) part.hidden = !part.dataset.for.split(" ").includes(kind);
}

/** One more blank question, its fields numbered on. */
function more() {
  const all = list.querySelectorAll("[data-question]");
  const made = all[all.length - 1].cloneNode(true);
  const number = all.length + 1;
  for (const field of made.querySelectorAll("[name], [id], [for]")) {
    for (const name of ["name", "id", "for"]) {
      const value = field.getAttribute(name);
      if (value) field.setAttribute(name, value.replace(/^q(\.?)\d+/, `q$1${number}`));
    }
    if (field.matches("input[type=checkbox]")) field.checked = false;
    else if (field.matches("textarea")) field.value = "";
    else if (field.matches("input")) field.value = field.defaultValue = { low: "1", high: "5" }[field.name.split(".")[2]] ?? "";
  }
  list.append(made);
  fit(made);
  made.querySelector("input").focus();
}

if (list) {
  for (const question of list.querySelectorAll("[data-question]")) fit(question);
  list.addEventListener("change", (event) => {
    if (event.target.matches("[data-kind]")) fit(event.target.closest("[data-question]"));
  });
  add.hidden = false;
  add.addEventListener("click", more);
}
