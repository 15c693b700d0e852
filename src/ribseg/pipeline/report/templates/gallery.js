// The gallery. All images are listed; their pictures are decoded and drawn when they come into view.
const read = id => JSON.parse(document.getElementById(id).textContent);
const gallery = read("gallery-data");
const colourMap = read("colour-map");
const thumbnails = read("thumbnails");
const AT_ONCE = 20; // images added to the page at a time
const mapColumns = gallery.columns.filter(column => column.kind === "maps");
const state = { sort: "", split: "", cls: "", stop: "", text: "", k: 0, opacity: 0.6, outline: true, panel: 180 };
const decoded = new Map(); // number of a picture -> promise of its decoded image, maps and masks
let shown = []; // the rows that pass the filters, in order
let added = 0; // how many of them are in the page

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// --- controls

const numberOfSteps = Math.max(1, ...Array.from(document.querySelectorAll("script[id^=picture-]"), script => {
  const found = [...script.textContent.matchAll(/"steps": (\d+)/g)].map(match => Number(match[1]));
  return Math.max(1, ...found);
}));
state.k = numberOfSteps - 1;

const gains = mapColumns.filter(column => gallery.baseline && column.name !== gallery.baseline);
const baseLabel = (mapColumns.find(column => column.name === gallery.baseline) || {}).label;
const scored = gallery.rows.some(row => Object.keys(row.scores).length);
const sortings = [];
if (scored) {
  for (const { name, label } of gains) {
    const gain = row => gainOf(row, name);
    sortings.push([`largest loss: ${label} against ${baseLabel}`, gain, 1]);
    sortings.push([`largest gain: ${label} over ${baseLabel}`, gain, -1]);
  }
  for (const { name, label } of mapColumns) {
    sortings.push([`lowest score: ${label}`, row => row.scores[name], 1]);
    sortings.push([`highest score: ${label}`, row => row.scores[name], -1]);
  }
}
sortings.push(["image id", row => row.id, 1]);

function gainOf(row, name) {
  const score = row.scores[name];
  const base = row.scores[gallery.baseline];
  return score == null || base == null ? null : score - base;
}

const controls = document.getElementById("controls");

function choice(id, title, options, key) {
  const select = element("select", { id, onchange: event => change(key, event.target.value) });
  for (const [value, text] of options) select.append(element("option", { value }, text));
  controls.append(element("label", { for: id }, title, select));
}

function slider(id, title, low, high, step, key, describe) {
  const output = element("output", { for: id }, describe(state[key]));
  const input = element("input", { id, type: "range", min: low, max: high, step, value: state[key], oninput: () => {
    output.textContent = describe(Number(input.value));
    change(key, Number(input.value));
  } });
  controls.append(element("label", { for: id }, element("span", {}, title + " ", output), input));
}

choice("sort", "sort by", sortings.map(([title], number) => [number, title]), "sort");
const splits = [...new Set(gallery.rows.map(row => row.split))];
if (splits.length > 1) choice("split", "split", [["", "all"], ...splits.map(name => [name, name])], "split");
const classes = [...new Set(gallery.rows.flatMap(row => row.classes))].sort((a, b) => a - b);
choice("class", "class", [["", "all"], ...classes.map(c => [c, gallery.classes[c]])], "cls");
const stops = [...new Set(gallery.rows.flatMap(row => Object.values(row.adaptation || {}).map(([, stop]) => stop)))];
if (stops.length) choice("stop", "adaptation ended by", [["", "any"], ...stops.sort().map(s => [s, s.replace("_", " ")])], "stop");
const search = element("input", { id: "text", type: "search", oninput: event => change("text", event.target.value) });
controls.append(element("label", { for: "text" }, "id or class", search));
if (numberOfSteps > 1) slider("k", "step k:", 0, numberOfSteps - 1, 1, "k", String);
slider("opacity", "opacity:", 0, 1, 0.05, "opacity", value => `${Math.round(100 * value)} %`);
slider("panel", "size:", 100, 420, 10, "panel", value => `${value} px`);
const outline = element("input", { id: "outline", type: "checkbox", onchange: event => change("outline", event.target.checked) });
outline.checked = true;
controls.append(element("label", { for: "outline", class: "check" }, outline, "outline of the mask"));

