// The keys 1, 2 and 0 press the buttons, wherever the focus is but in a field.
if (!window.invdiffVotes) {
  window.invdiffVotes = true;
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || !["0", "1", "2"].includes(event.key)) return;
    if (event.target.closest("input, textarea, select, [contenteditable]")) return;
    document.getElementById("vote-" + event.key)?.click();
  });
}
