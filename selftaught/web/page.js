// The page of `selftaught look`: a list of which only what is seen is built, one film, its labels.
"use strict";
const $ = (id) => document.getElementById(id);
const facts = JSON.parse(document.body.dataset.facts);
const WORDS = ["normal", "abnormal"];
const CELL = 112, TALL = 130;
let films = { number: [], score: [], given: [], label: [] };
let at = -1, columns = 2, hidden = false, threshold = facts.threshold, loaded = false, saving = 0;
let chain = Promise.resolve(), asked = 0, settled = 0;
const cells = new Map();

const text = (value, digits = 4) => (value === null || value === undefined ? "–" : Number(value).toPrecision(digits));
const above = (i) => threshold !== null && films.score[i] !== null && films.score[i] > threshold;

function say(words, bad = false) {
  $("said").textContent = words;
  $("said").classList.toggle("bad", bad);
}

async function ask(address, body) {
  const post = { method: "POST", body: JSON.stringify(body), headers: { "x-page-secret": document.body.dataset.secret } };
  const answer = await fetch(address, body ? post : {});
  if (answer.ok) return answer.json();
  const reason = await answer.text();
  let words = reason;
  try { words = JSON.parse(reason).error; } catch { /* a plain line */ }
  throw new Error(words);
}

// The list.
function layout() {
  columns = Math.max(1, Math.floor($("list").clientWidth / CELL));
  $("tall").style.height = `${Math.ceil(films.number.length / columns) * TALL}px`;
  for (const cell of cells.values()) cell.remove();
  cells.clear();
  draw();
}

function draw() {
  const list = $("list"), first = Math.max(0, Math.floor(list.scrollTop / TALL) - 2) * columns;
  const last = Math.min(films.number.length, (Math.ceil((list.scrollTop + list.clientHeight) / TALL) + 2) * columns);
  for (const [i, cell] of cells) {
    if (i < first || i >= last) {
      cell.remove();
      cells.delete(i);
    }
  }
  for (let i = first; i < last; i++) if (!cells.has(i)) cells.set(i, build(i));
  // Films that are only scrolled past are not asked for.
  clearTimeout(settled);
  settled = setTimeout(() => {
    for (const [i, cell] of cells) {
      const image = cell.querySelector("img");
      if (!image.src) image.src = `/small/${films.number[i]}`;
    }
  }, 80);
}

function build(i) {
  const cell = document.createElement("div"), card = document.createElement("div");
  const image = document.createElement("img"), line = document.createElement("p");
  cell.className = "cell";
  cell.id = `cell${i}`;
  cell.setAttribute("role", "option");
  cell.setAttribute("aria-setsize", films.number.length);
  cell.setAttribute("aria-posinset", i + 1);
  const width = $("list").clientWidth / columns;
  cell.style.cssText = `width:${width}px;height:${TALL}px;transform:translate(${(i % columns) * width}px,${Math.floor(i / columns) * TALL}px)`;
  image.alt = "";
  line.append(document.createElement("span"), document.createElement("span"));
  card.append(image, line);
  cell.append(card);
  cell.addEventListener("click", () => show(i));
  $("tall").append(cell);
  mark(i, cell);
  return cell;
}

function mark(i, cell = cells.get(i)) {
  if (!cell) return;
  const [score, mine] = cell.querySelectorAll("span");
  const label = films.label[i], given = films.given[i];
  score.textContent = hidden ? `${i + 1}` : text(films.score[i], 3);
  score.className = !hidden && above(i) ? "above" : "";
  mine.textContent = label || (given === null || given === undefined ? "" : WORDS[given]);
  mine.className = label ? `mine ${label}` : "";
  cell.setAttribute("aria-selected", i === at);
  const told = hidden ? "" : `, score ${text(films.score[i])}${above(i) ? ", above the threshold" : ""}`;
  cell.setAttribute("aria-label", `Film ${i + 1}${told}${label ? `, you: ${label}` : ""}`);
}

async function load() {
  const query = new URLSearchParams({ set: $("set").value, order: $("order").value, hidden: hidden ? 1 : 0 });
  try {
    await chain;
    films = await ask(`/films?${query}`);
  } catch (error) {
    return say(error.message, true);
  }
  at = -1;
  $("list").scrollTop = 0;
  document.body.classList.toggle("blind", hidden);
  $("maps").hidden = hidden || !facts.maps;
  $("sethint").hidden = !["test", "val"].includes($("set").value);
  scale();
  layout();
  judge();
  count();
  const first = films.label.indexOf("");
  if (films.number.length) show(Math.max(0, first));
}

