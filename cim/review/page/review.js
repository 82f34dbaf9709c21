// The page of `cim review`. The server keeps what is decided; here are pixels, keys and the look-up under the pointer.

const COLOURS = [[230, 75, 53], [0, 122, 204], [0, 158, 115], [240, 170, 0], [150, 80, 190], [0, 180, 190], [220, 90, 160]];
const BLACK = [0, 0, 0];
const WHITE = [255, 255, 255];
const ALIKE = 0.9; // IoU from which a proposal is a mask that is shown already
const SHARED = 0.5; // of the smaller of two masks of a class: the one that is added takes the other's place
const LONGEST = 1600; // side of what is painted, however large the photo is
const SHOWN = 6; // proposals in the list
const byId = (id) => document.getElementById(id);

let overview = { version: "", photos: [] };
let photo = null; // what the server says of the photo that is open, and what was made of it here
let classId = null; // of what is added
let chosen = null; // key of the mask that A and D are about
let pointer = null; // pixel [x, y]
let under = []; // proposals there, best first
let rank = 0; // the one shown
let visible = true;
let opening = 0; // counts the photos that were asked for
let refused = 0; // counts conflicts
let queue = Promise.resolve();

// ------------------------------------------------------------------ talking with the server

async function get(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error((await response.json().catch(() => ({}))).error || `the server said ${response.status}`);
  return response;
}

/** Changes are sent one after another, each on what the one before left; after a conflict the waiting ones are dropped. */
function change(what) {
  if (!photo) return queue;
  const place = photo.place;
  const asked = refused;
  queue = queue.then(async () => {
    if (asked !== refused) return;
    let response;
    try {
      response = await fetch("change", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ place, version: overview.version, ...what }),
      });
    } catch {
      return say("Not saved: cim review does not answer. Start it again; all before this change is saved.", true);
    }
    const answer = await response.json().catch(() => ({}));
    if (response.status === 409) {
      refused++;
      await load(place);
      return say("Not done: the corrections were changed elsewhere. This is how they are now.", true);
    }
    if (!response.ok) return say(`Not done: ${answer.error || response.status}`, true);
    overview.version = answer.version;
    overview.photos[answer.place].state = answer.state;
    if (what.do === "undo" && answer.place !== photo?.place) return open(answer.place);
    if (answer.place === photo?.place) update(answer);
    else drawLists(); // the person has gone on
    say(answer.undo || what.do === "undo" ? "Saved." : "Nothing to change.");
  });
  return queue;
}

async function load(place) {
  overview = await (await get("photos")).json();
  await open(place);
}

async function open(place) {
  const number = ++opening;
  try {
    const [told, atoms, members] = await Promise.all([
      get(`photo/${place}`).then((r) => r.json()),
      get(`atoms/${place}`).then((r) => r.arrayBuffer()),
      get(`members/${place}`).then((r) => r.arrayBuffer()),
    ]);
    if (number !== opening) return; // another was opened meanwhile
    photo = { ...told, atoms: new Uint32Array(atoms), members: new Uint8Array(members), pixels: new Map() };
    photo.areas = new Float64Array(photo.regions[1]);
    for (const atom of photo.atoms) photo.areas[atom] += 1;
  } catch (error) {
    if (number !== opening) return;
    photo = null;
    draw();
    return say(`Cannot show ${overview.photos[place]?.name}: ${error.message}`, true);
  }
  pointer = null;
  chosen = null;
  classId = (photo.numbers.find((n) => n.number === null) || photo.numbers[0]).class_id;
  const [height, width] = photo.size;
  layCanvases(height, width);
  Object.assign(byId("picture"), { src: `picture/${place}`, alt: `photo ${photo.name}`, width, height });
  byId("picture").style.setProperty("--ratio", width / height);
  overview.version = photo.version;
  overview.photos[place].state = photo.state;
  update(photo);
  say("");
}

/** Canvases as large as the photo or smaller; `source` is the photo's pixel of each of theirs. */
function layCanvases(height, width) {
  const scale = Math.min(1, LONGEST / Math.max(height, width));
  const [h, w] = [height, width].map((side) => Math.max(1, Math.round(side * scale)));
  for (const id of ["masks", "proposal"]) Object.assign(byId(id), { width: w, height: h });
  photo.source = new Uint32Array(h * w);
  for (let y = 0, p = 0; y < h; y++) {
    const row = Math.floor(((y + 0.5) * height) / h) * width;
    for (let x = 0; x < w; x++, p++) photo.source[p] = row + Math.floor(((x + 0.5) * width) / w);
  }
}

// ------------------------------------------------------------------ masks and proposals

