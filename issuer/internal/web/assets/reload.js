// Loads the page anew every five seconds, unless somebody is at work in it.
const auto = document.getElementById("auto");
if (auto) auto.textContent = ", or wait: it does so every 5 seconds.";
setTimeout(function again() {
  const a = document.activeElement;
  const busy = document.hidden || String(getSelection()) !== "" || document.querySelector("details[open]") ||
    (a && /^(A|INPUT|SELECT|BUTTON|TEXTAREA|SUMMARY)$/.test(a.tagName));
  if (busy) setTimeout(again, 5000);
  else location.reload();
}, 5000);
