// The painter: a canvas with one pixel for each of the picture. Its value is the JSON text of
// picture.py; a stroke ends with the event "input", and "upload" sends a file.
const canvas = element.querySelector("canvas");
const pen = canvas.getContext("2d");
const find = (selector) => element.querySelector(selector);
const each = (selector, action) => element.querySelectorAll(selector).forEach(action);
const COVER = [104, 92, 200]; // of hidden pixels
const MOST_UNDONE = 30;
const REFUSED = "refused"; // the value in answer to a file that is no picture
const MOST_BYTES = 24e6; // of a file: its text is a third longer, and server.py bounds requests
let picture = null, tool = "hide", past = [], sent = null, last = null;

const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const textOf = (bytes) => {
  let letters = "";
  for (let i = 0; i < bytes.length; i += 8192) {
    letters += String.fromCharCode(...bytes.subarray(i, i + 8192));
  }
  return btoa(letters);
};
const bit = (i) => 128 >> (i & 7);

function unpack(text) {
  const value = JSON.parse(text);
  const count = value.width * value.height;
  let hidden = null;
  if (value.hidden !== null) {
    const bits = bytesOf(value.hidden);
    hidden = new Uint8Array(count).map((_, i) => ((bits[i >> 3] & bit(i)) ? 1 : 0));
  }
  return { ...value, pixels: bytesOf(value.pixels), hidden };
}

function pack() {
  const { width, height, channels, pixels, hidden } = picture;
  let bits = null;
  if (hidden !== null) {
    bits = new Uint8Array(Math.ceil(hidden.length / 8));
    hidden.forEach((flag, i) => { if (flag) bits[i >> 3] |= bit(i); });
  }
  return JSON.stringify({
    channels, height, width, pixels: textOf(pixels), hidden: bits === null ? null : textOf(bits),
  });
}

function draw() {
  const { width, height, channels, pixels, hidden } = picture;
  const image = pen.createImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    const covered = hidden !== null && hidden[i];
    for (let c = 0; c < 3; c++) {
      const level = pixels[i * channels + (channels === 3 ? c : 0)];
      image.data[4 * i + c] = covered ? 0.25 * level + 0.75 * COVER[c] : level;
    }
    image.data[4 * i + 3] = 255;
  }
  pen.putImageData(image, 0, 0);
  const covered = hidden === null ? 0 : hidden.reduce((sum, flag) => sum + flag, 0);
  find(".cf-count").textContent =
    hidden === null ? "" : `${Math.round((100 * covered) / hidden.length)} % hidden`;
}

function show(text) {
  if (!text || text === sent) return;
  if (text === REFUSED) {
    sent = props.value = pack();
    return;
  }
  const before = picture;
  picture = unpack(text);
  past = [];
  canvas.width = picture.width;
  canvas.height = picture.height;
  const changed = before === null || before.width !== picture.width;
  if (changed) {
    const size = find(".cf-size input");
    size.max = Math.max(2, Math.round(picture.width / 2));
    size.value = Math.max(1, Math.round(picture.width / 6));
  }
  const masked = picture.hidden !== null;
  each("[data-tool=hide], [data-tool=show], [data-do=none], [data-do=swap]",
       (button) => { button.hidden = !masked; });
  choose(masked ? (tool === "draw" && !changed ? "draw" : "hide") : "draw");
  draw();
}

function choose(name) {
  tool = name;
  each("[data-tool]", (b) => b.setAttribute("aria-pressed", String(b.dataset.tool === name)));
  const grey = picture === null || picture.channels === 1;
  find(".cf-shade").hidden = name !== "draw" || !grey;
  find(".cf-colour").hidden = name !== "draw" || grey;
}

function remember() {
  const { pixels, hidden } = picture;
  past.push({ pixels: pixels.slice(), hidden: hidden === null ? null : hidden.slice() });
  if (past.length > MOST_UNDONE) past.shift();
}

function tell() {
  sent = pack();
  props.value = sent;
  trigger("input");
}

function ink() {
  if (picture.channels === 1) return [Number(find(".cf-shade input").value)];
  const colour = find(".cf-colour input").value;
  return [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
}

function dab(x, y) {
  const { width, height, channels, pixels, hidden } = picture;
  const radius = Number(find(".cf-size input").value) / 2;
  const levels = ink();
  for (let row = Math.max(0, Math.floor(y - radius)); row < Math.min(height, y + radius); row++) {
    for (let at = Math.max(0, Math.floor(x - radius)); at < Math.min(width, x + radius); at++) {
      const within = Math.hypot(at + 0.5 - x, row + 0.5 - y) <= Math.max(radius, 0.71);
      if (!within) continue;
      const i = row * width + at;
      if (tool === "draw") levels.forEach((level, c) => { pixels[i * channels + c] = level; });
      else hidden[i] = tool === "hide" ? 1 : 0;
    }
  }
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [
    ((event.clientX - box.left) / box.width) * picture.width,
    ((event.clientY - box.top) / box.height) * picture.height,
  ];
}

canvas.addEventListener("pointerdown", (event) => {
  if (picture === null || event.button > 0) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  remember();
  last = place(event);
  dab(...last);
  draw();
});
canvas.addEventListener("pointermove", (event) => {
  if (last === null) return;
  const [x, y] = place(event);
  const steps = Math.max(1, Math.ceil(2 * Math.hypot(x - last[0], y - last[1])));
  for (let k = 1; k <= steps; k++) {
    dab(last[0] + ((x - last[0]) * k) / steps, last[1] + ((y - last[1]) * k) / steps);
  }
  last = [x, y];
  draw();
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, () => {
    if (last === null) return;
    last = null;
    tell();
  });
}
each("[data-tool]", (b) => b.addEventListener("click", () => choose(b.dataset.tool)));
const actions = {
  undo: () => { if (past.length) Object.assign(picture, past.pop()); },
  none: () => { remember(); picture.hidden.fill(0); },
  swap: () => { remember(); picture.hidden = picture.hidden.map((flag) => 1 - flag); },
};
each("[data-do]", (b) => b.addEventListener("click", () => {
  if (picture === null) return;
  actions[b.dataset.do]();
  draw();
  tell();
}));
// A file is sent as text, like everything else; the picture that it holds comes back as the value.
const file = find("input[type=file]");
find("[data-open]").addEventListener("click", () => file.click());
file.addEventListener("change", async () => {
  if (!file.files.length) return;
  const [chosen] = file.files;
  if (chosen.size > MOST_BYTES) {
    find(".cf-count").textContent = "the file is too large";
    return;
  }
  const content = new Uint8Array(await chosen.arrayBuffer());
  file.value = "";
  sent = JSON.stringify({ file: textOf(content) });
  props.value = sent;
  trigger("upload");
});
watch("value", () => show(props.value));
show(props.value);
