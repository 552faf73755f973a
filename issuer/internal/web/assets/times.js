// Shows times in the reader's own time zone, with UTC on hover, and reads the
// fields of the filter by time in that zone. Without script all times are UTC.
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
const days = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
const two = (n) => String(n).padStart(2, "0");
const hours = (t) => `${two(t.getHours())}:${two(t.getMinutes())}`;
const date = (t) => `${t.getFullYear()}-${two(t.getMonth() + 1)}-${two(t.getDate())}`;
const utc = (t, length) => t.toISOString().slice(0, length);

for (const e of document.querySelectorAll("time")) {
  const t = new Date(e.dateTime);
  e.title = `${utc(t, 19).replace("T", " ")} UTC`;
  e.textContent = "tick" in e.dataset ? `${days[t.getDay()]} ${hours(t)}` : `${date(t)} ${hours(t)}:${two(t.getSeconds())}`;
}
for (const e of document.querySelectorAll("title[data-at]")) {
  const t = new Date(e.dataset.at);
  e.textContent = `${date(t)} ${hours(t)} (${e.textContent.replace(": ", "): ")}`;
}
for (const form of document.querySelectorAll("form.search")) {
  const fields = form.querySelectorAll("input[type=datetime-local]");
  for (const f of fields) {
    const t = new Date(f.defaultValue + "Z");
    if (!isNaN(t)) f.value = `${date(t)}T${hours(t)}`;
  }
  form.addEventListener("formdata", (e) => {
    for (const f of fields) if (f.value) e.formData.set(f.name, utc(new Date(f.value), 16));
  });
}
if (zone !== "UTC") for (const e of document.querySelectorAll(".zone")) e.textContent = "your time";
const note = document.getElementById("zone");
if (note && zone !== "UTC") note.textContent = `Times are in ${zone || "your time zone"}: hover for UTC.`;
