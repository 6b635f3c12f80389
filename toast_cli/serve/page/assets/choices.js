element.addEventListener("click", (event) => {
  const choice = event.target.closest("button[data-index]");
  if (!choice) return;
  for (const other of element.querySelectorAll("button[data-index]")) other.ariaPressed = String(other === choice);
  trigger("select", { index: Number(choice.dataset.index) });
});