const scale = element("canvas", { id: "scale", width: 256, height: 1, role: "img", "aria-label": "colours of the maps from 0 to 1" });
const strip = scale.getContext("2d");
colourMap.forEach(([r, g, b], x) => { strip.fillStyle = `rgb(${r},${g},${b})`; strip.fillRect(x, 0, 1, 1); });
const legend = document.getElementById("legend");
legend.append(element("span", {}, "map: 0 ", scale, " 1"));
for (const c of classes) legend.append(classChip(c));

function classChip(c) {
  return element("span", { class: "class", style: `--c: ${gallery.colours[c]}` }, gallery.classes[c]);
}

function change(key, value) {
  state[key] = value;
  if (key === "panel") document.getElementById("list").style.setProperty("--panel", `${value}px`);
  else if (["k", "opacity", "outline"].includes(key)) redraw();
  else refresh();
}

// --- the list

const list = document.getElementById("list");
const more = document.getElementById("more");
const visible = new Set(); // images in or near the window

const watcher = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) { visible.add(target); draw(target); } else visible.delete(target);
  }
}, { rootMargin: "300px" });
new IntersectionObserver(entries => { if (entries.some(entry => entry.isIntersecting)) addImages(); },
  { rootMargin: "600px" }).observe(more);
more.addEventListener("click", () => addImages());

function passes(row) {
  const text = state.text.toLowerCase();
  return (!state.split || row.split === state.split)
    && (state.cls === "" || row.classes.includes(Number(state.cls)))
    && (!state.stop || Object.values(row.adaptation || {}).some(([, stop]) => stop === state.stop))
    && (!text || row.id.toLowerCase().includes(text)
      || row.classes.some(c => gallery.classes[c].toLowerCase().includes(text)));
}

function refresh() {
  const [, key, sign] = sortings[Number(state.sort) || 0];
  shown = gallery.rows.filter(passes).map(row => [row, key(row)]);
  shown.sort(([, a], [, b]) => (a == null) - (b == null) || (a == null ? 0 : sign * compare(a, b)));
  shown = shown.map(([row]) => row);
  visible.forEach(target => watcher.unobserve(target));
  visible.clear();
  list.replaceChildren();
  added = 0;
  addImages();
  const number = shown.length.toLocaleString("en");
  document.getElementById("count").textContent = `${number} of ${gallery.rows.length.toLocaleString("en")} images`;
}

function addImages() {
  for (const row of shown.slice(added, added + AT_ONCE)) {
    const article = imageElement(row);
    list.append(article);
    watcher.observe(article);
  }
  added = Math.min(added + AT_ONCE, shown.length);
  more.hidden = added >= shown.length;
}

const percent = value => (100 * value).toFixed(1);

function imageElement(row) {
  const names = row.classes.map(c => gallery.classes[c]).join(", ") || "no class";
  const article = element("article", { class: "image", tabindex: 0, "aria-label": `${row.id}: ${names}` });
  article.row = row;
  const head = element("h3", {}, row.id, ...row.classes.map(classChip), element("small", {}, row.split));
  for (const { name, label } of mapColumns) {
    if (row.scores[name] == null) continue;
    const gain = name === gallery.baseline ? null : gainOf(row, name);
    const text = `${label} ${percent(row.scores[name])}` + (gain == null ? "" : ` (${gain < 0 ? "" : "+"}${percent(gain)})`);
    head.append(element("small", { class: "gain" }, text));
  }
  for (const [name, [steps, stop]] of Object.entries(row.adaptation || {})) {
    const { label } = mapColumns.find(column => column.name === name);
    const ended = stop === "all steps" ? "" : `, ended by ${stop.replace("_", " ")}`;
    head.append(element("small", {}, `${label}: ${steps} steps${ended}`));
  }
  article.append(head);
  const panels = element("div", { class: "panels" });
  article.append(panels);
  if (row.picture != null) {
    for (const column of [{ name: "", label: "image" }, ...gallery.columns]) {
      const canvas = element("canvas", { role: "img", width: 8, height: 6, "data-column": column.name });
      panels.append(element("figure", {}, canvas, element("figcaption", {}, column.label)));
    }
  } else if (row.thumbnail != null) {
    const small = element("img", { src: thumbnails[row.thumbnail], alt: `${row.id}, thumbnail`, loading: "lazy", style: "width:auto" });
    panels.append(small);
  } else {
    panels.append(element("p", { class: "soft" }, "no picture in this page"));
  }
  return article;
}

// --- drawing

function loadImage(source) {
  if (!source) return null;
  const image = new Image();
  image.src = source;
  return image.decode().then(() => image);
}