/** COCO's compressed run lengths, column by column -> one byte a pixel, row by row. */
function pixelsOf(text, [height, width]) {
  const runs = [];
  for (let at = 0; at < text.length; ) {
    let value = 0;
    let shift = 0;
    let code;
    do {
      code = text.charCodeAt(at++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  const pixels = new Uint8Array(height * width);
  let at = 0;
  runs.forEach((run, n) => {
    if (n % 2) for (let p = at; p < at + run; p++) pixels[(p % height) * width + Math.floor(p / height)] = 1;
    at += run;
  });
  return pixels;
}

const holds = (proposal, atom) => photo.members[proposal * Math.ceil(photo.regions[1] / 8) + (atom >> 3)] & (128 >> (atom & 7));

/** What is shown of each mask, pixels and their number in every atom, kept as long as the photo is open. */
function update(answer) {
  Object.assign(photo, answer);
  for (const shape of [...photo.shapes, ...photo.deleted]) {
    if (!photo.pixels.has(shape.key)) {
      const pixels = pixelsOf(shape.mask, photo.size);
      const shares = new Float64Array(photo.regions[1]);
      let area = 0;
      pixels.forEach((inside, p) => { if (inside) { shares[photo.atoms[p]] += 1; area += 1; } });
      photo.pixels.set(shape.key, { pixels, shares, area });
    }
  }
  if (!photo.shapes.some((shape) => shape.key === chosen)) chosen = photo.shapes.find((s) => !s.accepted)?.key ?? null;
  look();
  draw();
}

/** The proposals at the pointer, best for the class first, without those that are shown as masks of it already.
 *  Those that were deleted, or would take the place of an accepted mask, come last. */
function look() {
  under = [];
  rank = 0;
  if (pointer) {
    const atom = photo.atoms[pointer[1] * photo.size[1] + pointer[0]];
    const column = photo.classes.findIndex((c) => c.id === classId);
    const others = [...photo.shapes, ...photo.deleted.map((shape) => ({ ...shape, deleted: true }))]
      .filter((shape) => shape.class_id === classId);
    for (let proposal = 0; proposal < photo.regions[0]; proposal++) {
      if (!holds(proposal, atom)) continue;
      const { area, shared } = overlap(proposal, others);
      const alike = others.filter((shape, n) => shared[n] / (area + areaOf(shape) - shared[n]) > ALIKE);
      if (alike.some((shape) => !shape.deleted)) continue;
      const replaces = others.some((shape, n) => shape.accepted && shared[n] >= SHARED * Math.min(area, areaOf(shape)));
      const note = alike.length ? "deleted before" : replaces ? "in place of an accepted one" : "";
      under.push({ proposal, area, note, score: photo.ranking[proposal][column] });
    }
    under.sort((a, b) => !!a.note - !!b.note || b.score - a.score || a.area - b.area);
  }
  drawProposal();
}

const areaOf = (shape) => photo.pixels.get(shape.key).area;

/** Pixels of a proposal, and those that it shares with each mask. */
function overlap(proposal, shapes) {
  const shares = shapes.map((shape) => photo.pixels.get(shape.key).shares);
  const shared = shapes.map(() => 0);
  let area = 0;
  for (let atom = 0; atom < photo.regions[1]; atom++) {
    if (!holds(proposal, atom)) continue;
    area += photo.areas[atom];
    shares.forEach((share, n) => { shared[n] += share[atom]; });
  }
  return { area, shared };
}

function pointAt(x, y) {
  const [height, width] = photo.size;
  const before = pointer && photo.atoms[pointer[1] * width + pointer[0]];
  pointer = [Math.min(Math.max(x, 0), width - 1), Math.min(Math.max(y, 0), height - 1)];
  const at = pointer[1] * width + pointer[0];
  drawPointer();
  if (photo.atoms[at] === before) return;
  const here = photo.shapes.filter((shape) => photo.pixels.get(shape.key).pixels[at]);
  here.sort((a, b) => areaOf(a) - areaOf(b));
  if (here.length && here[0].key !== chosen) {
    chosen = here[0].key;
    draw();
  }
  look();
}

function choose(step) {
  const now = photo.shapes.findIndex((shape) => shape.key === chosen);
  chosen = photo.shapes.at((now + step + photo.shapes.length) % photo.shapes.length)?.key ?? null;
  draw();
}

function step(by) {
  rank = Math.min(Math.max(rank + by, 0), Math.max(under.length - 1, 0));
  drawProposal();
}

const add = () => under.length
  ? change({ do: "add", class_id: classId, proposal: under[rank].proposal })
  : say("No further proposal here.", true);

// ------------------------------------------------------------------ drawing

/** Fill and edge of what is inside; the edge is dashed where `dashed`, so that state shows without colour. */
function paint(image, inside, colour, alpha, dashed, strong) {
  const { data, height, width } = image;
  const scale = width / Math.max(byId("stage").clientWidth, 1);
  const thick = Math.max(1, Math.round(scale * (strong ? 3 : 2)));
  const dash = Math.max(4, Math.round(scale * 6));
  for (let y = 0, p = 0; y < height; y++) {
    for (let x = 0; x < width; x++, p++) {
      if (!inside(p)) continue;
      const edge = x < thick || y < thick || x >= width - thick || y >= height - thick ||
        !inside(p - thick) || !inside(p + thick) || !inside(p - thick * width) || !inside(p + thick * width);
      const shade = !edge ? colour : dashed && Math.floor((x + y) / dash) % 2 ? WHITE : strong ? BLACK : colour;
      [data[4 * p], data[4 * p + 1], data[4 * p + 2]] = shade;
      data[4 * p + 3] = edge ? 255 : alpha;
    }
  }
}

const colourOf = (n) => COLOURS[n % COLOURS.length];

function draw() {
  const canvas = byId("masks");
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  if (photo && visible) {
    photo.shapes.forEach((shape, n) => {
      const { pixels } = photo.pixels.get(shape.key);
      const strong = shape.key === chosen;
      paint(image, (p) => pixels[photo.source[p]], colourOf(n), strong ? 150 : 90, !shape.accepted, strong);
    });
  }
  context.putImageData(image, 0, 0);
  drawLists();
  drawProposal();
}

function drawProposal() {
  const canvas = byId("proposal");
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const best = photo ? under[rank] : null;
  if (best) {
    const inside = Array.from(photo.areas, (_, atom) => holds(best.proposal, atom) > 0);
    paint(image, (p) => inside[photo.atoms[photo.source[p]]], [255, 255, 0], 90, true, true);
  }
  context.putImageData(image, 0, 0);
  drawPointer();
  const first = Math.max(0, rank - SHOWN + 1);
  byId("under").replaceChildren(...under.slice(first, first + SHOWN).map((one, n) => {
    const text = `${first + n + 1} of ${under.length}: score ${one.score.toPrecision(2)}, ${percent(one.area)} of the photo${one.note && `, ${one.note}`}`;
    return element("li", { textContent: text }, { "aria-current": first + n === rank });
  }));
}

function drawPointer() {
  const cross = byId("cross");
  cross.hidden = !photo || !pointer;
  if (cross.hidden) return;
  cross.style.left = `${(100 * (pointer[0] + 0.5)) / photo.size[1]}%`;
  cross.style.top = `${(100 * (pointer[1] + 0.5)) / photo.size[0]}%`;
}

const percent = (area) => `${((100 * area) / (photo.size[0] * photo.size[1])).toFixed(1)} %`;

function element(tag, properties = {}, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function drawLists() {
  const done = overview.photos.filter((one) => one.state === "done").length;
  byId("progress").textContent = `${done} of ${overview.photos.length} done`;
  const marks = { done: "✓ done", begun: "… begun", open: "" };
  fill("photos", overview.photos.map((one, place) => element(
    "li", {}, {}, element("button", { onclick: () => open(place), id: `photo-${place}` },
      { "aria-current": photo?.place === place },
      element("span", { textContent: one.name }), element("span", { textContent: marks[one.state] })),
  )));
  byId(`photo-${photo?.place}`)?.scrollIntoView({ block: "nearest" });
  byId("name").textContent = photo ? `${photo.name} (${photo.place + 1} of ${overview.photos.length})` : "";
  byId("reasons").textContent = photo ? overview.photos[photo.place].reasons.join("; ") : "";
  fill("classes", (photo?.numbers ?? []).map((one, n) => {
    const name = photo.classes[n].name;
    const input = element("input", {
      id: `number-${one.class_id}`, type: "number", min: 0, max: 1000, value: one.number ?? "",
      placeholder: one.told ?? "?",
      onchange: (event) => change({ do: "number", class_id: one.class_id,
        number: event.target.value === "" ? null : Number(event.target.value) }),
    }, { "aria-label": `how many there are: ${name}` });
    const there = photo.shapes.filter((s) => s.class_id === one.class_id && s.accepted).length;
    return element("div", { className: "row" }, {},
      element("button", { onclick: () => pick(n), id: `class-${one.class_id}` }, { "aria-pressed": one.class_id === classId },
        `${n + 1} ${name}: ${one.number === 0 ? "not there, " : ""}${there} accepted of `), input);
  }));
  fill("shapes", (photo?.shapes ?? []).map((shape, n) => {
    const name = photo.classes.find((c) => c.id === shape.class_id).name;
    const score = shape.score === null ? "" : ` ${shape.score.toPrecision(2)}`;
    const dot = element("span", { className: "dot" });
    dot.style.background = `rgb(${colourOf(n)})`;
    return element("li", { className: "row" }, {},
      element("button", { onclick: () => { chosen = shape.key; draw(); }, id: `shape-${shape.key}` },
        { "aria-current": shape.key === chosen }, dot, `${name}${score} ${shape.accepted ? "✓ accepted" : "undecided"}`),
      element("button", { onclick: () => change({ do: "accept", key: shape.key }), textContent: "accept", id: `yes-${shape.key}`,
        disabled: shape.accepted }, { "aria-label": `accept mask ${n + 1}, ${name}` }),
      element("button", { onclick: () => change({ do: "delete", key: shape.key }), textContent: "delete", id: `no-${shape.key}` },
        { "aria-label": `delete mask ${n + 1}, ${name}` }));
  }));
}

/** New children; what had the focus has it still. */
function fill(id, children) {
  const focused = document.activeElement?.id;
  byId(id).replaceChildren(...children);
  if (focused && document.activeElement?.id !== focused) byId(focused)?.focus({ preventScroll: true });
}

function say(text, bad = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("bad", bad);
}

// ------------------------------------------------------------------ hands

function pick(n) {
  if (!photo.classes[n]) return;
  classId = photo.classes[n].id;
  look();
  draw();
}

function nextOpen() {
  const count = overview.photos.length;
  for (let k = 1; k <= count; k++) {
    const place = ((photo?.place ?? -1) + k) % count;
    if (overview.photos[place].state !== "done") return open(place);
  }
  return say("All photos are done. Run the same cim run command again: it continues from these corrections.");
}

async function acceptAll() {
  const place = photo.place;
  await change({ do: "accept all" });
  if (photo?.place === place && photo.state === "done") await nextOpen();
  else if (photo?.place === place) say("Still open: of a class nothing is accepted. Click into the photo, or set its number (C).", true);
}

const move = (by) => open(Math.min(Math.max((photo?.place ?? 0) + by, 0), overview.photos.length - 1));
const nudge = (x, y) => {
  const size = Math.max(1, Math.round(photo.size[1] / 64));
  const [px, py] = pointer ?? [photo.size[1] >> 1, photo.size[0] >> 1];
  pointAt(px + x * size, py + y * size);
};
const decide = (what) => chosen ? change({ do: what, key: chosen }) : say("No mask is chosen.", true);

const KEYS = {
  ArrowRight: () => move(1), ArrowLeft: () => move(-1), o: nextOpen,
  ArrowDown: () => choose(1), ArrowUp: () => choose(-1),
  a: () => decide("accept"), d: () => decide("delete"), Delete: () => decide("delete"),
  Enter: acceptAll, " ": add, ",": () => step(-1), ".": () => step(1),
  c: () => { byId(`number-${classId}`).focus(); byId(`number-${classId}`).select(); },
  x: () => change({ do: "number", class_id: classId, number: 0 }),
  m: () => { visible = !visible; draw(); }, u: () => change({ do: "undo" }),
};
const ARROWS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };

document.addEventListener("keydown", (event) => {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const target = event.target;
  if (target instanceof HTMLInputElement) {
    if (key === "Enter" || key === "Escape") target.blur(); // what was typed is sent by its change event
    return;
  }
  if (event.altKey || ((event.ctrlKey || event.metaKey) && key !== "z")) return;
  if (target instanceof HTMLButtonElement && (key === "Enter" || key === " ")) return;
  let act = KEYS[key];
  if (event.ctrlKey || event.metaKey) act = KEYS.u;
  else if (event.shiftKey && ARROWS[key]) act = () => nudge(...ARROWS[key]);
  else if (key >= "1" && key <= "9") act = () => pick(Number(key) - 1);
  if (!act || (!photo && !["ArrowRight", "ArrowLeft", "o", "u"].includes(key))) return;
  event.preventDefault();
  act();
});

const stage = byId("stage");
const pixelAt = (event) => {
  const box = stage.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * photo.size[1], ((event.clientY - box.top) / box.height) * photo.size[0]]
    .map(Math.floor);
};
stage.addEventListener("pointermove", (event) => { if (photo) pointAt(...pixelAt(event)); });
stage.addEventListener("click", (event) => { if (photo) { pointAt(...pixelAt(event)); add(); } });
stage.addEventListener("wheel", (event) => { event.preventDefault(); step(Math.sign(event.deltaY)); }, { passive: false });
document.addEventListener("click", (event) => { if (event.detail) document.activeElement.blur?.(); }); // keys are for all again
byId("all").onclick = acceptAll;
byId("undo").onclick = () => change({ do: "undo" });

load(0).catch((error) => say(`cim review does not answer: ${error.message}`, true));
