// Loads the page anew every five seconds, unless somebody is typing in it.
setTimeout(function again() {
  const a = document.activeElement;
  if (document.hidden || (a && /^(INPUT|SELECT|BUTTON|TEXTAREA)$/.test(a.tagName))) setTimeout(again, 5000);
  else location.reload();
}, 5000);