function load(number) {
  if (!decoded.has(number)) decoded.set(number, decode(read(`picture-${number}`)));
  return decoded.get(number);
}

async function decode({ image, columns }) {
  const found = { image: await loadImage(image), columns: {} };
  for (const { name, kind } of gallery.columns) {
    const column = columns[name];
    if (!column) continue;
    found.columns[name] = kind === "maps"
      ? { ...column, sheet: await loadImage(column.sheet) }
      : { mask: await loadImage(column) };
  }
  return found;
}

function redraw() { visible.forEach(draw); }

async function draw(article) {
  const { row } = article;
  if (row.picture == null) return;
  const picture = await load(row.picture);
  const [width, height] = [picture.image.naturalWidth, picture.image.naturalHeight];
  for (const canvas of article.querySelectorAll("canvas")) {
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    const context = canvas.getContext("2d");
    context.drawImage(picture.image, 0, 0);
    const column = gallery.columns.find(({ name }) => name === canvas.dataset.column);
    if (!column) { canvas.setAttribute("aria-label", `image ${row.id}`); continue; }
    const found = picture.columns[column.name];
    const caption = canvas.nextElementSibling;
    let text = column.label;
    if (!found || (column.kind === "maps" && !found.sheet)) text += ": none";
    else if (column.kind === "maps") {
      const k = Math.min(state.k, found.steps - 1);
      if (found.steps > 1) text += `, k = ${k}`;
      drawMaps(context, found, k, state.outline ? column.thresholds[row.split] : undefined);
    } else {
      context.globalAlpha = state.opacity;
      context.imageSmoothingEnabled = false;
      context.drawImage(found.mask, 0, 0, width, height);
      context.imageSmoothingEnabled = true;
      context.globalAlpha = 1;
    }
    caption.textContent = text;
    canvas.setAttribute("aria-label", `${text}, of ${row.id}`);
  }
}

const scratch = document.createElement("canvas");
const enlarged = scratch.getContext("2d", { willReadFrequently: true });

// Draws the strongest of the image's maps after step k in colour, with the outline of what exceeds the threshold.
function drawMaps(context, { sheet, classes, steps }, k, threshold) {
  const { width, height } = context.canvas;
  const [w, h] = [sheet.naturalWidth / steps, sheet.naturalHeight / classes.length];
  if (scratch.width !== width || scratch.height !== height) { scratch.width = width; scratch.height = height; }
  const strongest = new Uint8ClampedArray(width * height);
  classes.forEach((_, c) => {
    enlarged.drawImage(sheet, k * w, c * h, w, h, 0, 0, width, height);
    const { data } = enlarged.getImageData(0, 0, width, height);
    for (let i = 0; i < strongest.length; i++) if (data[4 * i] > strongest[i]) strongest[i] = data[4 * i];
  });
  const painted = new ImageData(width, height);
  const alpha = Math.round(255 * state.opacity);
  for (let i = 0; i < strongest.length; i++) {
    const [r, g, b] = colourMap[strongest[i]];
    painted.data.set([r, g, b, alpha], 4 * i);
  }
  if (threshold !== undefined) outlined(painted, strongest, width, height, 255 * threshold);
  enlarged.putImageData(painted, 0, 0);
  context.drawImage(scratch, 0, 0);
}

function outlined(painted, values, width, height, threshold) {
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const i = y * width + x;
      const inside = values[i] > threshold;
      const right = x + 1 < width && values[i + 1] > threshold !== inside;
      const below = y + 1 < height && values[i + width] > threshold !== inside;
      if (right || below) painted.data.set([255, 255, 255, 255], 4 * i);
    }
  }
}

// --- keys

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName)) return;
  if (event.key === "/") { event.preventDefault(); search.focus(); }
  if (event.key === "j" || event.key === "k") move(event.key === "j" ? 1 : -1);
  if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
    const input = document.getElementById("k");
    if (!input) return;
    event.preventDefault();
    input.value = Number(input.value) + (event.key === "ArrowRight" ? 1 : -1);
    input.dispatchEvent(new Event("input"));
  }
});

function move(by) {
  const articles = [...list.children];
  const place = articles.indexOf(document.activeElement.closest(".image"));
  if (place + by >= articles.length) addImages();
  const next = list.children[Math.max(0, place + by)];
  if (next) { next.focus(); next.scrollIntoView({ block: "start" }); }
}

refresh();