function count() {
  const done = films.label.filter(Boolean).length;
  const left = saving ? `, ${saving} being saved` : "";
  $("progress").textContent = `${films.number.length.toLocaleString("en")} films, ${done.toLocaleString("en")} labelled${left}`;
}

// One film.
async function show(i) {
  if (i < 0 || i >= films.number.length) return;
  const before = at, number = films.number[i], turn = ++asked;
  at = i;
  const list = $("list"), top = Math.floor(i / columns) * TALL;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + TALL > list.scrollTop + list.clientHeight) list.scrollTop = top + TALL - list.clientHeight;
  draw();
  mark(before);
  mark(i);
  list.setAttribute("aria-activedescendant", `cell${i}`);
  loaded = false;
  $("blank").hidden = true;
  $("large").src = `/large/${number}`;
  $("large").alt = `Film ${i + 1}`;
  $("heat").removeAttribute("src");
  $("heat").hidden = true;
  if (!hidden) heat();
  $("place").textContent = `${i + 1} of ${films.number.length}`;
  pressed();
  try {
    const film = await ask(`/film/${number}?hidden=${hidden ? 1 : 0}`);
    if (turn === asked) describe(film, i);
  } catch (error) {
    if (turn === asked) say(error.message, true);
  }
}

function describe(film, i) {
  // A path may tell a label, as that of a folder abnormal/ does.
  $("name").textContent = hidden ? `Film ${i + 1}` : film.path;
  if (hidden) return;
  const values = { Score: text(film.score), Percentile: film.percentile === null ? "–" : `${film.percentile.toFixed(1)} %`,
    "Above the threshold": threshold === null ? "–" : above(i) ? "yes" : "no",
    Given: film.label === null ? "no label" : WORDS[film.label], "Body part": film.body_part || "–" };
  $("values").replaceChildren(...Object.entries(values).flatMap(([name, value]) => {
    const term = document.createElement("dt"), told = document.createElement("dd");
    term.textContent = name;
    told.textContent = value;
    return [term, told];
  }));
  $("like").replaceChildren(...film.like.map((one, place) => {
    const item = document.createElement("li"), image = document.createElement("img");
    image.src = `/normal/${one.number}`;
    image.alt = `Normal film ${place + 1}`;
    item.append(image, text(one.distance));
    return item;
  }));
  $("likehint").textContent = film.like.length ? `Of the ${facts.normals}, with the distance of their features.` : "None: a run's folder has some, or films of the list that are labelled normal.";
}

function heat() {
  const part = Number($("opacity").value);
  $("scale").textContent = `${part} %`;
  const image = $("heat");
  image.style.opacity = part / 100;
  if (!facts.maps || at < 0 || !part) return;
  if (!image.hasAttribute("src")) image.src = `/map/${films.number[at]}`;
  image.hidden = false;
}

function pressed() {
  for (const button of document.querySelectorAll("[data-label]"))
    button.setAttribute("aria-pressed", films.label[at] === button.dataset.label);
}

// Labels: one after the other, each shown as saved when the server has it on its disk.
function later(work) {
  saving += 1;
  count();
  chain = chain.then(work).catch((error) => say(`NOT saved: ${error.message}`, true)).finally(() => {
    saving -= 1;
    count();
  });
}

function label(word) {
  if (at < 0) return;
  if (!loaded) return say($("blank").hidden ? "Wait until the film is seen." : "A film that cannot be shown gets no label.");
  const i = at, of = films, was = of.label[i], who = $("who").value.trim(), blind = hidden;
  of.label[i] = word;
  mark(i);
  judge();
  later(async () => {
    try {
      await ask("/label", { film: of.number[i], label: word, who, hidden: blind });
      say(`Film ${i + 1}: ${word}, saved.`);
    } catch (error) {
      of.label[i] = was;
      if (of === films) { mark(i); show(i); }
      throw error;
    }
  });
  const next = of.label.indexOf("", i + 1);
  if (next >= 0) show(next);
  else pressed();
}

function undo() {
  later(async () => {
    const back = await ask("/undo", { who: $("who").value.trim(), hidden });
    const i = films.number.indexOf(back.film);
    if (back.film === null) return say("Nothing of yours is left to undo.");
    if (i < 0) return say("Undone: a film of another set.");
    films.label[i] = back.label;
    judge();
    show(i);
    say(`Film ${i + 1}: undone${back.label ? `, again ${back.label}` : ""}.`);
  });
}

// The threshold, over the films of the set that have a label: the reader's, else the given one.
function scale() {
  const known = films.score.filter((one) => one !== null);
  const slider = $("threshold"), low = known.reduce((a, b) => Math.min(a, b), Infinity), high = known.reduce((a, b) => Math.max(a, b), -Infinity);
  slider.disabled = !known.length;
  if (!known.length) return;
  slider.min = Math.min(low, threshold ?? low);
  slider.max = Math.max(high, threshold ?? high);
  if (threshold === null) threshold = high;
  slider.value = threshold;
}

function judge() {
  if (hidden) return;
  let right = [0, 0], all = [0, 0], flagged = 0, scored = 0;
  films.score.forEach((score, i) => {
    if (score === null) return;
    const mine = WORDS.indexOf(films.label[i]), truth = films.label[i] ? mine : films.given[i] ?? -1;
    const high = score > threshold;
    scored += 1;
    flagged += high;
    if (truth < 0) return;
    all[truth] += 1;
    right[truth] += high === (truth === 1);
  });
  const share = (kind) => (all[kind] ? `${((100 * right[kind]) / all[kind]).toFixed(1)} % (${right[kind]} of ${all[kind]})` : "no label");
  $("level").textContent = text(threshold);
  $("threshold").setAttribute("aria-valuetext", text(threshold));
  $("sensitivity").textContent = share(1);
  $("specificity").textContent = share(0);
  $("read").textContent = scored ? Math.round((flagged / scored) * Number($("day").value || 0)).toLocaleString("en") : "–";
  const seen = "train" in facts.sets && ["train", "all"].includes($("set").value);
  $("judgehint").textContent = seen ? "The model has seen training films: these figures flatter it." : "";
}

function move(value) {
  threshold = value;
  $("threshold").value = value;
  for (const i of cells.keys()) mark(i);
  judge();
}

function hide(value) {
  $("hidden").checked = hidden = value;
  load();
}

const KEYS = {
  1: () => label("normal"), 2: () => label("abnormal"), 3: () => label("unsure"), u: undo,
  ArrowLeft: () => show(at - 1), ArrowRight: () => show(at + 1),
  ArrowUp: () => show(at - columns), ArrowDown: () => show(at + columns), h: () => hide(!hidden),
};
document.addEventListener("keydown", (event) => {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const typing = event.target.matches("input:not([type=checkbox], [type=range])");
  const choosing = event.target.matches("select, [type=range]") && !"123".includes(key);
  if (typing || choosing || event.ctrlKey || event.metaKey || event.altKey || !KEYS[key]) return;
  event.preventDefault();
  KEYS[key]();
});
for (const button of document.querySelectorAll("[data-label]"))
  button.addEventListener("click", () => label(button.dataset.label));
$("undo").addEventListener("click", undo);
$("previous").addEventListener("click", () => show(at - 1));
$("next").addEventListener("click", () => show(at + 1));
$("back").addEventListener("click", () => $("list").scrollIntoView());
$("large").addEventListener("load", () => { loaded = true; });
$("large").addEventListener("error", () => {
  $("blank").textContent = "The film cannot be shown: it was moved or deleted, or cannot be decoded.";
  $("blank").hidden = false;
});
$("heat").addEventListener("error", () => {
  $("heat").hidden = true;
  ask($("heat").src).catch((error) => say(`No map: ${error.message}`, true));
});
$("opacity").addEventListener("input", heat);
$("threshold").addEventListener("input", () => move(Number($("threshold").value)));
$("reset").addEventListener("click", () => facts.threshold !== null && move(facts.threshold));
$("day").addEventListener("input", judge);
$("set").addEventListener("change", load);
$("order").addEventListener("change", load);
$("hidden").addEventListener("change", () => hide($("hidden").checked));
$("bar").addEventListener("submit", (event) => event.preventDefault());
$("list").addEventListener("scroll", draw, { passive: true });
addEventListener("resize", layout);
addEventListener("beforeunload", (event) => { if (saving) event.preventDefault(); });

for (const [name, size] of [...Object.entries(facts.sets), ["all", null]]) {
  if (name === "" || (name === "all" && Object.keys(facts.sets).length < 2 && "" in facts.sets)) continue;
  $("set").append(new Option(size === null ? "all" : `${name} (${size})`, name));
}
if (!$("set").options.length) $("set").append(new Option("all", "all"));
$("who").value = facts.reader;
load();
